"""The LlamaIndex components pass the contracts."""

from __future__ import annotations

from retrieve_rerank.llama_index import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    HybridRetriever,
    RetrieveRerankRetriever,
)
from retrieve_rerank.testing import (
    EncoderEmbedding,
    LlamaIndexRerankerContract,
    LlamaIndexRetrieverContract,
    LlamaIndexVectorStoreContract,
)
from tests.contracts.lookup import LetterScorer, LookupCrossEncoder, tiny_path
from tests.llama_index.stubs import ListRetriever


class TestCrossEncoderRerank(LlamaIndexRerankerContract):
    """Over our own cross-encoder."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        keep = 100 if top_n is None else top_n
        return CrossEncoderRerank(LookupCrossEncoder(scorer), keep, score_threshold=score_threshold)

    def make_real(self):
        return CrossEncoderRerank(tiny_path(), precision="float32", top_n=100)

    def make_weighted(self, scorer, rerank_weight):
        return CrossEncoderRerank(LookupCrossEncoder(scorer), rerank_weight=rerank_weight)


class TestCrossEncoderRerankOverAnother(LlamaIndexRerankerContract):
    """Over any scorer."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return CrossEncoderRerank(scorer, 100 if top_n is None else top_n, score_threshold=score_threshold)

    def make_weighted(self, scorer, rerank_weight):
        return CrossEncoderRerank(scorer, rerank_weight=rerank_weight)


class TestRetrieveRerankRetriever(LlamaIndexRerankerContract):
    """The retriever as a re-ranker: its first stage finds what is given."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        reranker = CrossEncoderRerank(scorer, score_threshold=score_threshold)
        return lambda nodes: RetrieveRerankRetriever(
            ListRetriever(nodes), reranker, top_n=100 if top_n is None else top_n
        )

    def make_weighted(self, scorer, rerank_weight):
        return lambda nodes: RetrieveRerankRetriever(ListRetriever(nodes), scorer, rerank_weight=rerank_weight)

    def call(self, component, query, inputs, **options):
        return component(inputs).retrieve(query)

    async def acall(self, component, query, inputs, **options):
        return await component(inputs).aretrieve(query)


class TestChromaRetriever(LlamaIndexRetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        embed_model = EncoderEmbedding(encoder)
        store = ChromaVectorStore(persist_dir=folder, metric=encoder.metric)
        store.add(self.nodes(passages, encoder))
        return ChromaRetriever(store, embed_model, similarity_top_k=k)


class TestBM25Retriever(LlamaIndexRetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        return BM25Retriever(self.nodes(passages, encoder), similarity_top_k=k, path=folder)


class TestHybridRetriever(LlamaIndexRetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        nodes, store = self.nodes(passages, encoder), ChromaVectorStore(persist_dir=folder)
        store.add(nodes)
        dense = ChromaRetriever(store, EncoderEmbedding(encoder))
        return HybridRetriever([dense, BM25Retriever(nodes, path=folder)], similarity_top_k=k)


class TestRetrieveRerankRetrieverSearch(LlamaIndexRetrieverContract):
    """The retriever as a retriever, over a real store."""

    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        store = ChromaVectorStore(persist_dir=folder)
        store.add(self.nodes(passages, encoder))
        first = ChromaRetriever(store, EncoderEmbedding(encoder))
        return RetrieveRerankRetriever(first, CrossEncoderRerank(LetterScorer()), top_n=k)


class TestChromaVectorStore(LlamaIndexVectorStoreContract):
    def make(self, encoder, path=None):
        return self.using(encoder, ChromaVectorStore(persist_dir=path, metric=encoder.metric))
