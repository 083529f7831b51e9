"""What several benchmarks share: which models they run, and the first stages over a collection."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
