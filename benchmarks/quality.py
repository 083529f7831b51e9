"""Does re-ranking help, and over which first stage? nDCG@10 and R@100 of BM25, dense and hybrid, and of each re-ranked.

    python benchmarks/quality.py FOLDER [FOLDER ...] [--queries 100] [--bi-encoder NAME] [--cross-encoder NAME]

Each folder is a test collection: `corpus.jsonl` (id, title, text), `queries.jsonl` (id, text) and `qrels.tsv`
(query-id, corpus-id, score; with a header). The first stages are measured on every judged query. Re-ranking is measured
on a seeded sample of `--queries` of them (0: all), beside the first stages on the same sample; a passage that several
first stages found is scored once. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import bm25s
import ir_measures
import numpy
import sentence_transformers
import Stemmer
import torch

from common import add_model_options, first_stages, models
from retrieve_rerank import BiEncoder, CrossEncoder, Hit, TruncationWarning
from retrieve_rerank.evaluation import Dataset, load_dataset

NDCG, RECALL = ir_measures.nDCG @ 10, ir_measures.R @ 100
SYSTEMS = ("BM25", "dense", "hybrid")

Run = dict[str, dict[str, float]]


def run(hits: Sequence[Hit]) -> dict[str, float]:
    """Return hits as the measures want them; the rank itself is the score, so ties cannot reorder it."""
    return {hit.passage.id: -float(position) for position, hit in enumerate(hits)}


def candidates(
    dataset: Dataset, encoder: BiEncoder, texts: Mapping[str, str], fetch_k: int
) -> dict[str, dict[str, list[Hit]]]:
    """Return the candidates of each first stage by query."""
    with first_stages(dataset.passages, encoder) as firsts:
        return {
            name: dict(zip(texts, first.retrieve_many(list(texts.values()), fetch_k), strict=True))
            for name, first in firsts.items()
        }


def difference_to_bm25s(
    dataset: Dataset, texts: Mapping[str, str], found: Mapping[str, list[Hit]], fetch_k: int
) -> float:
    """Return by how much our BM25 scores, best first, differ at most from those of bm25s called directly."""
    stemmer = Stemmer.Stemmer("english")
    tokenize = functools.partial(bm25s.tokenize, stopwords="en", stemmer=stemmer, show_progress=False)
    model = bm25s.BM25()
    model.index(tokenize([passage.text for passage in dataset.passages]), show_progress=False)
    largest = 0.0
    for query, text in texts.items():
        known = [word for word in tokenize(text, return_ids=False)[0] if word in model.vocab_dict]
        theirs = numpy.sort(model.get_scores(known))[::-1] if known else numpy.zeros(0)
        theirs = theirs[theirs > 0][:fetch_k]
        ours = numpy.array([hit.score for hit in found[query]])
        if len(ours) != len(theirs):
            return float("inf")
        largest = max(largest, float(abs(ours - theirs).max(initial=0.0)))
    return largest


def rerank(
    found: Mapping[str, Mapping[str, list[Hit]]],
    cross_encoder: CrossEncoder,
    texts: Mapping[str, str],
    chosen: list[str],
) -> tuple[dict[str, Run], list[float], int, int]:
    """Return each first stage's candidates re-ranked, seconds a query, and how many passages were scored and cut."""
    ranked: dict[str, Run] = {name: {} for name in found}
    seconds, cut, scored = [], 0, 0
    for number, query in enumerate(chosen, start=1):
        distinct = {hit.passage.id: hit.passage for name in found for hit in found[name][query]}
        start = time.perf_counter()
        hits = cross_encoder.rank(texts[query], distinct.values())
        seconds.append(time.perf_counter() - start)
        cut, scored = cut + sum(hit.truncated for hit in hits), scored + len(hits)
        logit = {hit.passage.id: hit.logit for hit in hits}
        for name, by_query in found.items():
            ranked[name][query] = run(sorted(by_query[query], key=lambda hit: -logit[hit.passage.id]))
        if number % 25 == 0:
            print(f"re-ranked {number}/{len(chosen)}, {sum(seconds):.0f} s", file=sys.stderr)
    return ranked, seconds, scored, cut


def measure(
    folder: Path, encoder: BiEncoder, cross_encoder: CrossEncoder, limit: int, fetch_k: int
) -> tuple[list[str], str]:
    """Return the rows of one collection, and what it is."""
    dataset = load_dataset(folder)
    relevance = {query: dict(judged) for query, judged in dataset.judgements.items()}
    texts = {query: dataset.queries[query] for query in relevance}
    found = candidates(dataset, encoder, texts, fetch_k)
    chosen = list((dataset.sample(limit) if limit else dataset).judgements)
    ranked, seconds, scored, cut = rerank(found, cross_encoder, texts, chosen)
    some = {query: relevance[query] for query in chosen}
    lines = []
    for name in SYSTEMS:
        whole = {query: run(hits) for query, hits in found[name].items()}
        everything = ir_measures.calc_aggregate([NDCG, RECALL], relevance, whole)
        before, after = (
            ir_measures.calc_aggregate([NDCG], some, found_)[NDCG]
            for found_ in ({query: whole[query] for query in chosen}, ranked[name])
        )
        lines.append(
            f"| {folder.name} | {name} | {everything[RECALL]:.3f} | {everything[NDCG]:.3f} | {before:.3f} | "
            f"{after:.3f} | {after - before:+.3f} |"
        )
    about = (
        f"{folder.name}: {len(dataset.passages)} documents, {len(texts)} queries, {len(chosen)} of them re-ranked; "
        f"{scored / len(chosen):.0f} distinct candidates a query, {cut / max(scored, 1):.1%} truncated, "
        f"{statistics.median(seconds):.2f} s a query in the median; BM25 scores differ from those of bm25s called "
        f"directly by {difference_to_bm25s(dataset, texts, found['BM25'], fetch_k):.1e} at most"
    )
    return lines, about


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--queries", type=int, default=100, help="re-rank a seeded sample of this many; 0: all")
    parser.add_argument("--fetch-k", type=int, default=100)
    add_model_options(parser)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)  # counted
    bi_encoder, model = models(arguments)
    with (
        BiEncoder(bi_encoder, precision=arguments.precision) as encoder,
        CrossEncoder(model, precision=arguments.precision) as cross_encoder,
    ):
        precision = f"{encoder.precision} bi-encoder, {cross_encoder.precision} cross-encoder"
        print(f"{platform.machine()}, {os.cpu_count()} cores, {precision}, fetch_k={arguments.fetch_k}")
        print(f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}\n")
        columns = "collection|first stage|R@100, all queries|nDCG@10, all queries|nDCG@10, sample|re-ranked|change"
        print("| " + columns.replace("|", " | ") + " |\n|---|---|---|---|---|---|---|")
        facts = []
        for folder in arguments.folders:
            lines, about = measure(folder, encoder, cross_encoder, arguments.queries, arguments.fetch_k)
            print("\n".join(lines), flush=True)
            facts.append(about)
    print("\n" + "\n".join(facts))


if __name__ == "__main__":
    main()
