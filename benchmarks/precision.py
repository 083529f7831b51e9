"""Does a faster precision keep the ranking? The same candidates scored in float32 and in others.

    python benchmarks/precision.py FOLDER [FOLDER ...] [--queries 500] [--precisions auto] [--indexes FOLDER]

Each folder is a test collection. Dense search finds 100 candidates of each question (`--queries` of them, seeded; 0:
all), a cross-encoder scores them in each precision ("torch" is "auto" computed by torch). For each:
nDCG@10, for how many questions the ten best are the same passages as in float32, for how many the best one is, how far
logits moved, and the gap in float32 between the tenth and the eleventh, which is what a difference must pass to change
the ten. With `--batches`, the same pairs are scored again in batches of one: how far a logit moves with what else is
in its batch, and how far apart two passages were that changed places. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import numpy.typing as npt

from common import add_model_options, models
from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Hit, TruncationWarning
from retrieve_rerank.evaluation import Dataset, load_dataset

NDCG = ir_measures.nDCG @ 10
Logits = dict[str, npt.NDArray[np.float32]]


def candidates(dataset: Dataset, encoder: BiEncoder, path: Path | None, fetch_k: int) -> dict[str, list[Hit]]:
    """Return the candidates of each question; passages already in the index are not encoded again."""
    with ChromaIndex(encoder, path=path) as index:
        index.add(dataset.passages, show_progress=True)
        questions = {query: dataset.queries[query] for query in dataset.judgements}
        return dict(zip(questions, index.retrieve_many(list(questions.values()), fetch_k), strict=True))


def logits(dataset: Dataset, found: Mapping[str, list[Hit]], model: CrossEncoder) -> tuple[Logits, float]:
    """Return the logits of each question's candidates, and seconds."""
    start = time.perf_counter()
    scores = {
        query: np.asarray(model.score(dataset.queries[query], [hit.passage.text for hit in hits]))
        for query, hits in found.items()
    }
    return scores, time.perf_counter() - start


def quality(dataset: Dataset, found: Mapping[str, list[Hit]], scores: Logits) -> float:
    """Return nDCG@10."""
    runs = {
        query: {hit.passage.id: float(score) for hit, score in zip(hits, scores[query], strict=True)}
        for query, hits in found.items()
    }
    relevance = {query: dict(judged) for query, judged in dataset.judgements.items()}
    return float(ir_measures.calc_aggregate([NDCG], relevance, runs)[NDCG])


def row(dataset: Dataset, found: Mapping[str, list[Hit]], exact: Logits, scores: Logits) -> str:
    """Return the cells of a precision beside float32: nDCG@10, same ten, same first, how far logits moved."""
    pairs = [(exact[query], scores[query]) for query in exact]
    ten = statistics.mean({*np.argsort(-one)[:10]} == {*np.argsort(-other)[:10]} for one, other in pairs)
    first = statistics.mean(bool(one.argmax() == other.argmax()) for one, other in pairs)
    moved = max(float(np.abs(one - other).max()) for one, other in pairs)
    return f"{quality(dataset, found, scores):.4f} | {ten:.1%} | {first:.1%} | {moved:.2f}"


def by_batch(together: Logits, alone: Logits) -> str:
    """Return the cells of logits beside those of each pair alone: how far they moved, and what changed places."""
    pairs = [(together[query], alone[query]) for query in together]
    moved = np.concatenate([np.abs(one - other) for one, other in pairs])
    changed, apart = 0, 0.0
    for one, other in pairs:
        gaps = one[:, None] - one[None, :]
        swapped = (gaps > 0) & (other[:, None] < other[None, :])
        changed += bool(swapped.any())
        apart = max(apart, float(gaps[swapped].max(initial=0)))
    return f"{np.median(moved):.1g} | {moved.max():.1g} | {changed} of {len(pairs)} | {apart:.1g}"


def measure(
    dataset: Dataset, found: Mapping[str, list[Hit]], cross_encoder: str, precisions: Sequence[str], *, batches: bool
) -> Iterator[str]:
    """Yield a line for float32 and each other precision, and one on the gap that a difference must pass."""
    exact: Logits = {}
    for precision in ("float32", *precisions):
        options: dict[str, Any] = {"backend": "torch"} if precision == "torch" else {"precision": precision}
        with CrossEncoder(cross_encoder, **options) as model:
            name = f"{model.precision} by {model.fingerprint['backend']}"
            scores, seconds = logits(dataset, found, model)
        if batches:
            with CrossEncoder(cross_encoder, batch_tokens=1, **options) as model:
                alone, _ = logits(dataset, found, model)
            yield f"| {dataset.name} | {len(found)} | {name} | {by_batch(scores, alone)} |"
            continue
        exact = exact or scores
        yield f"| {dataset.name} | {len(found)} | {name} | {row(dataset, found, exact, scores)} | {seconds:.0f} |"
    ordered = [np.sort(values)[::-1] for values in exact.values() if len(values) > 10]
    if ordered:
        gap = statistics.median(float(values[9] - values[10]) for values in ordered)
        yield f"{dataset.name}: gap between tenth and eleventh logit: median {gap:.3f}"


def main() -> None:
    """Print a row for each collection and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--fetch-k", type=int, default=100)
    parser.add_argument("--precisions", nargs="+", default=["auto"])
    parser.add_argument("--batches", action="store_true", help="what the batch does to logits, instead")
    parser.add_argument("--indexes", type=Path, help="keep the indexes there")
    add_model_options(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)
    bi_encoder, cross_encoder = models(arguments)
    print(f"{platform.machine()}, {arguments.fetch_k} candidates a question\n")
    columns = ["nDCG@10", "same ten", "same first", "logits moved", "seconds"]
    if arguments.batches:
        columns = ["moved by the batch: median", "largest", "an order changed", "at most so far apart"]
    print(f"| collection | questions | precision | {' | '.join(columns)} |")
    print("|---" * (3 + len(columns)) + "|", flush=True)
    with BiEncoder(bi_encoder) as encoder:
        for folder in arguments.folders:
            dataset = load_dataset(folder)
            dataset = dataset.sample(arguments.queries) if arguments.queries else dataset
            path = None if arguments.indexes is None else arguments.indexes / f"index-{folder.name}"
            found = candidates(dataset, encoder, path, arguments.fetch_k)
            for line in measure(dataset, found, cross_encoder, arguments.precisions, batches=arguments.batches):
                print(line, flush=True)


if __name__ == "__main__":
    main()
