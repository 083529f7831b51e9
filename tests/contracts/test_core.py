"""The core's own components pass the contracts."""

from __future__ import annotations

from typing import Any

from retrieve_rerank import BM25Index, ChromaIndex, CrossEncoder, HybridRetriever, RetrieveRerank
from retrieve_rerank.models.ranking import as_ranker
from retrieve_rerank.testing import ListRetriever, RerankerContract, RetrieverContract, VectorStoreContract
from tests.contracts.lookup import LetterScorer, LookupCrossEncoder, tiny_path


class Weighted:
    """What ranks, with a weight of its own."""

    def __init__(self, ranker, rerank_weight):
        self.ranker, self.rerank_weight = ranker, rerank_weight

    def rank(self, query, passages, **options):
        return self.ranker.rank(query, passages, rerank_weight=self.rerank_weight, **options)


class TestCrossEncoder(RerankerContract):
    def make(self, scorer, *, top_n=None, score_threshold=None):
        return LookupCrossEncoder(scorer)

    def make_real(self):
        return CrossEncoder(tiny_path(), precision="float32")

    def make_weighted(self, scorer, rerank_weight):
        return Weighted(LookupCrossEncoder(scorer), rerank_weight)


class TestAnyScorer(RerankerContract):
    """What becomes of a scorer that is not ours, at every door."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        return as_ranker(scorer)

    def make_weighted(self, scorer, rerank_weight):
        return Weighted(as_ranker(scorer), rerank_weight)


class TestRetrieveRerank(RerankerContract):
    """The pipeline as a re-ranker: its first stage finds what is given."""

    def make(self, scorer, *, top_n=None, score_threshold=None):
        keep = 100 if top_n is None else top_n
        return lambda hits: RetrieveRerank(ListRetriever(hits), scorer, top_n=keep, score_threshold=score_threshold)

    def make_weighted(self, scorer, rerank_weight):
        return lambda hits: RetrieveRerank(ListRetriever(hits), scorer, rerank_weight=rerank_weight)

    def call(self, component, query, inputs, **options):
        return component(inputs).search(query)

    async def acall(self, component, query, inputs, **options):
        return await component(inputs).asearch(query)


class TestChromaIndex(RetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        index = ChromaIndex(encoder, path=folder)
        index.add(passages)
        return index


class TestBM25Index(RetrieverContract):
    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        index = BM25Index(path=folder)
        index.add(passages)
        if folder:
            index.save()
        return index


class TestHybridRetriever(RetrieverContract):
    parts = (TestChromaIndex, TestBM25Index)

    def make(self, passages, k, encoder):
        return HybridRetriever([part().make(passages, k, encoder) for part in self.parts])

    def make_kept(self, passages, k, encoder, folder):
        return HybridRetriever([part().make_kept(passages, k, encoder, folder) for part in self.parts])


class TestRetrieveRerankSearch(RetrieverContract):
    """The pipeline as a retriever, over a real index."""

    def make(self, passages, k, encoder):
        return self.make_kept(passages, k, encoder, None)

    def make_kept(self, passages, k, encoder, folder):
        index = ChromaIndex(encoder, path=folder)
        index.add(passages)
        return RetrieveRerank(index, LetterScorer(), top_n=k)

    def call(self, component, query, k):
        return component.search(query)

    async def acall(self, component, query, k):
        return await component.asearch(query)


class TestChromaIndexStore(VectorStoreContract):
    has_async = False  # it searches without blocking, which the retriever's contract shows; it has no async add

    def make(self, encoder: Any, path: str | None = None) -> Any:
        return ChromaIndex(encoder, path=path)
