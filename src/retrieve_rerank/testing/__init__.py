"""Check your own component: the contracts that every re-ranker, retriever and vector store here passes, and stubs.

A contract is a class whose methods are the checks. Say how your component is made, and run it with pytest:

    from retrieve_rerank.testing import LangChainRerankerContract, ScorerCrossEncoder

    class TestMyReranker(LangChainRerankerContract):
        has_threshold = False  # MyReranker takes no score_threshold

        def make(self, scorer, *, top_n=None, score_threshold=None):
            return MyReranker(model=ScorerCrossEncoder(scorer), top_n=top_n)

`RerankerContract`, `RetrieverContract` and `VectorStoreContract` are for components of this package's own shape and,
with a few methods overridden, for any other; those with LangChain or LlamaIndex in their names fit these frameworks'
kinds. The contracts import no pytest; `run_contract` runs one without it. A framework loads with its contracts only.

The stubs answer what can be computed by hand: `LetterEncoder`, `TableScorer`, `FaultyScorer`, `ListRetriever`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from retrieve_rerank.testing.reranker import RerankerContract
from retrieve_rerank.testing.retriever import RetrieverContract
from retrieve_rerank.testing.running import Answer, run_contract
from retrieve_rerank.testing.stubs import FaultyScorer, LetterEncoder, ListRetriever, TableScorer, hits_of
from retrieve_rerank.testing.vector_store import VectorStoreContract

if TYPE_CHECKING:
    from retrieve_rerank.testing.langchain import (
        EncoderEmbeddings,
        LangChainRerankerContract,
        LangChainRetrieverContract,
        LangChainVectorStoreContract,
        ScorerCrossEncoder,
    )
    from retrieve_rerank.testing.llama_index import (
        EncoderEmbedding,
        LlamaIndexRerankerContract,
        LlamaIndexRetrieverContract,
        LlamaIndexVectorStoreContract,
    )

_FRAMEWORKS = {
    "EncoderEmbedding": "llama_index",
    "EncoderEmbeddings": "langchain",
    "LangChainRerankerContract": "langchain",
    "LangChainRetrieverContract": "langchain",
    "LangChainVectorStoreContract": "langchain",
    "LlamaIndexRerankerContract": "llama_index",
    "LlamaIndexRetrieverContract": "llama_index",
    "LlamaIndexVectorStoreContract": "llama_index",
    "ScorerCrossEncoder": "langchain",
}

__all__ = [
    "Answer",
    "EncoderEmbedding",
    "EncoderEmbeddings",
    "FaultyScorer",
    "LangChainRerankerContract",
    "LangChainRetrieverContract",
    "LangChainVectorStoreContract",
    "LetterEncoder",
    "ListRetriever",
    "LlamaIndexRerankerContract",
    "LlamaIndexRetrieverContract",
    "LlamaIndexVectorStoreContract",
    "RerankerContract",
    "RetrieverContract",
    "ScorerCrossEncoder",
    "TableScorer",
    "VectorStoreContract",
    "hits_of",
    "run_contract",
]


def __getattr__(name: str) -> object:
    room = _FRAMEWORKS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
