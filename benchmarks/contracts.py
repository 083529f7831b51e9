"""Who keeps the contracts of `retrieve_rerank.testing`? Our components, and LangChain's and LlamaIndex's stock ones.

    python benchmarks/contracts.py [--group re-rankers|retrievers|stores] [--write]

Prints Markdown tables: a row a check, a column a component; --write puts them into CONTRACTS.md beside this file.
Re-rankers that take a model are given a real, tiny one whose network answers logits of the check's choosing, so that
their whole stack runs. Needs the dev dependency group, no network, and a minute.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import platform
import re
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the tiny model and our own components' contracts are the tests'

warnings.simplefilter("ignore")

from langchain_chroma import Chroma  # noqa: E402 - quietly
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever  # noqa: E402
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker  # noqa: E402
from langchain_community.cross_encoders import HuggingFaceCrossEncoder  # noqa: E402
from langchain_community.retrievers import BM25Retriever  # noqa: E402
from langchain_core.vectorstores import InMemoryVectorStore  # noqa: E402
from llama_index.core import VectorStoreIndex  # noqa: E402
from llama_index.core.llms import MockLLM  # noqa: E402
from llama_index.core.postprocessor import SentenceTransformerRerank as CoreRerank  # noqa: E402
from llama_index.core.retrievers import QueryFusionRetriever  # noqa: E402
from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank  # noqa: E402

from retrieve_rerank.testing import (  # noqa: E402
    Answer,
    EncoderEmbedding,
    EncoderEmbeddings,
    LangChainRerankerContract,
    LangChainRetrieverContract,
    LangChainVectorStoreContract,
    LlamaIndexRerankerContract,
    LlamaIndexRetrieverContract,
    ScorerCrossEncoder,
    run_contract,
)
from tests.contracts import test_core, test_langchain, test_llama_index, test_remote  # noqa: E402
from tests.contracts.lookup import look_up, tiny_path  # noqa: E402
from tests.langchain.stubs import ListRetriever  # noqa: E402

REPORT = Path(__file__).parent / "CONTRACTS.md"
_LONGEST = 110
_MANY = 100


class StockReranker(LangChainRerankerContract):
    """LangChain's re-ranker, given scores as they are."""

    has_threshold = False

    def make(self, scorer, *, top_n=None, score_threshold=None):  # noqa: ANN001, ANN201 - as the contract's
        return CrossEncoderReranker(model=ScorerCrossEncoder(scorer), top_n=_MANY if top_n is None else top_n)


class StockRerankerAndModel(StockReranker):
    """The same with the cross-encoder class that its guide gives."""

    can_miscount = False

    def make(self, scorer, *, top_n=None, score_threshold=None):  # noqa: ANN001, ANN201
        model = HuggingFaceCrossEncoder(model_name=tiny_path())
        look_up(model.client, scorer)
        return CrossEncoderReranker(model=model, top_n=_MANY if top_n is None else top_n)

    def make_real(self):  # noqa: ANN201
        return CrossEncoderReranker(model=HuggingFaceCrossEncoder(model_name=tiny_path()), top_n=_MANY)


class StockCompression(StockRerankerAndModel):
    """The retriever around it; its base retriever finds what is given."""

    def call(self, component, query, inputs, **options):  # noqa: ANN001, ANN003, ANN201
        return self._around(component, inputs).invoke(query)

    async def acall(self, component, query, inputs, **options):  # noqa: ANN001, ANN003, ANN201
        return await self._around(component, inputs).ainvoke(query)

    def _around(self, component: Any, inputs: list[Any]) -> ContextualCompressionRetriever:
        base = ListRetriever(documents=inputs, k=_MANY)
        return ContextualCompressionRetriever(base_compressor=component, base_retriever=base)


class StockRerank(LlamaIndexRerankerContract):
    """LlamaIndex's re-ranker, from its package."""

    has_threshold = False
    can_miscount = False
    kind: Callable[..., Any] = SentenceTransformerRerank

    def make(self, scorer, *, top_n=None, score_threshold=None):  # noqa: ANN001, ANN201
        made = type(self).kind(model=tiny_path(), top_n=_MANY if top_n is None else top_n, device="cpu")
        look_up(made._model, scorer)  # noqa: SLF001 - there is no other way to its network
        return made

    def make_real(self):  # noqa: ANN201
        return type(self).kind(model=tiny_path(), top_n=_MANY, device="cpu")


class StockRerankKeepingScores(StockRerank):
    """The same, told to keep the retrieval score."""

    kind = partial(SentenceTransformerRerank, keep_retrieval_score=True)

    def read(self, outputs: Sequence[Any]) -> list[Answer]:
        """Leave out the key that was asked for."""
        return [
            replace(answer, metadata={key: answer.metadata[key] for key in answer.metadata if key != "retrieval_score"})
            for answer in super().read(outputs)
        ]


class StockCoreRerank(StockRerank):
    """The older one that llama-index-core still has."""

    kind = CoreRerank


def _chroma(encoder: Any, path: str | None = None) -> Chroma:
    space = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}[encoder.metric]
    name = "passages" if path else f"c{uuid.uuid4().hex}"  # in memory, all of a process share one client
    return Chroma(
        name,
        EncoderEmbeddings(encoder),
        persist_directory=path,
        collection_configuration={"hnsw": {"space": space}},
    )


class StockChromaRetriever(LangChainRetrieverContract):
    """langchain-chroma's store as a retriever."""

    def make(self, passages, k, encoder):  # noqa: ANN001, ANN201
        store = _chroma(encoder)
        if passages:
            store.add_documents(self.documents(passages))
        return store.as_retriever(search_kwargs={"k": k})


class StockBM25(LangChainRetrieverContract):
    """langchain-community's BM25."""

    def make(self, passages, k, encoder):  # noqa: ANN001, ANN201
        return BM25Retriever.from_documents(self.documents(passages), k=k)

    def make_kept(self, passages, k, encoder, folder):  # noqa: ANN001, ANN201
        return self.make(passages, k, encoder)  # in memory it can be pickled, too


class StockEnsemble(LangChainRetrieverContract):
    """LangChain's hybrid of the two."""

    def make(self, passages, k, encoder):  # noqa: ANN001, ANN201
        return EnsembleRetriever(
            retrievers=[StockChromaRetriever().make(passages, k, encoder), StockBM25().make(passages, k, encoder)]
        )


class StockIndexRetriever(LlamaIndexRetrieverContract):
    """LlamaIndex's retriever over the vector store that it has itself."""

    def make(self, passages, k, encoder):  # noqa: ANN001, ANN201
        index = VectorStoreIndex(self.nodes(passages, encoder), embed_model=EncoderEmbedding(encoder))
        return index.as_retriever(similarity_top_k=k)

    def make_kept(self, passages, k, encoder, folder):  # noqa: ANN001, ANN201
        return self.make(passages, k, encoder)  # in memory it can be pickled, too


class StockFusion(LlamaIndexRetrieverContract):
    """LlamaIndex's fusion, of that retriever with itself."""

    def make(self, passages, k, encoder):  # noqa: ANN001, ANN201
        one = StockIndexRetriever().make(passages, k, encoder)
        return QueryFusionRetriever([one, one], llm=MockLLM(), num_queries=1, similarity_top_k=k, use_async=False)

    def make_kept(self, passages, k, encoder, folder):  # noqa: ANN001, ANN201
        return self.make(passages, k, encoder)  # in memory it can be pickled, too


class StockChroma(LangChainVectorStoreContract):
    """langchain-chroma, told its space by the encoder's metric."""

    def make(self, encoder, path=None):  # noqa: ANN001, ANN201
        return _chroma(encoder, path)

    def count(self, store: Any) -> int:
        return len(store.get()["ids"])


class StockMemory(LangChainVectorStoreContract):
    """langchain-core's store in memory."""

    is_persistent = False
    metrics = ("cosine",)

    def make(self, encoder, path=None):  # noqa: ANN001, ANN201
        return InMemoryVectorStore(EncoderEmbeddings(encoder))

    def count(self, store: Any) -> int:
        return len(store.store)

    def search(self, store: Any, query: str, k: int, where: dict[str, Any] | None = None) -> list[Answer]:
        """Take its similarities: it has no relevance; its filter is a function."""
        wanted = None if where is None else lambda document: where.items() <= document.metadata.items()
        return [
            Answer(document.id, document.page_content, document.metadata, score)
            for document, score in store.similarity_search_with_score(query, k, filter=wanted)
        ]

    async def asearch(self, store: Any, query: str, k: int) -> list[Answer]:
        """As `search`."""
        return [
            Answer(document.id, document.page_content, document.metadata, score)
            for document, score in await store.asimilarity_search_with_score(query, k)
        ]


OURS: dict[str, dict[str, type]] = {
    "re-rankers": {
        "`CrossEncoder`": test_core.TestCrossEncoder,
        "`RetrieveRerank`": test_core.TestRetrieveRerank,
        "LangChain `CrossEncoderReranker`": test_langchain.TestCrossEncoderReranker,
        "LangChain `RetrieveRerankRetriever`": test_langchain.TestRetrieveRerankRetriever,
        "LlamaIndex `CrossEncoderRerank`": test_llama_index.TestCrossEncoderRerank,
        "LlamaIndex `RetrieveRerankRetriever`": test_llama_index.TestRetrieveRerankRetriever,
        "`CrossEncoder` at Text Embeddings Inference": test_remote.TestTextEmbeddingsInference,
        "`CrossEncoder` at vLLM": test_remote.TestVllm,
        "LangChain `CrossEncoderReranker` at Text Embeddings Inference": (
            test_remote.TestLangChainOverTextEmbeddingsInference
        ),
        "LlamaIndex `CrossEncoderRerank` at vLLM": test_remote.TestLlamaIndexOverVllm,
    },
    "retrievers": {
        "`ChromaIndex`": test_core.TestChromaIndex,
        "`BM25Index`": test_core.TestBM25Index,
        "`HybridRetriever`": test_core.TestHybridRetriever,
        "`RetrieveRerank`": test_core.TestRetrieveRerankSearch,
        "LangChain `ChromaRetriever`": test_langchain.TestChromaRetriever,
        "LangChain `BM25Retriever`": test_langchain.TestBM25Retriever,
        "LangChain `HybridRetriever`": test_langchain.TestHybridRetriever,
        "LangChain `RetrieveRerankRetriever`": test_langchain.TestRetrieveRerankRetrieverSearch,
        "LlamaIndex `ChromaRetriever`": test_llama_index.TestChromaRetriever,
        "LlamaIndex `BM25Retriever`": test_llama_index.TestBM25Retriever,
        "LlamaIndex `HybridRetriever`": test_llama_index.TestHybridRetriever,
        "LlamaIndex `RetrieveRerankRetriever`": test_llama_index.TestRetrieveRerankRetrieverSearch,
    },
    "stores": {
        "`ChromaIndex`": test_core.TestChromaIndexStore,
        "LangChain `ChromaVectorStore`": test_langchain.TestChromaVectorStore,
        "LlamaIndex `ChromaVectorStore`": test_llama_index.TestChromaVectorStore,
    },
}
STOCK: dict[str, dict[str, type]] = {
    "re-rankers": {
        "langchain-classic `CrossEncoderReranker`": StockReranker,
        "… with `HuggingFaceCrossEncoder`": StockRerankerAndModel,
        "… in `ContextualCompressionRetriever`": StockCompression,
        "LlamaIndex `SentenceTransformerRerank`": StockRerank,
        "… `keep_retrieval_score=True`": StockRerankKeepingScores,
        "… of llama-index-core": StockCoreRerank,
    },
    "retrievers": {
        "langchain-chroma `Chroma.as_retriever`": StockChromaRetriever,
        "langchain-community `BM25Retriever`": StockBM25,
        "langchain-classic `EnsembleRetriever` of the two": StockEnsemble,
        "LlamaIndex `VectorIndexRetriever`, its own store": StockIndexRetriever,
        "LlamaIndex `QueryFusionRetriever` of it, twice": StockFusion,
    },
    "stores": {
        "langchain-chroma `Chroma`": StockChroma,
        "langchain-core `InMemoryVectorStore`": StockMemory,
    },
}
_VERSIONS = [
    "retrieve-rerank",
    "langchain-core",
    "langchain-classic",
    "langchain-community",
    "langchain-chroma",
    "llama-index-core",
    "llama-index-postprocessor-sbert-rerank",
    "sentence-transformers",
    "transformers",
    "chromadb",
]


def outcomes(contracts: Mapping[str, type]) -> dict[str, dict[str, str]]:
    """Run contracts; returns by component and check what came of it."""
    results = {}
    for name, contract in contracts.items():
        print(f"running {name}", file=sys.stderr, flush=True)
        results[name] = run_contract(contract)
    return results


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """Return Markdown: a row a check, a column a component, and their sums."""
    checks = list(dict.fromkeys(check for column in results.values() for check in column))
    lines = [_row(["check", *results]), _row(["---"] * (len(results) + 1))]
    lines += [
        _row([check.replace("_", " "), *(_cell(column.get(check, "n/a: ")) for column in results.values())])
        for check in checks
    ]
    sums = [
        [sum(outcome.startswith(kind) for outcome in column.values()) for kind in ("pass", "FAIL", "n/a")]
        for column in results.values()
    ]
    lines.append(_row(["**sum**", *(f"{good} pass, {bad} FAIL, {none} n/a" for good, bad, none in sums)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(outcome: str) -> str:
    if outcome.startswith("n/a"):
        return "n/a"
    text = re.sub(r"\s+", " ", outcome.replace(tempfile.gettempdir(), "…"))
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|c[0-9a-f]{32}", "…", text)
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> str:
    """Print the tables and return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=list(OURS))
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name} instead of printing")
    given = parser.parse_args(arguments)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    parts = [
        "# Who keeps the contracts?",
        "Written by `python benchmarks/contracts.py --write`; do not edit. A row is a check of "
        "`retrieve_rerank.testing`, a column a component: this package's own first, then the stock ones. n/a: the "
        "check says nothing about the component, such as one of a threshold where there is none. Re-rankers that take "
        "a model are given a real, tiny one whose network answers the check's logits; those at a server, a small one "
        "that answers them in the recorded form of the real one.",
        f"Python {platform.python_version()}, {versions}.",
    ]
    for group in [given.group] if given.group else list(OURS):
        columns = OURS[group] if given.ours_only else OURS[group] | STOCK[group]
        parts += [f"## {group.capitalize()}", table(outcomes(columns))]
    report = "\n\n".join(parts) + "\n"
    if given.write:
        REPORT.write_text(report, encoding="utf-8")
    else:
        print(report)
    return report


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # components that fail log it, too
    main()
