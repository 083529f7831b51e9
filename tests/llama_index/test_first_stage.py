from __future__ import annotations

import asyncio
from typing import Any

import bm25s
import faiss
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.faiss import FaissVectorStore

from retrieve_rerank.llama_index import ChromaRetriever, ChromaVectorStore
from retrieve_rerank.llama_index.first_stage import FirstStage, first_stage
from tests.llama_index.stubs import WordEmbedding

NODES = [TextNode(text=text, id_=text) for text in ("a a a", "a a b", "c", "b b a")]


class Scores(BasePydanticVectorStore):
    """Finds the first nodes, with these scores."""

    stores_text: bool = True
    scores: list[float]

    @property
    def client(self) -> None:
        return None

    def add(self, nodes: Any, **options: Any) -> list[str]:
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **options: Any) -> None:
        raise NotImplementedError

    def query(self, query: VectorStoreQuery, **options: Any) -> VectorStoreQueryResult:
        nodes = NODES[: len(self.scores)]
        return VectorStoreQueryResult(nodes=nodes, similarities=self.scores, ids=[node.node_id for node in nodes])


def index(store: BasePydanticVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(NODES, storage_context=context, embed_model=WordEmbedding())


def stage(base: Any, k: int = 4, filters: MetadataFilters | None = None) -> FirstStage:
    return first_stage(base, k, filters, asyncio.to_thread)


async def found(base: Any) -> list[float | None]:
    nodes = stage(base).find(QueryBundle("a"))
    anodes = await stage(base).afind(QueryBundle("a"))
    assert [node.score for node in nodes] == [node.score for node in anodes]
    return [node.score for node in nodes]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.9, 0.5, 0.5], [0.9, 0.5, 0.5]),
        ([0.1, 0.5, 0.5], [None] * 3),  # distances
        ([0.5, 0.5], [0.5, 0.5]),
        ([0.2, 0.9, 0.1], [0.2, 0.9, 0.1]),  # in another order than its scores': nothing is known
        ([0.7], [0.7]),
        ([], []),
    ],
)
async def test_scores_that_rise_along_a_vector_stores_order_are_none(given: list[float], expected: list[Any]) -> None:
    assert await found(index(Scores(scores=given))) == expected


async def test_only_nearest_neighbours_are_judged_by_their_order() -> None:
    rising = [0.1, 0.5]
    assert await found(index(Scores(scores=rising)).as_retriever(vector_store_query_mode="mmr")) == rising

    class Listed(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [NodeWithScore(node=node, score=score) for node, score in zip(NODES, rising, strict=False)]

    assert await found(Listed()) == rising


async def test_distances_of_faiss_become_similarities() -> None:
    size = len(WordEmbedding().get_query_embedding("a"))
    query = WordEmbedding().get_query_embedding("a")
    vectors = [WordEmbedding().get_text_embedding(node.text) for node in NODES]
    squares = sorted(sum((a - b) ** 2 for a, b in zip(query, vector, strict=True)) for vector in vectors)
    expected = [1 / (1 + square**0.5) for square in squares]
    assert await found(index(FaissVectorStore(faiss.IndexFlatL2(size)))) == pytest.approx(expected)
    products = sorted((sum(a * b for a, b in zip(query, vector, strict=True)) for vector in vectors), reverse=True)
    assert await found(index(FaissVectorStore(faiss.IndexFlatIP(size)))) == pytest.approx(products)


class Clamped(BaseRetriever):
    """As LlamaIndex's own BM25Retriever is made: it asks bm25s for no more than there is, but only when it is made."""

    def __init__(self, texts: list[str], similarity_top_k: int) -> None:
        self.bm25 = bm25s.BM25()
        self.bm25.index([text.split() for text in texts], show_progress=False)
        self.texts = texts
        self.similarity_top_k = min(similarity_top_k, len(texts))
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        places, scores = self.bm25.retrieve(
            [query_bundle.query_str.split()], k=self.similarity_top_k, show_progress=False
        )
        return [
            NodeWithScore(node=TextNode(text=self.texts[place]), score=float(score))
            for place, score in zip(places[0], scores[0], strict=True)
        ]


@pytest.mark.parametrize(("k", "expected"), [(100, 3), (2, 2)])
def test_a_retriever_that_holds_fewer_than_are_wanted_is_asked_for_all(k: int, expected: int) -> None:
    assert len(stage(Clamped(["a b", "b c", "c d"], 10), k).find(QueryBundle("b c"))) == expected


async def test_the_pool_of_our_own_diverse_retriever_grows_with_the_depth() -> None:
    """With a pool of its own it would choose 100 out of 100."""
    store = ChromaVectorStore(embed_model=WordEmbedding())
    store.add(WordEmbedding()([TextNode(text=text, id_=text) for text in ("a", "a a", "a a a", "a b", "b")]))
    diverse = ChromaRetriever(store, similarity_top_k=1, mmr_threshold=0.1, mmr_prefetch_k=4)
    wider = stage(diverse, 100).retriever
    assert isinstance(wider, ChromaRetriever)
    assert (wider.similarity_top_k, wider.mmr_prefetch_k, diverse.mmr_prefetch_k) == (100, 400, 4)
    assert [node.node_id for node in stage(diverse, 2).find(QueryBundle("a"))][1:] == ["b"]
