"""The dense first stage, and both stages in a row: one query, many, and one in other words."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import FilterOperator

from retrieve_rerank import BiEncoder, ChromaIndex, IndexMismatchError, InvalidInputError, Passage
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    HybridRetriever,
    RerankedNode,
    RetrieveRerankRetriever,
)
from tests.core.stubs import LetterEncoder
from tests.llama_index.stubs import (
    ListRetriever,
    SlowAsync,
    TableScorer,
    WordEmbedding,
    both_ways,
    ids,
    recorded,
    scored,
    text_node,
    ticks_during,
)

TEXTS = ["a", "a b", "b b", "c", "b c"]
LOGITS = {text: float(position) for position, text in enumerate(TEXTS)}
QUERIES = ["a", "b b", "c", "a"]


@pytest.fixture
def store() -> ChromaVectorStore:
    store = ChromaVectorStore(metric="dot", embed_model=WordEmbedding())
    nodes = [text_node(text, words=len(text.split())) for text in TEXTS]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["words"]  # the models read the bare text
    store.add(WordEmbedding()(nodes))
    return store


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


def words(count: int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="words", value=count)])


def test_the_defaults(store: ChromaVectorStore) -> None:
    assert ChromaRetriever(store).similarity_top_k == HybridRetriever([ChromaRetriever(store)]).similarity_top_k == 100
    retriever = RetrieveRerankRetriever(ChromaRetriever(store), CrossEncoderRerank(TableScorer(LOGITS)))
    assert (retriever.fetch_k, retriever.top_n, retriever.reranker.top_n) == (100, None, 5)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((ChromaRetriever, wrong) for wrong in ({"vector_store": "store"}, {"embed_model": "local"})),
        *((ChromaRetriever, {name: value}) for name, value in (("embed_model", None), ("similarity_top_k", 0))),
        *((ChromaRetriever, {name: value}) for name, value in (("mmr_threshold", 2), ("mmr_threshold", True))),
        (ChromaRetriever, {"mmr_prefetch_k": 0}),
        (RetrieveRerankRetriever, {"reranker": ListRetriever([])}),
        (RetrieveRerankRetriever, {"filters": {"words": 1}}),
        (RetrieveRerankRetriever, {"rewrites": ["b"]}),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(kind: Any, wrong: dict[str, object]) -> None:
    arguments: dict[str, Any] = {"vector_store": ChromaVectorStore(), "embed_model": WordEmbedding()}
    if kind is RetrieveRerankRetriever:
        arguments = {"retriever": ListRetriever([]), "reranker": CrossEncoderRerank(TableScorer({}))}
    with pytest.raises(InvalidInputError):
        kind(**{**arguments, **wrong})


# ChromaRetriever


async def test_filters_hold(store: ChromaVectorStore) -> None:
    for found in await both_ways(ChromaRetriever(store, filters=words(1)), "b"):
        assert set(ids(found)) == {"a", "c"}
    empty = MetadataFilter(key="words", value=None, operator=FilterOperator.IS_EMPTY)
    with pytest.raises(InvalidInputError, match="lack a key"):
        ChromaRetriever(store, filters=MetadataFilters(filters=[empty]))


@pytest.mark.parametrize(
    ("bundle", "best"),
    [
        (QueryBundle("c"), {"c", "b c"}),
        (QueryBundle("c", custom_embedding_strs=["a"]), {"a", "a b"}),
        (QueryBundle("c", embedding=[0.0, 1.0, 0.0]), {"b b"}),
    ],
)
async def test_what_the_bundle_says_to_embed_is_embedded_and_the_bundle_left_alone(
    store: ChromaVectorStore, bundle: QueryBundle, best: set[str]
) -> None:
    embedding = bundle.embedding
    for found in await both_ways(ChromaRetriever(store, similarity_top_k=1), bundle):
        assert found[0].node_id in best
    assert bundle.embedding == embedding


async def test_an_empty_text_to_embed_is_refused(store: ChromaVectorStore) -> None:
    query = QueryBundle("q", custom_embedding_strs=[" "])
    with pytest.raises(InvalidInputError, match="empty"):
        ChromaRetriever(store).retrieve(query)
    with pytest.raises(InvalidInputError, match="empty"):
        await ChromaRetriever(store).aretrieve(query)


def test_the_embedding_model_must_fit_the_store(tiny_bi_encoder: Path, tiny_dot_bi_encoder: Path) -> None:
    cosine, dot = BiEncoderEmbedding(tiny_bi_encoder), BiEncoderEmbedding(tiny_dot_bi_encoder)
    with pytest.raises(IndexMismatchError, match="another encoder"):
        ChromaRetriever(ChromaVectorStore(embed_model=cosine), dot)
    with pytest.raises(IndexMismatchError, match="by 'cosine', and this encoder's are made for 'dot'"):
        ChromaRetriever(ChromaVectorStore(), dot)
    # What was asked for by name is meant.
    assert ChromaRetriever(ChromaVectorStore(metric="cosine"), dot).embed_model is dot
    assert ChromaRetriever(ChromaVectorStore(embed_model=cosine, assume_compatible=True), dot).embed_model is dot
    assert ChromaRetriever(ChromaVectorStore(embed_model=cosine)).embed_model is cosine


async def test_many_queries_are_one_search(store: ChromaVectorStore, searches: list[int]) -> None:
    for options in ({}, {"filters": words(2)}, {"mmr_threshold": 0.4}, {"similarity_top_k": 2}):
        retriever = ChromaRetriever(store, **options)  # type: ignore[arg-type]
        expected = [retriever.retrieve(query) for query in QUERIES]
        searches.clear()
        assert retriever.retrieve_many(QUERIES) == await retriever.aretrieve_many(QUERIES) == expected
        assert searches == [4, 4]
    searches.clear()
    assert ChromaRetriever(store).retrieve_many([]) == await ChromaRetriever(store).aretrieve_many([]) == []
    for wrong in ("a", ["a", ""], [None], None):
        with pytest.raises(InvalidInputError):
            ChromaRetriever(store).retrieve_many(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError):
            await ChromaRetriever(store).aretrieve_many(wrong)  # type: ignore[arg-type]
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
        for nodes in await both_ways(retriever, bundle):
            assert ids(nodes) == [hit.passage.id for hit in hits]
            assert [node.score for node in nodes] == pytest.approx([hit.score for hit in hits])
    narrow = ChromaRetriever(store, WordEmbedding(), similarity_top_k=2, mmr_threshold=0.0, mmr_prefetch_k=2)
    assert sorted(ids(narrow.retrieve(bundle))) == ids(ChromaRetriever(store, WordEmbedding()).retrieve(bundle))[:2]
    wide = ChromaRetriever(store, WordEmbedding(), similarity_top_k=2, mmr_threshold=0.0)
    assert ids(wide.retrieve(bundle)) == ["a", "d"]
    whole = RetrieveRerankRetriever(wide, TableScorer({"a": 0.0, "d": 1.0}), fetch_k=2)
    for nodes in await both_ways(whole, bundle):
        assert [(node.node_id, node.retrieval_rank) for node in nodes if isinstance(node, RerankedNode)] == [
            ("d", 2),
            ("a", 1),
        ]


# RetrieveRerankRetriever


async def test_an_index_is_a_first_stage_and_may_grow(store: ChromaVectorStore) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    scorer = TableScorer({**LOGITS, "new b": 9.0, "only": 0.0})
    retriever = RetrieveRerankRetriever(index, CrossEncoderRerank(scorer), top_n=1)
    bundle = QueryBundle("b")
    assert [ids(found) for found in await both_ways(retriever, bundle)] == [["b c"], ["b c"]]
    assert bundle.embedding is None  # the index's retriever writes it into the bundle that it gets
    assert len(scorer.calls[0]) == 5  # not the index's own default of two
    index.insert_nodes([text_node("new b")])
    assert (await retriever.aretrieve("b"))[0].node_id == "new b"
    summary = SummaryIndex([TextNode(text="only")])
    assert RetrieveRerankRetriever(summary, CrossEncoderRerank(scorer)).retrieve("b")[0].text == "only"


@pytest.mark.parametrize("first", [ListRetriever, SlowAsync])
@pytest.mark.parametrize("seconds", [(0.2, 0.0), (0.0, 0.2)])
async def test_neither_stage_blocks_the_event_loop(first: type[ListRetriever], seconds: tuple[float, float]) -> None:
    scorer = TableScorer(LOGITS, seconds=seconds[1])
    retriever = RetrieveRerankRetriever(first(scored("a", "c"), seconds=seconds[0]), CrossEncoderRerank(scorer))
    found, ticks = await ticks_during(retriever.aretrieve("q"))
    assert ids(found) == ["c", "a"]
    assert ticks >= 15


async def test_a_sync_first_stage_that_hangs_does_not_block_the_next_search() -> None:
    release = threading.Event()

    class Stuck(ListRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            if query_bundle.query_str == "stuck":
                release.wait(60)
            return super()._retrieve(query_bundle)

    retriever = RetrieveRerankRetriever(Stuck(scored("a", "c")), CrossEncoderRerank(TableScorer(LOGITS)))
    try:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(retriever.aretrieve("stuck"), 0.1)
        assert ids(await asyncio.wait_for(retriever.aretrieve("q"), 10)) == ["c", "a"]
    finally:
        release.set()


def test_threads_with_settings_of_their_own_share_both_stages(store: ChromaVectorStore) -> None:
    first, second = ChromaRetriever(store), CrossEncoderRerank(TableScorer(LOGITS, seconds=0.002))
    retrievers = [RetrieveRerankRetriever(first, second, fetch_k=5, top_n=number) for number in (1, 2, 3, 4)]
    lengths: list[tuple[int | None, int]] = []

    def work(retriever: RetrieveRerankRetriever) -> None:
        lengths.extend((retriever.top_n, len(retriever.retrieve("b"))) for _ in range(10))

    threads = [threading.Thread(target=work, args=(retriever,)) for retriever in retrievers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lengths) == 40
    assert all(asked == got for asked, got in lengths)


@pytest.mark.parametrize("first", [ListRetriever, SlowAsync])
async def test_the_stages_tell_what_they_do(first: type[ListRetriever]) -> None:
    kinds = ("RetrievalStartEvent", "RetrievalEndEvent", "ReRankStartEvent", "ReRankEndEvent")
    retriever = RetrieveRerankRetriever(first(scored("a", "c")), CrossEncoderRerank(TableScorer(LOGITS)), top_n=1)
    expected = [kinds[0], *kinds[:2], *kinds[2:], kinds[1]]  # the first stage and the re-ranking, within the whole
    with recorded(*kinds) as recorder:
        found = retriever.retrieve("q")
    assert recorder.names == expected
    end, rerank_start = recorder.events[-1], recorder.events[3]
    assert (end.nodes, rerank_start.top_n) == (found, 1)  # type: ignore[attr-defined]
    handler = SimpleSpanHandler()
    get_dispatcher().span_handlers.append(handler)
    try:
        with recorded(*kinds) as recorder:
            await retriever.aretrieve("q")  # here a sync first stage runs on another thread
        retriever.retrieve("q")
    finally:
        get_dispatcher().span_handlers.remove(handler)
    assert recorder.names == expected
    spans = {span.id_: span.parent_id for span in handler.completed_spans}
    roots = [id_.split("-")[0] for id_, parent in spans.items() if parent not in spans]
    assert sorted(roots) == ["RetrieveRerankRetriever.aretrieve", "RetrieveRerankRetriever.retrieve"]
    for name in ("CrossEncoderRerank._postprocess_nodes", "CrossEncoderRerank._apostprocess_nodes"):
        assert name in " ".join(spans)


# A query in other words


def by_query(query: str) -> list[str]:
    return {"a": ["c", "b b"], "plain": []}[query]


async def test_rewrites_over_any_retriever_and_a_bundle_with_an_embedding(store: ChromaVectorStore) -> None:
    asked: list[str] = []

    class Asked(ListRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            asked.append(query_bundle.query_str)
            return super()._retrieve(query_bundle)

    def ranks(nodes: list[NodeWithScore]) -> dict[str, Any]:
        return {node.node_id: node.retrieval_ranks for node in nodes if isinstance(node, RerankedNode)}

    retriever = RetrieveRerankRetriever(Asked(scored("a", "c")), TableScorer(LOGITS), rewrites=by_query)
    for nodes in await both_ways(retriever, "a"):
        assert ranks(nodes) == {"c": (2, 2, 2), "a": (1, 1, 1)}
    assert asked == ["a", "c", "b b"] * 2
    for nodes in await both_ways(retriever, "plain"):
        assert ranks(nodes) == {"c": (), "a": ()}
    given = QueryBundle("a", embedding=[0.0, 0.0, 1.0])
    over = RetrieveRerankRetriever(ChromaRetriever(store), TableScorer(LOGITS), fetch_k=9, rewrites=by_query)
    for nodes in await both_ways(over, given):
        assert ranks(nodes)["c"][:2] == (1, 1)


async def test_a_slow_rewriter_does_not_block_the_loop() -> None:
    threads: list[str] = []

    def slow(_: str) -> list[str]:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return ["b"]

    retriever = RetrieveRerankRetriever(ListRetriever(scored("a")), TableScorer({"a": 0.0}), rewrites=slow)
    nodes, ticks = await ticks_during(retriever.aretrieve("a"))
    assert (ids(nodes), threads[0].startswith("retrieve-rerank")) == (["a"], True)
    assert ticks > 15


@pytest.mark.parametrize("answer", ["text", [""], None])
async def test_a_function_that_does_not_give_a_list_of_texts(answer: Any) -> None:
    rewrites: Callable[[str], Any] = lambda _: answer  # noqa: E731
    retriever = RetrieveRerankRetriever(ListRetriever([]), TableScorer({}), rewrites=rewrites)
    with pytest.raises(InvalidInputError):
        retriever.retrieve("q")
    with pytest.raises(InvalidInputError):
        await retriever.aretrieve("q")
