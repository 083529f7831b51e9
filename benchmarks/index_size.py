"""What do 10,000 to 500,000 passages cost in Chroma, and how many of the true nearest does a search find?

    python benchmarks/index_size.py [--sizes 10000 50000 200000 500000] [--queries 200] [--k 100] [--breadth N]
                                    [--folder DIR] [--json FILE]

A stand-in encoder gives each text a random unit vector of 384 numbers, seeded by the text: independent directions are
the hardest case for a graph search, and no time goes into a model. Each size is built by `ChromaIndex.add` in a process
of its own and searched in another, one `retrieve` after the other; exact search is numpy's, in float32. Memory is that
of the process beyond what it had before the index was opened: peak while building, resident after the searches.
Needs Linux, and about 3 GB of memory and 15 GB of disk for 500,000.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from memory import megabytes
from retrieve_rerank import ChromaIndex, Passage

Vectors = npt.NDArray[np.float32]

SIZES = (10_000, 50_000, 200_000, 500_000)
DIMENSION = 384
CHUNK = 10_000  # passages compared exactly in one go


class RandomEncoder:
    """Gives each text its own random unit vector, always the same."""

    dimension = DIMENSION
    metric = "cosine"
    fingerprint = MappingProxyType({"model": "random unit vectors", "dimension": DIMENSION})

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), 384)."""
        return np.stack([_direction(text) for text in texts]) if texts else np.zeros((0, DIMENSION), np.float32)

    encode_queries = encode_documents


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--breadth", type=int, help="instead of the one that is chosen by size")
    parser.add_argument("--folder", type=Path, help="keep the indexes here, and build none anew that is complete")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--phase", choices=("build", "search"), help=argparse.SUPPRESS)  # set in a process of a size's
    arguments = parser.parse_args()
    if arguments.phase:
        size = arguments.sizes[0]
        if arguments.phase == "build":
            figures = build(arguments.folder, size)
        else:
            figures = search(arguments.folder, size, arguments.queries, arguments.k, arguments.breadth)
        print(json.dumps(figures))
        return
    machine = {
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "chromadb": version("chromadb"),
        "retrieve-rerank": version("retrieve-rerank"),
        "numpy": version("numpy"),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{arguments.queries} queries, k={arguments.k}, breadth {arguments.breadth or 'by size'}\n")
    print("| passages | build | on disk | memory, build | memory, search | first search | p50 | p95 | recall |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for size in arguments.sizes:
            folder = (arguments.folder or Path(name)) / str(size)
            rows.append({"passages": size} | _run("build", folder, size, arguments))
            rows[-1] |= _run("search", folder, size, arguments)
            print(_line(rows[-1], arguments.k), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({"machine": machine, "k": arguments.k, "rows": rows}, indent=1))


def build(folder: Path, size: int) -> dict[str, Any]:
    """Build an index, or keep the one that is there, and return what that took."""
    kept = folder / "built.json"
    if kept.exists():
        return cast("dict[str, Any]", json.loads(kept.read_text()) | {"kept": True})
    before = megabytes("VmRSS")
    start = time.perf_counter()
    with ChromaIndex(RandomEncoder(), path=folder) as index:
        index.add(_passages(size))
        seconds = time.perf_counter() - start
        count = index.count()
    if count != size:
        raise SystemExit(f"{count} passages are stored, {size} were added")
    figures = {
        "build_seconds": seconds,
        "build_cpu_seconds": time.process_time(),
        "disk_mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
        "build_memory_mb": megabytes("VmHWM") - before,
    }
    kept.write_text(json.dumps(figures))
    return figures


def search(folder: Path, size: int, queries: int, k: int, breadth: int | None) -> dict[str, Any]:
    """Search an index and exactly, and return times, memory and recall."""
    encoder = RandomEncoder()
    texts = [f"query {number}" for number in range(queries)]
    vectors = encoder.encode_queries(texts)
    before = megabytes("VmRSS")
    with ChromaIndex(encoder, path=folder, search_breadth=breadth) as index:
        start = time.perf_counter()
        index.retrieve("another query", k=k)
        first = time.perf_counter() - start
        seconds, found = [], []
        for text in texts:
            start = time.perf_counter()
            hits = index.retrieve(text, k=k)
            seconds.append(time.perf_counter() - start)
            found.append({hit.passage.id for hit in hits})
        memory = megabytes("VmRSS") - before
    exact = _exact(vectors, size, k)
    recalls = [len(ours & theirs) / len(theirs) for ours, theirs in zip(found, exact, strict=True)]
    return {
        "first_seconds": first,
        "p50_ms": float(np.percentile(seconds, 50)) * 1e3,
        "p95_ms": float(np.percentile(seconds, 95)) * 1e3,
        "search_memory_mb": memory,
        "recall": float(np.mean(recalls)),
    }


def _exact(queries: Vectors, size: int, k: int) -> list[set[str]]:
    """Return the ids of the true nearest, chunk by chunk of passages."""
    encoder = RandomEncoder()
    ids = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start in range(0, size, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, size))
        part = queries @ encoder.encode_documents([_text(number) for number in numbers]).T
        scores = np.hstack([scores, part])
        ids = np.hstack([ids, np.broadcast_to(numbers, part.shape)])
        best = np.argsort(-scores, axis=1)[:, :k]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return [set(map(str, row)) for row in ids]


def _passages(size: int) -> Iterator[Passage]:
    for number in range(size):
        yield Passage(str(number), _text(number), {"number": number})


def _text(number: int) -> str:
    return f"passage {number}"


def _direction(text: str) -> Vectors:
    seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    vector = np.random.Generator(np.random.SFC64(seed)).standard_normal(DIMENSION, np.float32)
    return cast(Vectors, vector / np.linalg.norm(vector))


def _run(phase: str, folder: Path, size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--phase", phase, "--folder", str(folder), "--sizes", str(size)]
    command += ["--queries", str(arguments.queries), "--k", str(arguments.k)]
    command += ["--breadth", str(arguments.breadth)] if arguments.breadth else []
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def _line(row: dict[str, Any], k: int) -> str:
    return (
        f"| {row['passages']:,} | {row['build_seconds']:.0f} s | {row['disk_mb']:,.0f} MB | "
        f"{row['build_memory_mb']:,.0f} MB | {row['search_memory_mb']:,.0f} MB | {row['first_seconds']:.2f} s | "
        f"{row['p50_ms']:.1f} ms | {row['p95_ms']:.1f} ms | {row['recall']:.3f} at {k} |"
    )


if __name__ == "__main__":
    main()
