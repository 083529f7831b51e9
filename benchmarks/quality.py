"""Does re-ranking help? nDCG@10 of the dense first stage, and of the same candidates re-ranked.

    python benchmarks/quality.py FOLDER [FOLDER ...] [--queries 200] [--bi-encoder NAME] [--cross-encoder NAME]

Each folder is a test collection: `corpus.jsonl` (id, title, text), `queries.jsonl` (id, text) and `qrels.tsv`
(query-id, corpus-id, score; with a header). The models default to the demo models. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import sentence_transformers
import torch

from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Hit, Passage, RetrieveRerank, TruncationWarning

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from demo_models import demo_models

NDCG, RECALL = ir_measures.nDCG @ 10, ir_measures.R @ 100


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def passages(folder: Path) -> Iterator[Passage]:
    """Yield the documents of a collection, each with its title in front."""
    for row in rows(folder / "corpus.jsonl"):
        yield Passage(row["id"], f"{row['title']}. {row['text']}" if row.get("title") else row["text"])


def judgements(folder: Path) -> dict[str, dict[str, int]]:
    """Return the relevance of documents by query."""
    relevance: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            query, document, score = line.split("\t")
            relevance.setdefault(query, {})[document] = int(float(score))
    return relevance


def measure(folder: Path, encoder: BiEncoder, cross_encoder: CrossEncoder, limit: int, fetch_k: int) -> str:
    """Return one row of the table."""
    relevance = judgements(folder)
    texts = {row["id"]: row["text"] for row in rows(folder / "queries.jsonl") if row["id"] in relevance}
    chosen = sorted(texts)
    if 0 < limit < len(chosen):
        chosen = sorted(random.Random(0).sample(chosen, limit))
    relevance = {query: relevance[query] for query in chosen}
    with ChromaIndex(encoder) as index:
        index.add(passages(folder), show_progress=True)
        search = RetrieveRerank(index, cross_encoder, fetch_k=fetch_k, top_n=fetch_k)
        dense: dict[str, dict[str, float]] = {}
        ranked: dict[str, dict[str, float]] = {}
        seconds, truncated, start = [], 0, time.perf_counter()
        for number, query in enumerate(chosen, start=1):
            result = search.search(texts[query])
            dense[query], ranked[query] = run(result.candidates), run(result)
            seconds.append(result.timings.rerank_seconds)
            truncated += result.truncated_count
            if number % 50 == 0:
                print(f"{folder.name}: {number}/{len(chosen)}, {time.perf_counter() - start:.0f} s", file=sys.stderr)
        documents = index.count()
    before, after = (ir_measures.calc_aggregate([NDCG, RECALL], relevance, found) for found in (dense, ranked))
    return (
        f"| {folder.name} | {documents} | {len(chosen)} | {before[RECALL]:.3f} | {before[NDCG]:.3f} | "
        f"{after[NDCG]:.3f} | {after[NDCG] - before[NDCG]:+.3f} | {statistics.median(seconds):.2f} s | "
        f"{truncated / (fetch_k * len(chosen)):.1%} |"
    )


def run(hits: Sequence[Hit]) -> dict[str, float]:
    """Return hits as the measures want them; the rank itself is the score, so ties cannot reorder it."""
    return {hit.passage.id: -float(position) for position, hit in enumerate(hits)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--queries", type=int, default=0, help="a seeded sample of this many (default: all)")
    parser.add_argument("--fetch-k", type=int, default=100)
    parser.add_argument("--bi-encoder")
    parser.add_argument("--cross-encoder")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)  # counted in the table
    demo = demo_models() if None in (arguments.bi_encoder, arguments.cross_encoder) else (None, None)
    with (
        BiEncoder(arguments.bi_encoder or demo[0], precision=arguments.precision) as encoder,
        CrossEncoder(arguments.cross_encoder or demo[1], precision=arguments.precision) as cross_encoder,
    ):
        precision = f"{encoder.precision} bi-encoder, {cross_encoder.precision} cross-encoder"
        print(f"{platform.machine()}, {os.cpu_count()} cores, {precision}, fetch_k={arguments.fetch_k}")
        print(f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}\n")
        columns = "collection|documents|queries|R@100|nDCG@10 dense|re-ranked|change|re-rank p50|truncated"
        print("| " + columns.replace("|", " | ") + " |")
        print("|---|---|---|---|---|---|---|---|---|")
        for folder in arguments.folders:
            print(measure(folder, encoder, cross_encoder, arguments.queries, arguments.fetch_k), flush=True)


if __name__ == "__main__":
    main()
