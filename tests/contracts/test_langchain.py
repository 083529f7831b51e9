"""The LangChain components pass the contracts."""

from __future__ import annotations

from langchain_core.documents import Document

from retrieve_rerank import Hit, Passage
from retrieve_rerank.langchain import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderReranker,
    HybridRetriever,
    RetrieveRerankRetriever,
)
from retrieve_rerank.langchain.convert import to_reranked
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

    def make_weighted(self, scorer, rerank_weight):
        return CrossEncoderReranker(model=LookupCrossEncoder(scorer), rerank_weight=rerank_weight)


class TestCrossEncoderRerankerOverAnother(LangChainRerankerContract):
    """Over any `BaseCrossEncoder`."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoderReranker(model=ScorerCrossEncoder(scorer), top_n=top_n, score_threshold=score_threshold)

    def make_weighted(self, scorer, rerank_weight):
        return CrossEncoderReranker(model=ScorerCrossEncoder(scorer), rerank_weight=rerank_weight)


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

    def make_weighted(self, scorer, rerank_weight):
        reranker = CrossEncoderReranker(model=ScorerCrossEncoder(scorer))
        return lambda documents: RetrieveRerankRetriever(
            base_retriever=ListRetriever(documents=documents), reranker=reranker, rerank_weight=rerank_weight
        )

    def call(self, component, query, inputs, **options):
        return component(inputs).invoke(query)

    async def acall(self, component, query, inputs, **options):
        return await component(inputs).ainvoke(query)


class TestChromaRetriever(LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        documents, embeddings = self.documents(passages), EncoderEmbeddings(encoder)
        return ChromaRetriever.from_documents(documents, embeddings, k=k, persist_directory=folder)


class TestBM25Retriever(LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        return BM25Retriever.from_documents(self.documents(passages), k=k, path=folder)


class TestHybridRetriever(LangChainRetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        documents = self.documents(passages)
        dense = ChromaRetriever.from_documents(documents, EncoderEmbeddings(encoder), persist_directory=folder)
        return HybridRetriever(retrievers=[dense, BM25Retriever.from_documents(documents, path=folder)], k=k)


class TestRetrieveRerankRetrieverSearch(LangChainRetrieverContract):
    """The retriever as a retriever, over a real store."""

    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        documents, embeddings = self.documents(passages), EncoderEmbeddings(encoder)
        store = ChromaVectorStore.from_documents(documents, embeddings, persist_directory=folder)
        reranker = CrossEncoderReranker(model=ScorerCrossEncoder(LetterScorer()))
        return RetrieveRerankRetriever(base_retriever=store, reranker=reranker, top_n=k)


class TestChromaVectorStore(LangChainVectorStoreContract):
    def make(self, encoder, path=None):
        return ChromaVectorStore(
            embedding_function=EncoderEmbeddings(encoder), persist_directory=path, metric=encoder.metric
        )

    def count(self, store):
        return len(store.get()["ids"])


def test_whatever_a_reranking_writes_is_not_the_users_metadata():
    hit = Hit(Passage("1", "a"), 1, 0.5, 1, 0.5, logit=0.0, window=(0, 1), truncated=True)
    document = Document("a", id="1", metadata={"own": 1, "retrieval_ranks": [1, None]})
    [answer] = LangChainRerankerContract().read([to_reranked(document, hit, degraded="why")])
    assert answer.metadata == {"own": 1}
