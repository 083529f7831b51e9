"""What several benchmarks share: their models, the first stages over a collection, and tables written into pages."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ir_measures

from retrieve_rerank import BiEncoder, BM25Index, ChromaIndex, HybridRetriever, Passage, Retriever
from retrieve_rerank.demo import demo_models


def add_model_options(parser: ArgumentParser) -> None:
    """Let a command take the models' names."""
    parser.add_argument("--bi-encoder", help="name or folder; left out, the demo model")
    parser.add_argument("--cross-encoder", help="name or folder; left out, the demo model")


def models(arguments: Namespace) -> tuple[str, str]:
    """Return the bi-encoder and the cross-encoder that were asked for."""
    given = arguments.bi_encoder, arguments.cross_encoder
    demo = demo_models() if None in given else ("", "")
    return str(given[0] or demo[0]), str(given[1] or demo[1])


@contextmanager
def first_stages(
    passages: Iterable[Passage], encoder: BiEncoder, path: Path | None = None
) -> Iterator[dict[str, Retriever]]:
    """Give BM25, dense and hybrid search in passages; what an index at `path` holds already is not encoded again."""
    passages = list(passages)
    with ChromaIndex(encoder, path=path) as dense, BM25Index() as words:
        dense.add(passages, show_progress=True)
        words.add(passages)
        yield {"BM25": words, "dense": dense, "hybrid": HybridRetriever([dense, words])}


def ndcg(judgements: Mapping[str, Mapping[str, int]], orders: Mapping[str, Sequence[str]]) -> float:
    """Return the mean nDCG@10 of the ids of each query, best first; the rank is the score, so that nothing is tied."""
    measure = ir_measures.nDCG @ 10
    runs = {query: {id_: -float(rank) for rank, id_ in enumerate(ids)} for query, ids in orders.items()}
    judged = {query: dict(scores) for query, scores in judgements.items()}
    return float(ir_measures.calc_aggregate([measure], judged, runs)[measure])


def write_table(page: Path, script: str, table: str) -> None:
    """Put a table between the two marks that a Markdown page has for a benchmark.

    Raises:
        SystemExit: If the page has no such marks.
    """
    begin, end = f"<!-- benchmarks/{script} writes this table -->", "<!-- end of the table -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has no place for the table, between {begin} and {end}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
