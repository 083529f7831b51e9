"""The LangChain components pass the contracts."""

from __future__ import annotations

from retrieve_rerank.langchain import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
)
from retrieve_rerank.testing import (
    EncoderEmbeddings,
    LangChainRerankerContract,
    LangChainRetrieverContract,
    LangChainVectorStoreContract,
    ScorerCrossEncoder,
)
from tests.contracts.lookup import LetterScorer, LookupCrossEncoder, tiny_path
from tests.langchain.stubs import ListRetriever


class TestCrossEncoderReranker(LangChainRerankerContract):
    """Over our own cross-encoder."""

    tolerance = 1e-2  # by name, a model computes in bfloat16 where the processor does

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoderReranker(model=LookupCrossEncoder(scorer), top_n=top_n, score_threshold=score_threshold)

    def make_real(self):
        return CrossEncoderReranker(model=tiny_path(), top_n=None)


class TestCrossEncoderRerankerOverAnother(LangChainRerankerContract):
    """Over any `BaseCrossEncoder`."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoderReranker(model=ScorerCrossEncoder(scorer), top_n=top_n, score_threshold=score_threshold)


class TestRetrieveRerankRetriever(LangChainRerankerContract):
    """The retriever as a re-ranker: its first stage finds what is given."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        reranker = CrossEncoderReranker(model=ScorerCrossEncoder(scorer))
        keep = 100 if top_n is None else top_n
        return lambda documents: RetrieveRerankRetriever(
            base_retriever=ListRetriever(documents=documents),
            reranker=reranker,
            top_n=keep,
            score_threshold=score_threshold,
        )

    def call(self, component, query, inputs, **options):
        return component(inputs).invoke(query)

    async def acall(self, component, query, inputs, **options):
        return await component(inputs).ainvoke(query)


class TestChromaRetriever(LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        return ChromaRetriever.from_documents(self.documents(passages), EncoderEmbeddings(encoder), k=k)


class TestBM25Retriever(LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        return BM25Retriever.from_documents(self.documents(passages), k=k)


class TestHybridRetriever(LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        documents = self.documents(passages)
        dense = ChromaRetriever.from_documents(documents, EncoderEmbeddings(encoder))
        return HybridRetriever(retrievers=[dense, BM25Retriever.from_documents(documents)], k=k)


class TestRetrieveRerankRetrieverSearch(LangChainRetrieverContract):
    """The retriever as a retriever, over a real store."""

    def make(self, passages, k, encoder):
        store = ChromaVectorStore.from_documents(self.documents(passages), EncoderEmbeddings(encoder))
        reranker = CrossEncoderReranker(model=ScorerCrossEncoder(LetterScorer()))
        return RetrieveRerankRetriever(base_retriever=store, reranker=reranker, top_n=k)


class TestChromaVectorStore(LangChainVectorStoreContract):
    def make(self, encoder, path=None):
        return ChromaVectorStore(
            embedding_function=EncoderEmbeddings(encoder), persist_directory=path, metric=encoder.metric
        )

    def count(self, store):
        return len(store.get()["ids"])
