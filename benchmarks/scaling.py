"""What does a passage cost, in bytes and in seconds? Measures the inputs of SCALING.md and works its tables out.

    python benchmarks/scaling.py [--index-size FILE] [--core-hour PRICE] [--gpu-hour PRICE] [--write]

Each input is measured in a process of its own, on one thread. FILE is what `benchmarks/index_size.py --json FILE`
wrote; without it that is run on two small sizes. Prices are yours: they are multiplied, and nothing else. `--write`
puts the tables into SCALING.md, between its markers; otherwise they are printed. `--quick` takes sizes that show that
it runs, and nothing else. Needs Linux and the extras demo and hybrid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieve_rerank import BiEncoder, BM25Index, ChromaIndex, CrossEncoder, Passage
from retrieve_rerank.demo import demo_models

HERE = Path(__file__).parent
GUIDE = HERE / "SCALING.md"
WORDS = 100  # in a passage
FETCH = (20, 50, 100)
SCALES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
# The documentation of sentence-transformers (commit cad2119), on a V100: queries a second of multi-qa-MiniLM-L6, and
# passages a second of ms-marco-MiniLM-L6-v2: the sizes of the demo models. Not measured here.
PUBLISHED = {"queries": 18_000, "pairs": 1_800}

Figures = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    encode: int = 1_000
    pairs: int = 400
    words: tuple[int, int] = (5_000, 20_000)
    texts: int = 5_000
    index: tuple[int, int] = (10_000, 40_000)


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Yield passages of 100 words, as unevenly frequent as words are, of a vocabulary of 50,000."""
    made = np.random.default_rng(seed)
    letters = random.Random(seed)
    vocabulary = np.array(
        ["".join(letters.choices("etaoinshrdlucmfwyp", k=letters.randint(2, 9))) for _ in range(50_000)]
    )
    bounds = np.cumsum(1.0 / np.arange(1, len(vocabulary) + 1))
    for _ in range(count):
        yield " ".join(vocabulary[np.searchsorted(bounds, made.random(WORDS) * bounds[-1])])


def models() -> tuple[str, str]:
    """Return the folders of the demo models: bi-encoder, cross-encoder."""
    bi_encoder, cross_encoder = demo_models()
    return str(bi_encoder), str(cross_encoder)


def english(count: int) -> list[str]:
    """Return passages of 100 words of English, which a model's tokenizer knows: Python's own help texts."""
    import pydoc_data.topics

    words = " ".join(pydoc_data.topics.topics.values()).split()
    return [" ".join(words[start % len(words) :][:WORDS]) for start in range(0, count * 37, 37)]


def encode(sizes: Sizes) -> Figures:
    """Return passages a second, and what one core makes of them."""
    model = BiEncoder(models()[0])
    some = english(sizes.encode)
    model.encode_documents(some[:64])  # loads it, and warms it up
    start = time.perf_counter()
    model.encode_documents(some)
    seconds = time.perf_counter() - start
    return {"passages_per_second": len(some) / seconds, "dimension": model.dimension}


def rank(sizes: Sizes) -> Figures:
    """Return pairs a second."""
    model = CrossEncoder(models()[1])
    some = english(sizes.pairs)
    model.score("which statement ends a loop", some[:64])
    start = time.perf_counter()
    model.score("which statement begins a loop", some)
    return {"pairs_per_second": len(some) / (time.perf_counter() - start)}


def words(sizes: Sizes) -> Figures:
    """Return what a passage adds to a BM25 index: bytes on disk, and of memory when it is searched."""
    found = []
    for count in sizes.words:
        with tempfile.TemporaryDirectory() as folder:
            found.append(_in_process("_build_words", folder, str(count)) | _in_process("_search_words", folder))
    added = sizes.words[1] - sizes.words[0]
    return {name: (found[1][name] - found[0][name]) / added for name in ("disk", "memory")}


def _build_words(folder: str, count: str) -> Figures:
    with BM25Index(path=folder) as index:
        index.add(Passage(str(number), text) for number, text in enumerate(texts(int(count))))
    return {"disk": _disk(Path(folder))}


def _search_words(folder: str) -> Figures:
    before = _resident()
    with BM25Index(path=folder) as index:
        for text in texts(200, seed=1):
            index.retrieve(text[:40], k=100)
        return {"memory": _resident() - before}


def stored_text(sizes: Sizes) -> Figures:
    """Return how many bytes Chroma stores for a byte of text, index of its substrings included."""
    empty, full = (_in_process("_stored", str(sizes.texts), kind) for kind in ("empty", "full"))
    size = sum(len(text.encode()) for text in texts(sizes.texts))
    return {"per_byte": (full["disk"] - empty["disk"]) / size, "text": size / sizes.texts}


def _stored(count: str, kind: str) -> Figures:
    from retrieve_rerank.testing import LetterEncoder

    given = texts(int(count)) if kind == "full" else ("" for _ in range(int(count)))
    with tempfile.TemporaryDirectory() as folder:
        with ChromaIndex(LetterEncoder(), path=folder) as index:
            index.add(Passage(str(number), text) for number, text in enumerate(given))
        return {"disk": _disk(Path(folder))}


def index_size(sizes: Sizes, file: Path | None) -> Figures:
    """Return what a passage with next to no text adds to a Chroma index: bytes, seconds of building."""
    with tempfile.TemporaryDirectory() as folder:
        if file is None:
            file = Path(folder) / "sizes.json"
            command = [sys.executable, str(HERE / "index_size.py"), "--queries", "20", "--json", str(file), "--sizes"]
            subprocess.run([*command, *map(str, sizes.index)], check=True, stdout=subprocess.DEVNULL)
        rows = json.loads(file.read_text())["rows"]
    small, large = rows[0], rows[-1]
    added = large["passages"] - small["passages"]
    slope = {name: (large[name] - small[name]) / added for name in ("disk_mb", "search_memory_mb", "build_seconds")}
    return {
        "disk": slope["disk_mb"] * 1e6,
        "memory": slope["search_memory_mb"] * 1e6,
        "build_seconds": slope["build_seconds"],
        "smallest": small["passages"],
        "largest": large["passages"],
    }


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index-size", type=Path, help="what benchmarks/index_size.py --json wrote")
    parser.add_argument("--core-hour", type=float, default=0.05, help="price of a core for an hour")
    parser.add_argument("--gpu-hour", type=float, default=1.0, help="price of a GPU for an hour")
    parser.add_argument("--write", action="store_true", help="put the tables into SCALING.md")
    parser.add_argument("--quick", action="store_true", help="sizes that show that it runs")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # set in a process of its own
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # a passage in a hundred is longer than the models read
    sizes = Sizes(64, 32, (200, 600), 200, (500, 1_500)) if arguments.quick else Sizes()
    if arguments.part:
        name, *rest = arguments.part
        part: Callable[..., Figures] = globals()[name]
        print(json.dumps(part(*rest) if name.startswith("_") else part(sizes)))
        return
    quick = ["--quick"] if arguments.quick else []
    measured = {name: _in_process(name, options=quick) for name in ("encode", "rank")}
    measured |= {"words": words(sizes), "stored_text": stored_text(sizes)}
    measured |= {"index_size": index_size(sizes, arguments.index_size)}
    tables = {
        "inputs": inputs(measured),
        "bytes": per_passage(measured),
        "scales": scales(measured),
        "reranking": reranking(measured, arguments.core_hour, arguments.gpu_hour),
    }
    if not arguments.write:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in tables.items()))
        return
    page = GUIDE.read_text(encoding="utf-8")
    for name, table in tables.items():
        marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if not re.search(marked, page, re.DOTALL):
            raise SystemExit(f"{GUIDE} has no markers for {name!r}")
        page = re.sub(marked, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", page, flags=re.DOTALL)
    GUIDE.write_text(page, encoding="utf-8")


def inputs(measured: Mapping[str, Figures]) -> str:
    """Return the table of what was measured, where."""
    sizes = measured["index_size"]
    span = f"{sizes['smallest']:,.0f} and {sizes['largest']:,.0f} passages"
    rows = [
        ("E", "passages of 100 words encoded a second, one core", f"{measured['encode']['passages_per_second']:.0f}"),
        ("R", "pairs of a question and such a passage scored a second, one core", f"{pairs(measured):.0f}"),
        ("d", "numbers in a vector", f"{measured['encode']['dimension']:.0f}"),
        ("t", "bytes of text in a passage", f"{measured['stored_text']['text']:.0f}"),
        ("s", "bytes on disk for a byte of text in Chroma", f"{measured['stored_text']['per_byte']:.1f}"),
        ("v", f"bytes on disk for a vector in Chroma, between {span}", f"{sizes['disk']:.0f}"),
        ("m", f"bytes of memory for a vector in Chroma, between {span}", f"{sizes['memory']:.0f}"),
        ("b", "seconds to store a vector in Chroma, one writer", f"{sizes['build_seconds']:.5f}"),
        ("w", "bytes on disk for a passage in BM25", f"{measured['words']['disk']:.0f}"),
        ("u", "bytes of memory for a passage in BM25, searched", f"{measured['words']['memory']:.0f}"),
    ]
    machine = f"{_processor()}, {os.cpu_count()} cores, Linux, Python {platform.python_version()}; one thread"
    return _table(("", "measured", "value"), rows) + f"\n\nOn {machine}."


def per_passage(measured: Mapping[str, Figures]) -> str:
    """Return where the bytes of a passage go."""
    found, text = measured["index_size"], measured["stored_text"]
    vector = 4 * measured["encode"]["dimension"]
    links = 4 * (2 * 16 + 1)  # HNSW: twice as many neighbours on the lowest level as elsewhere, and their number
    rows = [
        ("vector", "4 · d", f"{vector:.0f}", f"{vector:.0f}"),
        ("links of the HNSW graph, lowest level", "4 · (2 · 16 + 1)", f"{links}", f"{links}"),
        (
            "ids, metadata and room to grow",
            "m − both, v − both",
            *(f"{found[x] - vector - links:.0f}" for x in _PLACES),
        ),
        ("text and the index of its substrings", "s · t", "0", f"{text['per_byte'] * text['text']:.0f}"),
        ("together", "m, v + s · t", *(f"{_bytes(measured, place):.0f}" for place in _PLACES)),
    ]
    return _table(("a passage in Chroma", "from", "bytes of memory", "bytes on disk"), rows)


def scales(measured: Mapping[str, Figures]) -> str:
    """Return what collections of several sizes need."""
    rows = []
    for count in SCALES:
        core_hours = count / measured["encode"]["passages_per_second"] / 3_600
        rows.append(
            (
                f"{count:,}",
                _size(count * _bytes(measured, "memory")),
                _size(count * _bytes(measured, "disk")),
                _size(count * measured["words"]["memory"]),
                _time(core_hours * 3_600),
                _time(core_hours * 3_600 / 64),
                _time(count * measured["index_size"]["build_seconds"]),
                _time(count / PUBLISHED["queries"]),
            )
        )
    names = (
        *("passages", "Chroma, memory (n · m)", "Chroma, disk (n · (v + s · t))", "BM25, memory (n · u)"),
        *("encoding, one core (n / E)", "encoding, 64 cores", "storing, one writer (n · b)"),
        "encoding, one V100, at the published rate for queries, not measured: at least",
    )
    return _table(names, rows)


def reranking(measured: Mapping[str, Figures], core_hour: float, gpu_hour: float) -> str:
    """Return what re-ranking costs a thousand questions."""
    rows = []
    for fetch in FETCH:
        seconds, gpu = 1_000 * fetch / pairs(measured), 1_000 * fetch / PUBLISHED["pairs"]
        rows.append(
            (
                f"{fetch}",
                f"{seconds:,.0f}",
                f"{seconds / 3_600 * core_hour:.3f}",
                f"{1 / (seconds / 1_000):.1f}",
                f"{gpu:,.0f}",
                f"{gpu / 3_600 * gpu_hour:.3f}",
            )
        )
    names = (
        *("candidates f", "core-seconds (1,000 · f / R)", f"at {core_hour:g} a core-hour"),
        *(
            "questions a second, one core (R / f)",
            "V100-seconds (1,000 · f / 1,800), published, not measured",
            f"at {gpu_hour:g} a GPU-hour",
        ),
    )
    return _table(names, rows)


_PLACES = ("memory", "disk")


def pairs(measured: Mapping[str, Figures]) -> float:
    """Return pairs a second, one core."""
    return measured["rank"]["pairs_per_second"]


def _bytes(measured: Mapping[str, Figures], place: str) -> float:
    text = measured["stored_text"]
    return measured["index_size"][place] + (text["per_byte"] * text["text"] if place == "disk" else 0.0)


def _in_process(name: str, *arguments: str, options: list[str] | None = None) -> Figures:
    """Measure one part in a process of its own, on one thread."""
    command = [sys.executable, __file__, *(options or []), "--part", name, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    figures: Figures = json.loads(printed.strip().splitlines()[-1])
    return figures


def _table(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in (names, *rows)]
    return "\n".join([lines[0], "|---" * len(names) + "|", *lines[1:]])


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1_000:
            return f"{number:.3g} {unit}"
        number /= 1_000
    return f"{number:,.3g} TB" if number < 1_000 else f"{number:,.0f} TB"


def _time(seconds: float) -> str:
    for unit, length, least in (("days", 86_400, 2), ("h", 3_600, 2), ("min", 60, 2), ("s", 1, 0)):
        if seconds >= least * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.2g} {unit}"
    raise ValueError(seconds)


def _resident() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return float(line.split()[1]) * 1024


def _disk(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()


if __name__ == "__main__":
    main()
