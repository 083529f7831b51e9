"""What windows are worth on long passages: nDCG@10 and seconds of the same candidates, short and buried in other text.

    python benchmarks/long_passages.py FOLDER [--queries 50] [--candidates 20] [--tokens 2000] [--cross-encoder NAME]

The folder is a test collection, as `load_dataset` reads it. For a sample of its queries the dense first stage
finds candidates. The cross-encoder then orders them three times: as they are; with unrelated passages put before each
one until it has `--tokens` tokens, cut to what the model reads; and the same long passages in windows. The three take
turns, query by query. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import sentence_transformers
import torch
import transformers

from common import add_model_options, models, ndcg
from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Hit, Passage, TruncationWarning
from retrieve_rerank.evaluation import load_dataset

Bury = Callable[[Hit, set[str]], Passage]
RELATED = 100  # the best so many, half of all at most, are not what a passage is buried in: they may answer too


def padding(corpus: list[Passage], tokenizer: Callable[..., dict[str, list]], tokens: int) -> Bury:
    """Return what buries the passage of a hit: it puts passages that are not related before it.

    No passage with an id in `related` is taken. The result has `tokens` tokens.
    """

    def spans(text: str) -> list[tuple[int, int]]:
        return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    def bury(hit: Hit, related: set[str]) -> Passage:
        chance = random.Random(hit.passage.id)
        text = hit.passage.text
        while len(found := spans(text)) < tokens:
            other = chance.choice(corpus)
            if other.id not in related:
                text = f"{other.text}\n{text}"
        return Passage(hit.passage.id, text[found[-tokens][0] :])

    return bury


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=50, help="a seeded sample of this many")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2000)
    add_model_options(parser)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)  # counted in the table
    bi_encoder, name = models(arguments)
    dataset = load_dataset(arguments.folder).sample(arguments.queries)
    texts, chosen, corpus = dataset.queries, list(dataset.judgements), list(dataset.passages)
    bury = padding(corpus, transformers.AutoTokenizer.from_pretrained(name), arguments.tokens)
    with (
        BiEncoder(bi_encoder, precision=arguments.precision) as encoder,
        ChromaIndex(encoder) as index,
    ):
        index.add(corpus, show_progress=True)
        found = {query: index.retrieve(texts[query], min(RELATED, len(corpus) // 2)) for query in chosen}
    with (
        CrossEncoder(name, precision=arguments.precision) as cut,
        CrossEncoder(name, precision=arguments.precision, long_passages="windows") as windows,
    ):
        ways = {"as they are": (cut, False), "long, truncated": (cut, True), "long, in windows": (windows, True)}
        orders: dict[str, dict[str, list[str]]] = {way: {} for way in ways}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        truncated = dict.fromkeys(ways, 0)
        for query in chosen:
            for way, (model, long) in ways.items():
                candidates: list[Hit] | list[Passage] = found[query][: arguments.candidates]
                if long:
                    related = {hit.passage.id for hit in found[query]}
                    candidates = [bury(hit, related) for hit in found[query][: arguments.candidates]]
                model.score(texts[query], ["loads the model"])
                start = time.perf_counter()
                hits = model.rank(texts[query], candidates)
                seconds[way].append(time.perf_counter() - start)
                orders[way][query] = [hit.passage.id for hit in hits]
                truncated[way] += sum(hit.truncated for hit in hits)
        print(f"{platform.machine()}, {windows!r}")
    print(f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}")
    print(
        f"{arguments.folder.name}: {len(chosen)} queries, the dense first stage's {arguments.candidates} candidates\n"
    )
    print("| passages | nDCG@10 | re-rank p50 | truncated |")
    print("|---|---|---|---|")
    for way in ways:
        value = ndcg(dataset.judgements, orders[way])
        share = truncated[way] / (len(chosen) * arguments.candidates)
        print(f"| {way} | {value:.3f} | {statistics.median(seconds[way]):.2f} s | {share:.0%} |")


if __name__ == "__main__":
    main()
