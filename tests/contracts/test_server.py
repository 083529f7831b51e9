"""What stands on Chroma passes the contracts and LangChain's own suite with a server, too."""

from __future__ import annotations

import uuid
from hashlib import blake2b

import pytest
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from retrieve_rerank import ChromaIndex
from retrieve_rerank.langchain import ChromaRetriever as LangChainRetriever
from retrieve_rerank.langchain import ChromaVectorStore as LangChainStore
from retrieve_rerank.llama_index import ChromaRetriever as LlamaIndexRetriever
from retrieve_rerank.llama_index import ChromaVectorStore as LlamaIndexStore
from retrieve_rerank.testing import (
    EncoderEmbedding,
    EncoderEmbeddings,
    LangChainRetrieverContract,
    LangChainVectorStoreContract,
    LlamaIndexRetrieverContract,
    LlamaIndexVectorStoreContract,
    RetrieverContract,
    VectorStoreContract,
)


class _AtServer:
    @pytest.fixture(autouse=True)
    def _server(self, chroma_client):
        self.client = chroma_client

    def name(self, folder=None):
        """Return the name of a collection: the same for the same folder, else a new one."""
        return f"c-{uuid.uuid4().hex if folder is None else blake2b(str(folder).encode(), digest_size=8).hexdigest()}"


class TestChromaIndex(_AtServer, RetrieverContract):
    def make(self, passages, k, encoder):
        index = ChromaIndex(encoder, self.name(), client=self.client)
        index.add(passages)
        return index


class TestChromaIndexStore(_AtServer, VectorStoreContract):
    has_async = False

    def make(self, encoder, path=None):
        return ChromaIndex(encoder, self.name(path), client=self.client)


class TestLangChainRetriever(_AtServer, LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        documents, embeddings = self.documents(passages), EncoderEmbeddings(encoder)
        options = {"collection_name": self.name(), "client": self.client}
        return LangChainRetriever.from_documents(documents, embeddings, k=k, **options)


class TestLangChainStore(_AtServer, LangChainVectorStoreContract):
    def make(self, encoder, path=None):
        embeddings = EncoderEmbeddings(encoder)
        return LangChainStore(self.name(path), embeddings, client=self.client, metric=encoder.metric)

    def count(self, store):
        return len(store.get()["ids"])


class TestLangChainsOwnSuite(_AtServer, VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        store = LangChainStore(self.name(), self.get_embeddings(), client=self.client)
        yield store
        store.delete_collection()


class TestLlamaIndexRetriever(_AtServer, LlamaIndexRetrieverContract):
    def make(self, passages, k, encoder):
        store = LlamaIndexStore(collection_name=self.name(), client=self.client, metric=encoder.metric)
        store.add(self.nodes(passages, encoder))
        return LlamaIndexRetriever(store, EncoderEmbedding(encoder), similarity_top_k=k)


class TestLlamaIndexStore(_AtServer, LlamaIndexVectorStoreContract):
    def make(self, encoder, path=None):
        store = LlamaIndexStore(collection_name=self.name(path), client=self.client, metric=encoder.metric)
        return self.using(encoder, store)
