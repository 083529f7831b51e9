"""On real text with the real demo models, where the test collections lie beside the project: re-ranking helps."""

from __future__ import annotations

import json
from pathlib import Path

import ir_measures
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Passage, RetrieveRerank

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "squadshifts-reddit"
NDCG = ir_measures.nDCG @ 10


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the test collection squadshifts-reddit is not beside the project")
@pytest.mark.filterwarnings("ignore::retrieve_rerank.TruncationWarning")
def test_reranking_raises_ndcg_on_forum_posts(bi_encoder_path: Path, cross_encoder_path: Path) -> None:
    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").split("\n") if line]

    judged = [line.split("\t") for line in (FOLDER / "qrels.tsv").read_text(encoding="utf-8").split("\n")[1:] if line]
    queries = {row["id"]: row["text"] for row in rows("queries.jsonl")}
    relevance: dict[str, dict[str, int]] = {}
    for query, document, score in judged[::100]:  # 21 questions, spread over the set
        relevance.setdefault(query, {})[document] = int(float(score))
    wanted = {document for documents in relevance.values() for document in documents}
    corpus = [row for position, row in enumerate(rows("corpus.jsonl")) if position % 8 == 0 or row["id"] in wanted]
    with ChromaIndex(BiEncoder(bi_encoder_path)) as index:
        index.add(Passage(row["id"], row["text"]) for row in corpus)
        search = RetrieveRerank(index, CrossEncoder(cross_encoder_path), fetch_k=20, top_n=20)
        results = {query: search.search(queries[query]) for query in relevance}
    before, after = (
        ir_measures.calc_aggregate([NDCG], relevance, run)[NDCG]
        for run in (
            {query: {hit.passage.id: -hit.rank for hit in result.candidates} for query, result in results.items()},
            {query: {hit.passage.id: -hit.rank for hit in result} for query, result in results.items()},
        )
    )
    assert after > before + 0.05
