"""On real text with the real demo models, where the test collections lie beside the project: re-ranking helps."""

from __future__ import annotations

import json
from pathlib import Path

import ir_measures
import pytest

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Passage, RetrieveRerank

DATA = Path(__file__).parents[2] / "shared" / "data"
FORUM, LONG = "squadshifts-reddit", "nq-gold"
NDCG = ir_measures.nDCG @ 10


def collection(name: str, every: int) -> tuple[dict[str, str], dict[str, dict[str, int]], list[dict[str, str]]]:
    """Return questions, their judgements spread over the set, and a part of the texts with those that are judged."""
    if not (DATA / name).is_dir():
        pytest.skip(f"the test collection {name} is not beside the project")

    def lines(file: str) -> list[str]:
        return [line for line in (DATA / name / file).read_text(encoding="utf-8").split("\n") if line]

    queries = {row["id"]: row["text"] for row in map(json.loads, lines("queries.jsonl"))}
    relevance: dict[str, dict[str, int]] = {}
    for query, document, score in (line.split("\t") for line in lines("qrels.tsv")[1::every]):
        relevance.setdefault(query, {})[document] = int(float(score))
    wanted = {document for documents in relevance.values() for document in documents}
    rows = map(json.loads, lines("corpus.jsonl"))
    return queries, relevance, [row for at, row in enumerate(rows) if at % 16 == 0 or row["id"] in wanted]


@pytest.mark.filterwarnings("ignore::retrieve_rerank.TruncationWarning")
def test_reranking_raises_ndcg_on_forum_posts(bi_encoder_path: Path, cross_encoder_path: Path) -> None:
    queries, relevance, corpus = collection(FORUM, 200)  # 11 questions
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


@pytest.mark.filterwarnings("ignore::retrieve_rerank.TruncationWarning")
def test_windows_find_the_answer_at_the_end_of_long_passages(bi_encoder_path: Path, cross_encoder_path: Path) -> None:
    """2,000 tokens of which the last hundred are the passage: nDCG@10 stays; of a truncated passage it falls."""
    queries, relevance, corpus = collection(LONG, 110)  # 5 questions
    with ChromaIndex(BiEncoder(bi_encoder_path)) as index:
        index.add(Passage(row["id"], row["text"]) for row in corpus)
        found = {query: index.retrieve(queries[query], 50) for query in relevance}

    def buried(query: str, place: int) -> Passage:
        passage = found[query][place].passage
        near = {hit.passage.id for hit in found[query]}  # these may answer too
        others = [row["text"] for row in corpus[place::5] if row["id"] not in near]
        return Passage(passage.id, f"{' '.join(others)[:8_500]}\n{passage.text}")

    values = []
    for long, options in ((False, {}), (True, {}), (True, {"long_passages": "windows"})):
        with CrossEncoder(cross_encoder_path, **options) as model:
            orders = {
                query: model.rank(queries[query], [buried(query, place) if long else hits[place] for place in range(5)])
                for query, hits in found.items()
            }
        ranks = {query: {hit.passage.id: -hit.rank for hit in hits} for query, hits in orders.items()}
        values.append(ir_measures.calc_aggregate([NDCG], relevance, ranks)[NDCG])
    short, truncated, windows = values
    assert truncated < short - 0.2
    assert windows > short - 0.05
