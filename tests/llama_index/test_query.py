from __future__ import annotations

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from retrieve_rerank import InvalidInputError
from retrieve_rerank.llama_index import ChromaVectorStore
from tests.llama_index.stubs import text_node

MMR = VectorStoreQueryMode.MMR


@pytest.fixture
def store() -> ChromaVectorStore:
    """Cosine; to the query (1, 0): a and its double b are nearest, c is another direction, d is far."""
    store = ChromaVectorStore(metric="cosine")
    vectors = {"a": [1.0, 0.1], "b": [1.0, 0.11], "c": [0.8, -0.6], "d": [-1.0, 0.0]}
    store.add([text_node(id_, embedding=vector) for id_, vector in vectors.items()])
    return store


def test_mmr_with_fewer_nodes_than_asked_for_is_still_mmr(store: ChromaVectorStore) -> None:
    """X6: the peer falls back to plain search without a word."""
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=10, mode=MMR)
    result = store.query(query)
    assert result.ids == ["a", "c", "b", "d"]  # plain search: a, b, c, d
    assert [node.node_id for node in result.nodes or []] == result.ids
    assert result.similarities == pytest.approx([0.99504, 0.8, 0.99400, -1.0], abs=1e-4)
    assert store.query(query, where_document={"$contains": "nowhere"}).ids == []


def test_mmr_options(store: ChromaVectorStore) -> None:
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=3, mode=MMR)
    assert store.query(query, mmr_threshold=1).ids == ["a", "b", "c"]
    assert store.query(query, mmr_threshold=0.5, mmr_prefetch_k=3).ids == ["a", "c", "b"]
    assert store.query(query, mmr_threshold=0.0, mmr_prefetch_factor=2).ids == ["a", "d", "c"]
    assert store.query(query, mmr_threshold=0.0, mmr_prefetch_factor=1.0).ids == ["a", "c", "b"]
    query.mmr_threshold = 1.0
    assert store.query(query).ids == ["a", "b", "c"]


@pytest.mark.parametrize(
    "options",
    [
        {"mmr_threshold": 1.5},
        {"mmr_threshold": "much"},
        {"mmr_threshold": True},
        {"mmr_prefetch_factor": 0.5},
        {"mmr_prefetch_k": 0},
        {"mmr_prefetch_k": 5, "mmr_prefetch_factor": 2.0},
        {"n_results": 3},
    ],
)
def test_options_that_cannot_be_used_are_refused(store: ChromaVectorStore, options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], mode=MMR), **options)


@pytest.mark.parametrize("mode", [mode for mode in VectorStoreQueryMode if mode.value not in ("default", "mmr")])
def test_modes_that_are_not_there_are_refused(store: ChromaVectorStore, mode: VectorStoreQueryMode) -> None:
    """X: the peer searches dense without a word where hybrid was asked for."""
    with pytest.raises(InvalidInputError, match=mode.value):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], query_str="a", mode=mode))


@pytest.mark.parametrize("embedding", [None, [], ["a", "b"], [[1.0], [1.0, 2.0]], [float("nan"), 0.0]])
def test_a_query_without_a_usable_embedding_is_refused(store: ChromaVectorStore, embedding: object) -> None:
    with pytest.raises(InvalidInputError):
        store.query(VectorStoreQuery(query_embedding=embedding, query_str="a"))  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, -1, 2.5])
def test_a_count_below_one_is_refused(store: ChromaVectorStore, top_k: int) -> None:
    with pytest.raises(InvalidInputError, match="similarity_top_k"):
        store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=top_k))
