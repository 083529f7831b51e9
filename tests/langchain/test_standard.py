"""LangChain's own standard suites."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from retrieve_rerank.langchain import (
    BiEncoderEmbeddings,
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
)

TEXTS = ["paris is the capital of france", "rome is the capital of italy", "bread", "a word", "the capital"]


class _TinyModel:
    @pytest.fixture(autouse=True)
    def _paths(self, tiny_bi_encoder: Path) -> None:
        type(self).path = str(tiny_bi_encoder)

    path = ""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return BiEncoderEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.path}


class TestEmbeddingsUnit(_TinyModel, EmbeddingsUnitTests):
    pass


class TestEmbeddingsIntegration(_TinyModel, EmbeddingsIntegrationTests):
    pass


class TestVectorStoreInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[ChromaVectorStore]:  # type: ignore[override]
        store = ChromaVectorStore(embedding_function=self.get_embeddings())
        yield store
        store.close()


class TestVectorStorePersistent(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[ChromaVectorStore]:  # type: ignore[override]
        store = ChromaVectorStore(f"c-{uuid.uuid4().hex}", self.get_embeddings(), tmp_path)
        yield store
        store.close()


class TestChromaRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _store(self, tiny_bi_encoder: Path) -> Iterator[None]:
        embeddings = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
        type(self).store = ChromaVectorStore.from_texts(TEXTS, embeddings)
        yield
        type(self).store.close()

    store: ChromaVectorStore

    @property
    def retriever_constructor(self) -> type[ChromaRetriever]:
        return ChromaRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": self.store}

    @property
    def retriever_query_example(self) -> str:
        return "what is the capital of france"


class TestHybridRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _stores(self, tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path) -> Iterator[None]:
        ids = [str(number) for number in range(len(TEXTS))]
        type(self).stores = [
            ChromaVectorStore.from_texts(TEXTS, BiEncoderEmbeddings(model=str(path)), ids=ids)
            for path in (tiny_bi_encoder, tiny_dot_bi_encoder)
        ]
        yield
        for store in type(self).stores:
            store.close()

    stores: list[ChromaVectorStore]

    @property
    def retriever_constructor(self) -> type[HybridRetriever]:
        return HybridRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retrievers": self.stores}

    @property
    def retriever_query_example(self) -> str:
        return "what is the capital of france"


class TestBM25Retriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, tmp_path: Path) -> None:
        type(self).path = tmp_path
        BM25Retriever.from_texts(TEXTS, path=tmp_path)

    path: Path

    @property
    def retriever_constructor(self) -> type[BM25Retriever]:
        return BM25Retriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"path": self.path}

    @property
    def retriever_query_example(self) -> str:
        return "what is the capital of france"


class TestRetrieveRerankRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _stages(self, tiny_bi_encoder: Path, tiny_cross_encoder: Path) -> Iterator[None]:
        embeddings = BiEncoderEmbeddings(model=str(tiny_bi_encoder))
        type(self).store = ChromaVectorStore.from_texts(TEXTS, embeddings)
        type(self).reranker = CrossEncoderReranker(model=str(tiny_cross_encoder))
        yield
        type(self).store.close()

    store: ChromaVectorStore
    reranker: CrossEncoderReranker

    @property
    def retriever_constructor(self) -> type[RetrieveRerankRetriever]:
        return RetrieveRerankRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_retriever": self.store, "reranker": self.reranker}

    @property
    def retriever_query_example(self) -> str:
        return "what is the capital of france"

    @property
    def num_results_arg_name(self) -> str:
        return "top_n"
