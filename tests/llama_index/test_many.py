"""Many queries at once, one query in other words, and diversity, through LlamaIndex's doors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from retrieve_rerank import BiEncoder, ChromaIndex, InvalidInputError, Passage
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    RerankedNode,
    RetrieveRerankRetriever,
)
from tests.core.stubs import LetterEncoder
from tests.llama_index.stubs import ListRetriever, TableScorer, WordEmbedding, recorded, scored, text_node, ticks_during

TEXTS = ["a", "a b", "b b", "c", "b c"]
QUERIES = ["a", "b b", "c", "a"]


@pytest.fixture
def store() -> ChromaVectorStore:
    store = ChromaVectorStore(metric="dot", embed_model=WordEmbedding())
    store.add(WordEmbedding()([text_node(text, words=len(text.split())) for text in TEXTS]))
    return store


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


@pytest.fixture
def searches(store: ChromaVectorStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many vectors each search of the store had."""
    counts: list[int] = []
    query = store._collection.query

    def counted(vectors: Any, *arguments: Any, **options: Any) -> Any:
        counts.append(len(vectors))
        return query(vectors, *arguments, **options)

    monkeypatch.setattr(store._collection, "query", counted)
    return counts


# Many queries


async def test_many_queries_are_one_search(store: ChromaVectorStore, searches: list[int]) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="words", value=2)])
    for options in ({}, {"filters": filters}, {"mmr_threshold": 0.4}, {"similarity_top_k": 2}):
        retriever = ChromaRetriever(store, **options)
        expected = [retriever.retrieve(query) for query in QUERIES]
        searches.clear()
        assert retriever.retrieve_many(QUERIES) == expected
        assert await retriever.aretrieve_many(QUERIES) == expected
        assert searches == [4, 4]
    searches.clear()
    assert ChromaRetriever(store).retrieve_many([]) == await ChromaRetriever(store).aretrieve_many([]) == []
    assert searches == []


async def test_the_encoder_gets_all_queries_in_one_call(
    tiny_dot_bi_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BiEncoderEmbedding(tiny_dot_bi_encoder)  # its queries have another prompt than its passages
    store = ChromaVectorStore(embed_model=model)
    store.add(model([text_node(text) for text in TEXTS]))
    retriever = ChromaRetriever(store)
    expected = [retriever.retrieve(query) for query in QUERIES]
    calls: list[int] = []
    encode, aencode = BiEncoder.encode_queries, BiEncoder.aencode_queries

    def counting(self: BiEncoder, texts: Sequence[str]) -> Any:
        calls.append(len(texts))
        return encode(self, texts)

    async def acounting(self: BiEncoder, texts: Sequence[str]) -> Any:
        calls.append(len(texts))
        return await aencode(self, texts)

    monkeypatch.setattr(BiEncoder, "encode_queries", counting)
    monkeypatch.setattr(BiEncoder, "aencode_queries", acounting)
    with recorded("EmbeddingStartEvent", "EmbeddingEndEvent") as recorder:
        found = [retriever.retrieve_many(QUERIES), await retriever.aretrieve_many(QUERIES)]
    assert calls == [3, 4]  # one call each; a query is encoded once
    assert recorder.names == ["EmbeddingStartEvent", "EmbeddingEndEvent"] * 2
    assert recorder.events[1].chunks == QUERIES  # type: ignore[attr-defined]
    for results in found:
        for nodes, others in zip(results, expected, strict=True):
            assert ids(nodes) == ids(others)
            assert [node.score for node in nodes] == pytest.approx([node.score for node in others], abs=1e-4)


async def test_queries_of_another_model_are_embedded_side_by_side() -> None:
    class Meeting(WordEmbedding):
        async def _aget_query_embedding(self, query: str) -> list[float]:
            here.append(query)
            if len(here) == 2:
                met.set()
            await asyncio.wait_for(met.wait(), 10)  # until both are here
            return self._get_query_embedding(query)

    here: list[str] = []
    met = asyncio.Event()
    store = ChromaVectorStore(embed_model=Meeting())
    store.add(WordEmbedding()([text_node(text) for text in TEXTS]))
    a, c = await ChromaRetriever(store, similarity_top_k=1).aretrieve_many(["a", "c"])
    assert (ids(a), ids(c)) == (["a"], ["c"])


async def test_a_cache_of_queries_is_asked(tiny_bi_encoder: Path) -> None:
    model = BiEncoderEmbedding(tiny_bi_encoder, embeddings_cache=SimpleKVStore())
    first = model.get_query_embeddings(["paris", "rome"])
    assert await model.aget_query_embeddings(["rome", "paris"]) == first[::-1]
    assert len(model.embeddings_cache.get_all(collection="query_embeddings")) == 2  # type: ignore[union-attr]
    assert model.get_query_embeddings([]) == await model.aget_query_embeddings([]) == []


async def test_every_query_is_reported(store: ChromaVectorStore) -> None:
    with recorded("RetrievalStartEvent", "RetrievalEndEvent") as recorder:
        results = ChromaRetriever(store).retrieve_many(["a", "c"])
        results += await ChromaRetriever(store).aretrieve_many(["a", "c"])
    assert recorder.names == ["RetrievalStartEvent", "RetrievalEndEvent"] * 4
    ends: list[Any] = recorder.events[1::2]
    assert [event.str_or_query_bundle.query_str for event in ends] == ["a", "c"] * 2
    assert [event.nodes for event in ends] == results


@pytest.mark.parametrize("queries", ["a", ["a", ""], [None], None])
async def test_queries_that_cannot_be_used(store: ChromaVectorStore, searches: list[int], queries: Any) -> None:
    with pytest.raises(InvalidInputError):
        ChromaRetriever(store).retrieve_many(queries)
    with pytest.raises(InvalidInputError):
        await ChromaRetriever(store).aretrieve_many(queries)
    assert searches == []


# A query in other words


def by_query(query: str) -> list[str]:
    return {"a": ["c", "b b"], "plain": []}[query]


async def test_rewrites_are_fused_and_scored_against_the_query(store: ChromaVectorStore, searches: list[int]) -> None:
    asked: list[str] = []

    class Scorer(TableScorer):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            asked.append(query)
            return super().score(query, texts)

    node_text = {node.node_id: node.get_content(metadata_mode="embed") for node in store.get_nodes()}  # type: ignore[arg-type]
    reranker = CrossEncoderRerank(Scorer({node_text[text]: float(place) for place, text in enumerate(TEXTS)}))
    retriever = RetrieveRerankRetriever(ChromaRetriever(store), reranker, fetch_k=3, rewrites=by_query)
    lists = [ids(ChromaRetriever(store, similarity_top_k=3).retrieve(query)) for query in ("a", "c", "b b")]
    searches.clear()
    for nodes in (retriever.retrieve("a"), await retriever.aretrieve("a")):
        assert len(nodes) == 3
        for node in nodes:
            assert isinstance(node, RerankedNode)
            ranks = tuple(found.index(node.node_id) + 1 if node.node_id in found else None for found in lists)
            assert node.retrieval_ranks == ranks
            assert node.retrieval_score == pytest.approx(sum(1 / (60 + rank) for rank in ranks if rank))
        assert ids(nodes) == sorted(ids(nodes), key=TEXTS.index, reverse=True)
    assert searches == [3, 3]
    assert set(asked) == {"a"}


async def test_rewrites_over_any_retriever_and_a_bundle_with_an_embedding(store: ChromaVectorStore) -> None:
    asked: list[str] = []

    class Asked(ListRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            asked.append(query_bundle.query_str)
            return super()._retrieve(query_bundle)

    reranker = CrossEncoderRerank(TableScorer({"a": 0.0, "b": 1.0}))
    retriever = RetrieveRerankRetriever(Asked(scored("a", "b")), reranker, rewrites=by_query)
    for nodes in (retriever.retrieve("a"), await retriever.aretrieve("a")):
        assert [node.retrieval_ranks for node in nodes if isinstance(node, RerankedNode)] == [(2, 2, 2), (1, 1, 1)]
    assert asked == ["a", "c", "b b"] * 2
    for nodes in (retriever.retrieve("plain"), await retriever.aretrieve("plain")):
        assert [node.retrieval_ranks for node in nodes if isinstance(node, RerankedNode)] == [(), ()]
    given = QueryBundle("a", embedding=[0.0, 0.0, 1.0])
    over = RetrieveRerankRetriever(ChromaRetriever(store), CrossEncoderRerank(Constant()), fetch_k=9, rewrites=by_query)
    for nodes in (over.retrieve(given), await over.aretrieve(given)):
        ranks = {node.node_id: node.retrieval_ranks for node in nodes if isinstance(node, RerankedNode)}
        assert ranks["c"][0] == ranks["c"][1] == 1


class Constant(TableScorer):
    def __init__(self) -> None:
        super().__init__({})

    def score(self, query: str, texts: Sequence[str]) -> Any:
        return [0.0] * len(texts)


async def test_a_slow_rewriter_does_not_block_the_loop() -> None:
    threads: list[str] = []

    def slow(_: str) -> list[str]:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return ["b"]

    reranker = CrossEncoderRerank(TableScorer({"a": 0.0}))
    retriever = RetrieveRerankRetriever(ListRetriever(scored("a")), reranker, rewrites=slow)
    nodes, ticks = await ticks_during(retriever.aretrieve("a"))
    assert (ids(nodes), threads[0].startswith("retrieve-rerank")) == (["a"], True)
    assert ticks > 15


@pytest.mark.parametrize("answer", ["text", [""], None])
async def test_rewrites_must_be_a_function_that_gives_a_list_of_texts(answer: Any) -> None:
    rewrites: Callable[[str], Any] = lambda _: answer  # noqa: E731
    retriever = RetrieveRerankRetriever(ListRetriever([]), TableScorer({}), rewrites=rewrites)
    with pytest.raises(InvalidInputError, match="must be a function from the query to a list of texts"):
        RetrieveRerankRetriever(ListRetriever([]), TableScorer({}), rewrites=["b"])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        retriever.retrieve("q")
    with pytest.raises(InvalidInputError):
        await retriever.aretrieve("q")


# Diversity


VECTORS = {"a": [1.0, 0.1], "b": [1.0, 0.11], "c": [0.8, -0.6], "d": [-1.0, 0.0], "q": [1.0, 0.0]}


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
async def test_diverse_nodes_come_in_the_order_chosen(metric: Any) -> None:
    store = ChromaVectorStore(metric=metric)
    store.add([text_node(id_, embedding=VECTORS[id_]) for id_ in "abcd"])
    bundle = QueryBundle("q", embedding=VECTORS["q"])
    retriever = ChromaRetriever(store, WordEmbedding(), similarity_top_k=3, mmr_threshold=0.5)
    with ChromaIndex(LetterEncoder(metric, vector=VECTORS.__getitem__, dimension=2)) as index:
        index.add([Passage(id_, id_) for id_ in "abcd"])
        hits = index.retrieve("q", 3, mmr_lambda=0.5)
        for nodes in (retriever.retrieve(bundle), await retriever.aretrieve(bundle)):
            assert ids(nodes) == [hit.passage.id for hit in hits]
            assert [node.score for node in nodes] == pytest.approx([hit.score for hit in hits])
    narrow = ChromaRetriever(store, WordEmbedding(), similarity_top_k=2, mmr_threshold=0.0, mmr_prefetch_k=2)
    assert sorted(ids(narrow.retrieve(bundle))) == ids(ChromaRetriever(store, WordEmbedding()).retrieve(bundle))[:2]
    wide = ChromaRetriever(store, WordEmbedding(), similarity_top_k=2, mmr_threshold=0.0)
    assert ids(wide.retrieve(bundle)) == ["a", "d"]
    scorer = TableScorer({"a": 0.0, "d": 1.0})
    for nodes in (
        RetrieveRerankRetriever(wide, CrossEncoderRerank(scorer), fetch_k=2).retrieve(bundle),
        await RetrieveRerankRetriever(wide, CrossEncoderRerank(scorer), fetch_k=2).aretrieve(bundle),
    ):
        assert [(node.node_id, node.retrieval_rank) for node in nodes if isinstance(node, RerankedNode)] == [
            ("d", 2),
            ("a", 1),
        ]


@pytest.mark.parametrize("options", [{"mmr_threshold": 2}, {"mmr_threshold": True}, {"mmr_prefetch_k": 0}])
def test_options_that_cannot_be_used(store: ChromaVectorStore, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        ChromaRetriever(store, **options)
