"""What does BM25Index cost beside bm25s alone, and how much faster is it than LangChain's BM25Retriever?

    python benchmarks/bm25.py [CORPUS.jsonl] [--passages 100000] [--queries 1000] [--k 100] [--rounds 5]

The corpus has one JSON object a line with "text"; without one, the words of Python's own documentation are taken. It is
repeated, with three words in ten changed, until there are enough passages. Every side builds in one process and
searches in another, in turn, round after round; peak memory is that of the process, texts included. Medians, and ratios
against bm25s with its corpus, which returns texts as the others do. Needs Linux and the dev dependency group.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import megabytes

SIDES = ("bm25s", "bm25s, row numbers only", "ours", "LangChain")
BASE = SIDES[0]
SLOW = 20  # queries for LangChain, which takes a second for each

Times = dict[str, float]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # set where this runs as a side's process
    parser.add_argument("--phase", choices=("build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        times = run(arguments.side, arguments.phase, arguments.folder, arguments.k)
        print(json.dumps(times | {"memory": megabytes("VmHWM")}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = write_corpus(folder, arguments.corpus, arguments.passages, arguments.queries)
        print(
            f"{platform.machine()}, Python {platform.python_version()}, {arguments.passages} passages of {words:.0f} "
            f"words, {arguments.queries} queries, k={arguments.k}, {arguments.rounds} rounds\n"
        )
        rounds: dict[str, list[Times]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                rounds[side].append({})
                for phase in ("build", "search"):
                    if side != "LangChain" or phase == "build":
                        rounds[side][-1] |= start(side, phase, folder, arguments.k)
        report(rounds)


def start(side: str, phase: str, folder: Path, k: int) -> Times:
    """Run one phase of one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--phase", phase, "--folder", str(folder), "--k", str(k)]
    times: Times = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    memory = times.pop("memory")
    return times | {f"{phase}: peak memory, MB": memory}


def report(rounds: dict[str, list[Times]]) -> None:
    """Print medians, and ratios of medians against the base."""
    rows = list(rounds["ours"][0])
    medians = {
        side: {row: statistics.median(times[row] for times in all_times) for row in rows if row in all_times[0]}
        for side, all_times in rounds.items()
    }
    print("| |" + "".join(f" {side} |" for side in SIDES) + "\n|---|" + "---|" * len(SIDES))
    for row in rows:
        cells = []
        for side in SIDES:
            value, base = medians[side].get(row), medians[BASE].get(row)
            cells.append("" if value is None or base is None else f"{value:.4g} ({value / base:.2f}×)")
        print(f"| {row} | " + " | ".join(cells) + " |")


def write_corpus(folder: Path, corpus: Path | None, passages: int, queries: int) -> float:
    """Write seeded passages and queries, and return how many words a passage has on average."""
    seeded = random.Random(0)
    if corpus is None:
        from pydoc_data.topics import topics

        sources = [" ".join(topics[topic].split()) for topic in sorted(topics)]
        parts = [re.findall(r"\S+", source) for source in sources]
        texts = [part[start : start + 100] for part in parts for start in range(0, len(part), 100)]
    else:
        with corpus.open(encoding="utf-8", newline="\n") as lines:
            texts = [json.loads(line)["text"].split() for line in lines]
    texts = [text for text in texts if len(text) > 8]
    pool = [word for text in texts for word in text]
    written = []
    for number in range(passages):
        text = texts[number % len(texts)]
        written.append([seeded.choice(pool) if seeded.random() < 0.3 else word for word in text])
    (folder / "texts.json").write_text(json.dumps([" ".join(text) for text in written]), encoding="utf-8")
    asked = []
    while len(asked) < queries:
        text = seeded.choice(written)
        place = seeded.randrange(len(text) - 8)
        query = " ".join(text[place : place + 8])
        if re.search(r"\w\w", query):
            asked.append(query)
    (folder / "queries.json").write_text(json.dumps(asked), encoding="utf-8")
    return statistics.mean(map(len, written))


def run(side: str, phase: str, folder: Path, k: int) -> Times:
    """Run one phase of one side and return its times."""
    if phase == "build":
        texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        build: Callable[[list[str], Path], Times] = {"ours": build_ours, "LangChain": run_langchain}.get(
            side, build_bm25s
        )
        return build(texts, folder / side)
    queries = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    return search_ours(queries, folder / side, k) if side == "ours" else search_bm25s(queries, folder / side, k)


def build_ours(texts: list[str], folder: Path) -> Times:
    """Index and save with BM25Index."""
    from retrieve_rerank import BM25Index, Passage

    index = BM25Index(path=folder)
    index.clear()
    index.save()

    def indexed() -> None:
        index.add(Passage(f"p{number}", text) for number, text in enumerate(texts))
        index.retrieve("the first search makes the index ready")

    return {"index, s": timed(indexed), "save, s": timed(index.save)}


def search_ours(queries: list[str], folder: Path, k: int) -> Times:
    """Load and search with BM25Index."""
    import bm25s  # noqa: F401 - imported by all sides before the clock starts
    import Stemmer  # noqa: F401

    from retrieve_rerank import BM25Index

    def load() -> None:
        nonlocal index
        index = BM25Index(path=folder)

    index: Any = None
    times = {"load memory-mapped, s": timed(load)}
    times["query one by one, ms each"] = timed(lambda: [index.retrieve(query, k) for query in queries])
    times["query all at once, ms each"] = timed(lambda: index.retrieve_many(queries, k))
    return per_query(times, len(queries))


def build_bm25s(texts: list[str], folder: Path) -> Times:
    """Index and save with bm25s."""
    import bm25s
    import Stemmer

    retriever = bm25s.BM25()
    corpus = (
        None if "only" in folder.name else [{"id": f"p{number}", "text": text} for number, text in enumerate(texts)]
    )

    def indexed() -> None:
        tokens = bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)
        retriever.index(tokens, show_progress=False)

    return {
        "index, s": timed(indexed),
        "save, s": timed(lambda: retriever.save(folder, corpus=corpus, show_progress=False)),
    }


def search_bm25s(queries: list[str], folder: Path, k: int) -> Times:
    """Load and search with bm25s."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def load() -> None:
        nonlocal retriever
        retriever = bm25s.BM25.load(folder, mmap=True, load_corpus=True, show_progress=False, verbosity=0)

    def search(asked: str | list[str]) -> None:
        tokens = bm25s.tokenize(asked, stopwords="en", stemmer=stemmer, show_progress=False)
        retriever.retrieve(tokens, k=k, show_progress=False)

    retriever: Any = None
    times = {"load memory-mapped, s": timed(load)}
    times["query one by one, ms each"] = timed(lambda: [search(query) for query in queries])
    times["query all at once, ms each"] = timed(lambda: search(queries))
    return per_query(times, len(queries))


def run_langchain(texts: list[str], folder: Path) -> Times:
    """Index and search with langchain-community's retriever, which cannot save."""
    import warnings

    warnings.simplefilter("ignore")
    from langchain_community.retrievers import BM25Retriever

    queries = json.loads((folder.parent / "queries.json").read_text(encoding="utf-8"))[:SLOW]

    def indexed() -> None:
        nonlocal retriever
        retriever = BM25Retriever.from_texts(texts, k=100)

    retriever: Any = None
    times = {"index, s": timed(indexed)}
    times["query one by one, ms each"] = timed(lambda: [retriever.invoke(query) for query in queries])
    return per_query(times, len(queries))


def per_query(times: Times, queries: int) -> Times:
    """Return times with those of all queries as milliseconds for each."""
    return {name: value * 1e3 / queries if "each" in name else value for name, value in times.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
