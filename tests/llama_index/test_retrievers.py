from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import FilterOperator

from retrieve_rerank import CrossEncoder, IndexMismatchError, InvalidInputError
from retrieve_rerank.llama_index import (
    BiEncoderEmbedding,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    HybridRetriever,
    RerankedNode,
    RetrieveRerankRetriever,
)
from tests.llama_index.stubs import ListRetriever, TableScorer, WordEmbedding, recorded, scored, text_node, ticks_during

LOGITS = {text: float(position) for position, text in enumerate(["a", "a b", "b b", "c", "b c"])}


@pytest.fixture
def store() -> ChromaVectorStore:
    store = ChromaVectorStore(metric="dot", embed_model=WordEmbedding())
    nodes = [text_node(text, words=len(text.split())) for text in LOGITS]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["words"]  # the models read the bare text
    store.add(WordEmbedding()(nodes))
    return store


def results(nodes: list[NodeWithScore]) -> list[tuple[str, float | None]]:
    return [(node.node_id, node.score) for node in nodes]


# ChromaRetriever


async def test_filters_hold(store: ChromaVectorStore) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="words", value=1)])
    retriever = ChromaRetriever(store, filters=filters)
    assert {node.node_id for node in retriever.retrieve("b")} == {"a", "c"}
    assert {node.node_id for node in await retriever.aretrieve("b")} == {"a", "c"}
    empty = MetadataFilter(key="words", value=None, operator=FilterOperator.IS_EMPTY)
    with pytest.raises(InvalidInputError, match="lack a key"):
        ChromaRetriever(store, filters=MetadataFilters(filters=[empty]))


async def test_what_the_bundle_says_to_embed_is_embedded_and_the_bundle_left_alone(store: ChromaVectorStore) -> None:
    retriever = ChromaRetriever(store, similarity_top_k=1)
    for bundle, best in (
        (QueryBundle("c"), {"c", "b c"}),
        (QueryBundle("c", custom_embedding_strs=["a"]), {"a", "a b"}),
        (QueryBundle("c", embedding=[0.0, 1.0, 0.0]), {"b b"}),
    ):
        embedding = bundle.embedding
        assert retriever.retrieve(bundle)[0].node_id in best
        assert (await retriever.aretrieve(bundle))[0].node_id in best
        assert bundle.embedding == embedding


@pytest.mark.parametrize("query", ["", "  ", QueryBundle("q", custom_embedding_strs=[" "])])
async def test_an_empty_query_is_refused(store: ChromaVectorStore, query: str) -> None:
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


@pytest.mark.parametrize(
    "wrong",
    [{"vector_store": "store"}, {"embed_model": None}, {"embed_model": "local"}, {"similarity_top_k": 0}],
)
def test_arguments_that_cannot_be_used_are_refused(wrong: dict[str, object]) -> None:
    arguments = {"vector_store": ChromaVectorStore(), "embed_model": WordEmbedding(), **wrong}
    with pytest.raises(InvalidInputError):
        ChromaRetriever(**arguments)  # type: ignore[arg-type]


# RetrieveRerankRetriever


class SlowAsync(ListRetriever):
    """Has an async method of its own."""

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await asyncio.sleep(self.seconds)
        return self.nodes[: self.similarity_top_k]


async def test_candidates_are_fetched_ordered_and_cut(store: ChromaVectorStore) -> None:
    scorer = TableScorer(LOGITS)
    retriever = RetrieveRerankRetriever(ChromaRetriever(store), CrossEncoderRerank(scorer), fetch_k=3, top_n=2)
    found = retriever.retrieve("b b c")
    assert [sorted(call) for call in scorer.calls] == [["a b", "b b", "b c"]]
    assert [
        (node.node_id, node.logit, node.retrieval_rank, node.retrieval_score, node.rerank_rank)
        for node in found
        if isinstance(node, RerankedNode)
    ] == [("b c", 4.0, 2, 3.0, 1), ("b b", 2.0, 1, 4.0, 2)]
    assert await retriever.aretrieve("b b c") == found


def test_the_defaults_are_100_and_5(store: ChromaVectorStore) -> None:
    assert ChromaRetriever(store).similarity_top_k == HybridRetriever([ChromaRetriever(store)]).similarity_top_k == 100
    retriever = RetrieveRerankRetriever(ChromaRetriever(store), CrossEncoderRerank(TableScorer(LOGITS)))
    assert (retriever.fetch_k, retriever.top_n, retriever.reranker.top_n) == (100, None, 5)


async def test_what_was_given_is_not_modified(store: ChromaVectorStore) -> None:
    first, second = ChromaRetriever(store, similarity_top_k=1), CrossEncoderRerank(TableScorer(LOGITS), top_n=1)
    retriever = RetrieveRerankRetriever(first, second, fetch_k=4, top_n=3)
    bundle = QueryBundle("b")
    assert len(retriever.retrieve(bundle)) == len(await retriever.aretrieve(bundle)) == 3
    assert (first.similarity_top_k, second.top_n, bundle.embedding) == (1, 1, None)
    assert len(first.retrieve("b")) == 1


@pytest.mark.parametrize("attribute", ["similarity_top_k", "_similarity_top_k", None])
def test_any_retriever_is_asked_for_fetch_k_if_it_can_be(attribute: str | None) -> None:
    class Other(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return scored(*LOGITS)[: getattr(self, attribute) if attribute else 9]

    other = Other()
    if attribute:
        setattr(other, attribute, 1)
    scorer = TableScorer(LOGITS)
    RetrieveRerankRetriever(other, CrossEncoderRerank(scorer), fetch_k=4).retrieve("q")
    assert scorer.calls == [list(LOGITS)[:4]]
    assert attribute is None or getattr(other, attribute) == 1


def test_a_read_only_top_k_is_set_where_it_is_kept() -> None:
    class ReadOnly(ListRetriever):
        def __init__(self, nodes: list[NodeWithScore]) -> None:
            BaseRetriever.__init__(self)
            self.nodes, self._similarity_top_k, self.seconds = nodes, 1, 0.0

        @property
        def similarity_top_k(self) -> int:  # type: ignore[override]
            return self._similarity_top_k

    scorer = TableScorer(LOGITS)
    RetrieveRerankRetriever(ReadOnly(scored(*LOGITS)), CrossEncoderRerank(scorer), fetch_k=3).retrieve("q")
    assert scorer.calls == [list(LOGITS)[:3]]


async def test_an_index_is_a_first_stage_and_may_grow(store: ChromaVectorStore) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    scorer = TableScorer({**LOGITS, "new b": 9.0, "only": 0.0})
    retriever = RetrieveRerankRetriever(index, CrossEncoderRerank(scorer), top_n=1)
    bundle = QueryBundle("b")
    assert retriever.retrieve(bundle)[0].node_id == (await retriever.aretrieve(bundle))[0].node_id == "b c"
    assert bundle.embedding is None  # the index's retriever writes it into the bundle that it gets
    assert len(scorer.calls[0]) == 5  # not the index's own default of two
    index.insert_nodes([text_node("new b")])
    assert (await retriever.aretrieve("b"))[0].node_id == "new b"
    summary = SummaryIndex([TextNode(text="only")])
    assert RetrieveRerankRetriever(summary, CrossEncoderRerank(scorer)).retrieve("b")[0].text == "only"


async def test_a_model_makes_a_reranker(tiny_cross_encoder: Path) -> None:
    """C6: as LangChain's retriever takes one."""
    first, scorer = ListRetriever(scored("paris", "rome")), TableScorer({"paris": 0.0, "rome": 1.0})
    encoder = CrossEncoder(tiny_cross_encoder)
    expected = CrossEncoderRerank(encoder).postprocess_nodes(scored("paris", "rome"), query_str="capital")
    assert RetrieveRerankRetriever(first, encoder).retrieve("capital") == expected
    for model in (str(tiny_cross_encoder), tiny_cross_encoder):
        assert await RetrieveRerankRetriever(first, model).aretrieve("capital") == expected
    assert [node.node_id for node in RetrieveRerankRetriever(first, scorer).retrieve("q")] == ["rome", "paris"]


@pytest.mark.parametrize(
    ("own", "whole", "kept"), [(None, 0.6, "b"), (0.9, 0.4, "bc"), (0.9, 0.0, "bca"), (0.6, None, "b"), (None, 1.0, "")]
)
async def test_the_retrievers_threshold_goes_before_the_rerankers(
    own: float | None, whole: float | None, kept: str
) -> None:
    reranker = CrossEncoderRerank(TableScorer({"a": -1.0, "b": 1.0, "c": 0.0}), score_threshold=own)
    retriever = RetrieveRerankRetriever(ListRetriever(scored(*"abc")), reranker, score_threshold=whole)
    for found in (retriever.retrieve("q"), await retriever.aretrieve("q")):
        assert "".join(node.node_id for node in found) == kept
    assert reranker.score_threshold == own


@pytest.mark.parametrize("query", ["", " "])
async def test_an_empty_query_reaches_no_stage(query: str) -> None:
    scorer, first = TableScorer(LOGITS), ListRetriever([])
    retriever = RetrieveRerankRetriever(first, CrossEncoderRerank(scorer))
    with pytest.raises(InvalidInputError, match="empty"):
        retriever.retrieve(query)
    with pytest.raises(InvalidInputError, match="empty"):
        await retriever.aretrieve(query)
    assert scorer.calls == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"retriever": "r"},
        {"reranker": ""},
        {"reranker": None},
        {"reranker": ListRetriever([])},
        {"fetch_k": 0},
        {"top_n": 0},
        {"score_threshold": 1.5},
        {"time_budget": 0},
        {"on_error": "never"},
    ],
)
def test_wrong_stages_are_refused(wrong: dict[str, object]) -> None:
    arguments = {"retriever": ListRetriever([]), "reranker": CrossEncoderRerank(TableScorer({})), **wrong}
    with pytest.raises(InvalidInputError):
        RetrieveRerankRetriever(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [ListRetriever, SlowAsync])
@pytest.mark.parametrize("seconds", [(0.2, 0.0), (0.0, 0.2)])
async def test_neither_stage_blocks_the_event_loop(first: type[ListRetriever], seconds: tuple[float, float]) -> None:
    scorer = TableScorer(LOGITS, seconds=seconds[1])
    retriever = RetrieveRerankRetriever(first(scored("a", "c"), seconds=seconds[0]), CrossEncoderRerank(scorer))
    found, ticks = await ticks_during(retriever.aretrieve("q"))
    assert [node.node_id for node in found] == ["c", "a"]
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
        assert [node.node_id for node in await asyncio.wait_for(retriever.aretrieve("q"), 10)] == ["c", "a"]
    finally:
        release.set()


def test_threads_with_settings_of_their_own_share_both_stages(store: ChromaVectorStore) -> None:
    first, second = ChromaRetriever(store), CrossEncoderRerank(TableScorer(LOGITS, seconds=0.002))
    retrievers = [RetrieveRerankRetriever(first, second, fetch_k=5, top_n=number) for number in (1, 2, 3, 4)]
    lengths: list[tuple[int, int]] = []

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
    assert recorder.events[-1].nodes == found
    assert recorder.events[3].top_n == 1
    with recorded(*kinds) as recorder:
        await retriever.aretrieve("q")
    assert recorder.names == expected


@pytest.mark.parametrize("first", [ListRetriever, SlowAsync])
async def test_the_spans_of_both_stages_lie_within_the_whole(first: type[ListRetriever]) -> None:
    retriever = RetrieveRerankRetriever(first(scored("a", "c")), CrossEncoderRerank(TableScorer(LOGITS)))
    handler = SimpleSpanHandler()
    get_dispatcher().span_handlers.append(handler)
    try:
        retriever.retrieve("q")
        await retriever.aretrieve("q")  # here a sync first stage runs on another thread
    finally:
        get_dispatcher().span_handlers.remove(handler)
    spans = {span.id_: span.parent_id for span in handler.completed_spans}
    roots = [id_ for id_, parent in spans.items() if parent not in spans]
    assert [root.split("-")[0] for root in roots] == [
        "RetrieveRerankRetriever.retrieve",
        "RetrieveRerankRetriever.aretrieve",
    ]
    names = " ".join(spans)
    assert "CrossEncoderRerank._postprocess_nodes" in names
    assert "CrossEncoderRerank._apostprocess_nodes" in names
