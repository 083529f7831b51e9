"""Ours beside the stock stacks: re-ranking, indexing and the whole query, in turn, same weights, same machine.

    python benchmarks/peers.py CORPUS.jsonl QUERIES.jsonl [--rounds 5] [--only rerank,query,index,concurrent]
        [--json FILE] [--table docs/pages/benchmarks.md]

The files have one JSON object a line with "text". The stock sides are what their documentation shows: LangChain's
`HuggingFaceEmbeddings` + `langchain-chroma` + `CrossEncoderReranker(HuggingFaceCrossEncoder)`, LlamaIndex's
`SentenceTransformerRerank`, sentence-transformers itself, and `rerankers` where it is installed. FlashRank runs models
of its own only, which come from a hub, so it cannot have the same weights. Sides take turns within a round, each on the
same texts; the first round warms up. Indexing runs in a fresh process each time, which tells its peak memory. Run it
on a machine that does nothing else. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from common import add_model_options, models, write_table
from memory import megabytes
from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Passage
from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    ChromaVectorStore,
    CrossEncoderReranker,
    RetrieveRerankRetriever,
)

LANGCHAIN, LLAMA_INDEX = "LangChain's stock stack", "LlamaIndex's stock re-ranker"
OURS, EXACT, TORCH = "ours", "ours, float32", "ours, by torch"
Sides = dict[str, Callable[[], object]]


def texts_of(file: Path, count: int) -> list[str]:
    """Return the first texts of a file of JSON lines that are not empty."""
    with file.open(encoding="utf-8", newline="\n") as lines:
        found = (json.loads(line)["text"] for line in lines if line.strip())
        return list(islice((text for text in found if text.strip()), count))


def chunks(texts: Sequence[str], words: int, count: int) -> list[str]:
    """Return texts cut into pieces of equally many words, as a splitter makes them; a shorter rest is left out."""
    found: list[str] = []
    for text in texts:
        split = text.split()
        found += [" ".join(split[start : start + words]) for start in range(0, len(split) - words + 1, words)]
    return found[:count]


def stock_reranker(model: str, top_n: int = 5) -> Any:
    """Return LangChain's own re-ranker."""
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker as Stock
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    return Stock(model=HuggingFaceCrossEncoder(model_name=model), top_n=top_n)


def rerankers(model: str, query: str, texts: list[str]) -> Sides:
    """Return each side's call that re-ranks `texts` and keeps five."""
    import sentence_transformers
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    documents = [Document(text) for text in texts]
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts]
    langchain, llama_index = stock_reranker(model), SentenceTransformerRerank(model=model, top_n=5)
    plain = sentence_transformers.CrossEncoder(model)
    ours, exact, torch_alone = (
        CrossEncoderReranker(model=model),
        CrossEncoderReranker(model=CrossEncoder(model, precision="float32")),
        CrossEncoderReranker(model=CrossEncoder(model, backend="torch")),
    )
    sides: Sides = {
        LANGCHAIN: lambda: langchain.compress_documents(documents, query),
        LLAMA_INDEX: lambda: llama_index.postprocess_nodes(nodes, query_str=query),
        "sentence-transformers": lambda: plain.rank(query, texts, top_k=5),
        EXACT: lambda: exact.compress_documents(documents, query),
        TORCH: lambda: torch_alone.compress_documents(documents, query),
        OURS: lambda: ours.compress_documents(documents, query),
    }
    if importlib.util.find_spec("rerankers"):
        from rerankers import Reranker

        other = Reranker(model, model_type="cross-encoder", device="cpu", verbose=0)
        sides["rerankers"] = lambda: other.rank(query, texts)
    else:
        print("left out: rerankers is not installed", file=sys.stderr)
    return sides


def pipelines(bi_encoder: str, model: str, texts: list[str], query: str, folder: Path) -> Sides:
    """Return each side's whole query: find 100, re-rank 100, keep 5."""
    from langchain_chroma import Chroma
    from langchain_classic.retrievers import ContextualCompressionRetriever
    from langchain_community.embeddings import HuggingFaceEmbeddings

    stock = Chroma(embedding_function=HuggingFaceEmbeddings(model_name=bi_encoder), persist_directory=str(folder / "s"))
    store = ChromaVectorStore(
        embedding_function=BiEncoderEmbeddings(model=bi_encoder), persist_directory=str(folder / "o")
    )
    for start in range(0, len(texts), 1000):
        stock.add_texts(texts[start : start + 1000])
    store.add_texts(texts)
    compression = ContextualCompressionRetriever(
        base_compressor=stock_reranker(model), base_retriever=stock.as_retriever(search_kwargs={"k": 100})
    )
    ours = RetrieveRerankRetriever(
        base_retriever=store, reranker=CrossEncoderReranker(model=model), fetch_k=100, top_n=5
    )
    return {
        LANGCHAIN: lambda: compression.invoke(query),
        OURS: lambda: ours.invoke(query),
    }


def interleave(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side's calls, one a round."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for call in sides.values():
        call()
    for _ in range(rounds):
        for side, call in sides.items():
            start = time.perf_counter()
            call()
            seconds[side].append(time.perf_counter() - start)
    return seconds


def matrix_limit(dtype: torch.dtype, rows: int = 2048, width: int = 384, inner: int = 1536) -> float:
    """Return the measured operations a second of matrix products of this network's shapes."""
    left, right = torch.randn(rows, width).to(dtype), torch.randn(width, inner).to(dtype)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(20):
            left @ right
        best = max(best, 20 * 2 * rows * width * inner / (time.perf_counter() - start))
    return best


def linear_operations(model: str, query: str, texts: list[str]) -> float:
    """Return the operations in the linear layers of the network for these pairs, without padding.

    All that the network has: ours leaves out what the last layer makes of tokens that nobody reads.
    """
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    tokens = sum(
        len(ids) for ids in tokenizer([query] * len(texts), texts, truncation=True, max_length=512)["input_ids"]
    )
    width, inner = config.hidden_size, config.intermediate_size
    return float(2 * tokens * config.num_hidden_layers * (4 * width * width + 2 * width * inner))


async def concurrent(
    model: str, query: str, texts: list[str], rounds: int, calls: int = 32, each: int = 10
) -> tuple[dict[str, list[float]], float, float]:
    """Return seconds of calls in turn, at once and from threads; the longest hold of the loop; what logits moved by."""
    from langchain_core.documents import Document

    reranker = CrossEncoderReranker(model=model)
    jobs = [(f"{query} {n}", [Document(text) for text in texts[n : n + each]]) for n in range(calls)]
    await reranker.acompress_documents(jobs[0][1], query)
    held = 0.0

    async def watch() -> None:
        nonlocal held
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            held = max(held, time.perf_counter() - start - 0.001)

    async def in_turn() -> list[Any]:
        return [await reranker.acompress_documents(documents, question) for question, documents in jobs]

    async def at_once() -> list[Any]:
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        found = await asyncio.gather(
            *(reranker.acompress_documents(documents, question) for question, documents in jobs)
        )
        watching.cancel()
        return found

    async def threads() -> list[Any]:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: reranker.compress_documents(job[1], job[0]), jobs))

    seconds: dict[str, list[float]] = {}
    logits: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for side in (in_turn, at_once, threads):
            start = time.perf_counter()
            found = await side()
            seconds.setdefault(side.__name__, []).append(time.perf_counter() - start)
            logits[side.__name__] = [
                {document.page_content: document.metadata["rerank_logit"] for document in kept} for kept in found
            ]
    moved = max(
        abs(logit - other[text])
        for side in ("at_once", "threads")
        for alone, other in zip(logits["in_turn"], logits[side], strict=True)
        for text, logit in alone.items()
        if text in other
    )
    return seconds, held, moved


def index_here(side: str, bi_encoder: str, texts: list[str], folder: str) -> None:
    """Index texts in this process and print seconds and peak memory."""
    if side != LANGCHAIN:
        index = ChromaIndex(BiEncoder(bi_encoder, backend="auto" if side == OURS else "torch"), path=folder)
        index.encoder.dimension  # noqa: B018 - loads the model, as making HuggingFaceEmbeddings does
        start = time.perf_counter()
        index.add(Passage(str(number), text) for number, text in enumerate(texts))
    else:
        from langchain_chroma import Chroma
        from langchain_community.embeddings import HuggingFaceEmbeddings

        store = Chroma(embedding_function=HuggingFaceEmbeddings(model_name=bi_encoder), persist_directory=folder)
        start = time.perf_counter()
        for first in range(0, len(texts), 1000):  # it does not batch, and Chroma takes a few thousand at most
            store.add_texts(texts[first : first + 1000])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "MB": megabytes("VmHWM")}))


def index(bi_encoder: str, corpus: Path, passages: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return seconds and peak memory of each side's indexing, a fresh process each time."""
    found: dict[str, list[dict[str, float]]] = {LANGCHAIN: [], TORCH: [], OURS: []}
    for _ in range(rounds):
        for side, results in found.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-W", "ignore", __file__, str(corpus), "-", "--index-side", side]
                command += ["--folder", folder, "--passages", str(passages), "--bi-encoder", bi_encoder]
                answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results.append(json.loads(answer.splitlines()[-1]))
    return found


def row(task: str, side: str, values: Sequence[float], base: Sequence[float], more: str = "") -> str:
    """Return one row of the table."""
    middle = statistics.median(values)
    ratio = statistics.median(base) / middle
    return f"| {task} | {side} | {middle:.2f} | {min(values):.2f}–{max(values):.2f} | {ratio:.2f}× | {more} |"


def summary(raw: dict[str, Any]) -> str:
    """Return the table of the docs: a row a task, a column a side, seconds and how many times LangChain's speed."""
    seconds = {
        task: {side: [run["seconds"] if isinstance(run, dict) else run for run in runs] for side, runs in sides.items()}
        for task, sides in raw.items()
        if LANGCHAIN in sides
    }
    sides = list(dict.fromkeys(side for by_side in seconds.values() for side in by_side))
    lines = [f"| seconds | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for task, by_side in seconds.items():
        middle = {side: statistics.median(values) for side, values in by_side.items()}
        cells = [
            f"{middle[side]:.2f} ({middle[LANGCHAIN] / middle[side]:.2f}×)" if side in middle else "" for side in sides
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(chosen: Sequence[str], arguments: argparse.Namespace, texts: list[str]) -> Iterator[tuple[str, Any]]:
    """Print the rows of each chosen task, and yield what was measured."""
    bi_encoder, model, rounds = arguments.bi_encoder, arguments.cross_encoder, arguments.rounds
    query, uneven, even = texts_of(arguments.queries, 1)[0], texts[:100], chunks(texts, 110, 100)
    if "rerank" in chosen:
        exact = matrix_limit(torch.float32)
        with CrossEncoder(model) as auto:
            limit = matrix_limit(getattr(torch, auto.precision))
            print(f"auto is {auto.precision}; matrix products: {limit / 1e9:.0f} GFLOP/s in it", file=sys.stderr)
        for name, some in {"re-rank 100, uneven": uneven, "re-rank 100, even chunks": even}.items():
            seconds = interleave(rerankers(model, query, some), rounds)
            yield name, seconds
            work = linear_operations(model, query, some)
            for side, values in seconds.items():
                share = work / statistics.median(values) / (limit if side in (OURS, TORCH) else exact)
                note = f"{share:.0%} of the matrix-product limit"
                print(row(name, side, values, seconds[LANGCHAIN], note), flush=True)
    if "query" in chosen:
        some = chunks(texts, 110, 1000)
        name = f"find 100 of {len(some)}, re-rank, keep 5"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            seconds = interleave(pipelines(bi_encoder, model, some, query, Path(folder)), rounds)
        yield name, seconds
        for side, values in seconds.items():
            print(row(name, side, values, seconds[LANGCHAIN]), flush=True)
    if "concurrent" in chosen:
        name = "32 calls of 10 candidates"
        seconds, held, moved = asyncio.run(concurrent(model, query, even, rounds))
        yield name, {"seconds": seconds, "loop held": held, "logits moved": moved}
        notes = {
            "in_turn": "the base of the two ratios below",
            "at_once": f"event loop held {held * 1000:.0f} ms at most; logits moved by {moved:.1e} at most",
        }
        for side, values in seconds.items():
            print(row(name, f"ours, {side.replace('_', ' ')}", values, seconds["in_turn"], notes.get(side, "")))
    if "index" in chosen:
        name, indexed = (
            f"index {len(texts)}",
            index(bi_encoder, arguments.corpus, arguments.passages, max(1, rounds // 2)),
        )
        yield name, indexed
        stock = [result["seconds"] for result in indexed[LANGCHAIN]]
        for side, results in indexed.items():
            memory = f"peak {statistics.median(result['MB'] for result in results):.0f} MB"
            print(row(name, side, [result["seconds"] for result in results], stock, memory), flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=2000, help="passages to index")
    parser.add_argument("--only", default="rerank,query,concurrent,index")
    parser.add_argument("--json", type=Path, help="file for the raw seconds")
    parser.add_argument("--table", type=Path, help="Markdown file whose table of seconds is written anew")
    add_model_options(parser)
    parser.add_argument("--index-side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    texts = texts_of(arguments.corpus, arguments.passages)
    if arguments.index_side:
        index_here(arguments.index_side, arguments.bi_encoder, texts, arguments.folder)
        return
    arguments.bi_encoder, arguments.cross_encoder = models(arguments)
    packages = ("sentence-transformers", "langchain-chroma", "chromadb")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}"
    print(f"{machine}; {arguments.rounds} rounds\n")
    print("| task | side | median s | min–max s | against LangChain's | |\n|---|---|---|---|---|---|")
    raw = dict(measure(arguments.only.split(","), arguments, texts))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": raw}, indent=1))
    if arguments.table:
        write_table(arguments.table, Path(__file__).name, summary(raw))


if __name__ == "__main__":
    main()
