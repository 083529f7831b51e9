"""Several first stages as one LlamaIndex retriever."""

from __future__ import annotations

import time
from typing import Any

import pytest
from llama_index.core import Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import Document, NodeWithScore, QueryBundle

from retrieve_rerank import DegradedWarning, InvalidInputError, RetrieveRerankError, fuse
from retrieve_rerank.llama_index import (
    BM25Retriever,
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    FusedNode,
    HybridRetriever,
    RerankedNode,
    RetrieveRerankRetriever,
)
from tests.core.stubs import found
from tests.llama_index.stubs import (
    ListRetriever,
    SlowAsync,
    TableScorer,
    WordEmbedding,
    both_ways,
    recorded,
    scored,
    text_node,
    ticks_during,
)


def listed(ids: str, **options: Any) -> ListRetriever:
    return ListRetriever(scored(*ids), similarity_top_k=9, **options)


def ids(nodes: list[NodeWithScore]) -> str:
    return "".join(node.node_id for node in nodes)


def ranks(nodes: list[NodeWithScore]) -> list[Any]:
    return [node.retrieval_ranks for node in nodes if isinstance(node, (FusedNode, RerankedNode))]


class Down(BaseRetriever):
    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error or ConnectionError("no server")

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        raise self.error


async def test_it_is_the_cores_fusion() -> None:
    options: dict[str, Any] = {"weights": [2, 1.5], "rrf_k": 10}
    hybrid = HybridRetriever([listed("abcd"), listed("cbe")], **options)
    expected = fuse([found("abcd"), found("cbe")], **options)
    for nodes in await both_ways(hybrid, "q"):
        assert ids(nodes) == "".join(hit.passage.text for hit in expected)
        assert {type(node) for node in nodes} == {FusedNode}
        assert [(n.score, n.retrieval_rank, n.retrieval_ranks) for n in nodes if isinstance(n, FusedNode)] == [
            (hit.score, hit.rank, hit.retrieval_ranks) for hit in expected
        ]


async def test_what_the_retrievers_return_is_not_modified() -> None:
    """F2: the peer writes the fused scores into the source nodes."""
    retrievers = [listed("ab"), listed("ba")]
    before = [(node, node.score, node.node.hash) for retriever in retrievers for node in retriever.nodes]
    for nodes in await both_ways(HybridRetriever(retrievers), "q"):
        assert nodes[0].node is retrievers[0].nodes[0].node
    for node, score, hash_ in before:
        assert (node.score, node.node.hash, type(node)) == (score, hash_, NodeWithScore)


async def test_no_language_model_is_needed_or_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: the peer asks for Settings.llm, and so for an API key, even where it has nothing to generate."""

    def touched(*_: object) -> None:
        raise AssertionError("the language model was asked for")

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("llama_index.core.settings.resolve_llm", touched)
    monkeypatch.setattr(Settings, "_llm", None)
    store = ChromaVectorStore(metric="dot", embed_model=WordEmbedding())
    store.add(WordEmbedding()([text_node("a"), text_node("b")]))
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    hybrid = HybridRetriever([index, ChromaRetriever(store), listed("a")])
    for nodes in await both_ways(hybrid, "a"):
        assert nodes[0].node_id == "a"
    assert Settings._llm is None


async def test_any_retriever_or_index_is_asked_for_the_depth_and_left_alone() -> None:
    store = ChromaVectorStore(metric="dot", embed_model=WordEmbedding())
    store.add(WordEmbedding()([text_node(text) for text in ("a a a", "a a", "a", "b")]))
    index = VectorStoreIndex.from_vector_store(store, embed_model=WordEmbedding())
    given: list[Any] = [
        index,
        index.as_retriever(similarity_top_k=1),
        ChromaRetriever(store, similarity_top_k=1),
        SummaryIndex([text_node("b")]),
    ]
    for nodes in await both_ways(HybridRetriever(given, similarity_top_k=3), "a"):
        assert [node.node_id for node in nodes] == ["a a a", "a a", "a"]
        assert ranks(nodes) == [(1, 1, 1, None), (2, 2, 2, None), (3, 3, 3, None)]
    assert given[1].similarity_top_k == given[2].similarity_top_k == 1


async def test_every_retriever_embeds_the_query_itself() -> None:
    """LlamaIndex's retrievers write their embedding into the query: of another model, it would be the wrong one."""

    class Backwards(WordEmbedding):
        def _count(self, text: str) -> list[float]:
            return super()._count(text)[::-1]

    def over(model: BaseEmbedding) -> BaseRetriever:
        store = ChromaVectorStore(metric="dot")
        store.add(model([text_node("a"), text_node("c")]))
        return VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever()

    bundle = QueryBundle("a")
    for nodes in await both_ways(HybridRetriever([over(WordEmbedding()), over(Backwards())]), bundle):
        assert ranks(nodes) == [(1, 1), (2, 2)]
        assert ids(nodes) == "ac"
    assert bundle.embedding is None


@pytest.mark.parametrize("kind", [ListRetriever, SlowAsync])
async def test_retrievers_run_at_the_same_time(kind: type[ListRetriever]) -> None:
    hybrid = HybridRetriever([kind(scored("a"), 2, 0.3), ListRetriever(scored("b"), 2, 0.3)])
    start = time.perf_counter()
    assert ids(hybrid.retrieve("q")) == "ab"
    assert 0.29 < time.perf_counter() - start < 0.55
    start = time.perf_counter()
    nodes, ticks = await ticks_during(hybrid.aretrieve("q"))
    assert 0.29 < time.perf_counter() - start < 0.55
    assert ids(nodes) == "ab"
    assert ticks > 20


async def test_nodes_are_merged_by_id_or_by_text() -> None:
    one = ListRetriever([NodeWithScore(node=text_node("1", "same")), NodeWithScore(node=text_node("2", "same"))])
    two = ListRetriever([NodeWithScore(node=text_node("3", "same")), NodeWithScore(node=text_node("1", "other"))])
    for nodes in await both_ways(HybridRetriever([one, two]), "q"):
        assert (ids(nodes), ranks(nodes)) == ("132", [(1, 2), (None, 1), (2, None)])
        assert nodes[0].text == "same"
    two.nodes.pop()
    for nodes in await both_ways(HybridRetriever([one, two], merge="text"), "q"):
        assert (ids(nodes), ranks(nodes)) == ("1", [(1, 1)])


async def test_a_failure_is_raised_or_skipped() -> None:
    failing = HybridRetriever([listed("a", seconds=0.1), Down()])
    with pytest.raises(ConnectionError, match="no server"):
        failing.retrieve("q")
    with pytest.raises(ConnectionError, match="no server"):
        await failing.aretrieve("q")
    hybrid = HybridRetriever([Down(), listed("ab")], on_error="skip")
    with pytest.warns(DegradedWarning, match=r"retriever 1 \(Down\): ConnectionError: no server") as warned:
        results = await both_ways(hybrid, "q")
    assert len(warned) == 2
    for nodes in results:
        assert (ids(nodes), ranks(nodes)) == ("ab", [(None, 1), (None, 2)])
    with pytest.raises(RetrieveRerankError, match="every retriever failed"):
        HybridRetriever([Down(), Down()], on_error="skip").retrieve("q")


async def test_the_ranks_in_every_list_live_through_re_ranking() -> None:
    scorer = TableScorer({letter: float(place) for place, letter in enumerate("abcd")})
    hybrid = HybridRetriever([listed("abcd"), listed("bad")], similarity_top_k=1)
    retriever = RetrieveRerankRetriever(hybrid, CrossEncoderRerank(scorer), fetch_k=3, top_n=2)
    fused = {node.node_id: node for node in HybridRetriever(hybrid.retrievers, similarity_top_k=3).retrieve("q")}
    for nodes in await both_ways(retriever, "q"):
        assert ids(nodes) == "cb"
        for node in nodes:
            before = fused[node.node_id]
            assert isinstance(node, RerankedNode)
            assert isinstance(before, FusedNode)
            assert (node.retrieval_ranks, node.retrieval_rank) == (before.retrieval_ranks, before.retrieval_rank)
            assert node.retrieval_score == before.score
        again = CrossEncoderRerank(scorer).postprocess_nodes(nodes, query_str="q")
        assert ranks(again) == ranks(nodes)
    assert hybrid.similarity_top_k == 1


def test_the_rank_is_the_first_stages_where_a_postprocessor_came_between() -> None:
    nodes = HybridRetriever([listed("abc")]).retrieve("q")
    for node, score in zip(nodes, [0.1, 0.9, 0.8], strict=True):
        node.score = score
    kept = SimilarityPostprocessor(similarity_cutoff=0.5).postprocess_nodes(nodes)
    reranked = CrossEncoderRerank(TableScorer({"b": 0.0, "c": 1.0})).postprocess_nodes(kept, query_str="q")
    assert [(node.node_id, node.retrieval_rank) for node in reranked if isinstance(node, RerankedNode)] == [
        ("c", 3),
        ("b", 2),
    ]


async def test_every_retriever_reports_under_the_hybrids_span() -> None:
    handler = SimpleSpanHandler()
    dispatcher = get_dispatcher()
    dispatcher.span_handlers.append(handler)
    try:
        for call in ("retrieve", "aretrieve"):
            hybrid = HybridRetriever([listed("a"), SlowAsync(scored("b"))])
            with recorded("RetrievalStartEvent", "RetrievalEndEvent") as recorder:
                result = getattr(hybrid, call)(f"of {call}")
                await result if call == "aretrieve" else None
            # Not those of a retriever that an earlier test gave up.
            names = [event.class_name() for event in recorder.events if f"of {call}" in str(event)]
            assert sorted(names) == ["RetrievalEndEvent"] * 3 + ["RetrievalStartEvent"] * 3
    finally:
        dispatcher.span_handlers.remove(handler)
    spans = {span.id_: span for span in handler.completed_spans}
    for name in ("ListRetriever.retrieve-", "SlowAsync.retrieve-", "SlowAsync.aretrieve-"):
        found_spans = [span for id_, span in spans.items() if id_.startswith(name)]
        assert found_spans
        for span in found_spans:
            assert spans[str(span.parent_id)].id_.startswith("HybridRetriever.")


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ([], {}, "at least one"),
        ("ab", {}, "must be a list of retrievers, got str"),
        (None, {}, "got NoneType"),
        ([listed("a"), "b"], {}, r"retrievers\[1\] must be a LlamaIndex retriever or an index, got str"),
        ([listed("a")], {"weights": [1, 2]}, "one weight a retriever: 1, got 2"),
        ([listed("a")], {"rrf_k": -1}, "rrf_k"),
        ([listed("a")], {"similarity_top_k": 0}, "similarity_top_k"),
        ([listed("a")], {"merge": "hash"}, "merge"),
        ([listed("a")], {"on_error": "retrieval_order"}, "on_error"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        HybridRetriever(arguments, **options)


async def test_an_empty_query_asks_nobody() -> None:
    hybrid = HybridRetriever([Down()])
    with pytest.raises(InvalidInputError, match="empty"):
        hybrid.retrieve(" ")
    with pytest.raises(InvalidInputError, match="empty"):
        await hybrid.aretrieve("")


async def test_retrievers_that_made_their_own_ids_are_told_of() -> None:
    """Else every passage comes twice, without a word."""
    texts = ["a paris", "b paris", "c paris"]
    documents, split = [Document(text=text) for text in texts], SentenceSplitter()
    dense = VectorStoreIndex.from_documents(documents, embed_model=WordEmbedding(), transformations=[split])
    words = BM25Retriever(split.get_nodes_from_documents(documents))
    with pytest.warns(UserWarning, match='the same texts under different ids.*merge="text"') as warned:
        twice = await both_ways(HybridRetriever([dense, words]), "a paris")
    assert len(warned) == 2  # one a call
    same_ids = BM25Retriever(list(dense.docstore.docs.values()))
    once = [
        *await both_ways(HybridRetriever([dense, words], merge="text"), "a paris"),
        *await both_ways(HybridRetriever([dense, same_ids]), "a paris"),
    ]
    for results, times in ((twice, 2), (once, 1)):
        for nodes in results:
            assert sorted(node.get_content() for node in nodes) == sorted(texts * times)


class ByQuery(BaseRetriever):
    """Finds one text, under an id of its own; for some queries nothing."""

    def __init__(self, id_: str, queries: str) -> None:
        super().__init__()
        self.id_, self.queries = id_, queries

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = NodeWithScore(node=text_node(self.id_, "the text"), score=1.0)
        return [found] if query_bundle.query_str in self.queries else []


async def test_what_is_merged_by_text_is_one_for_rewrites_too() -> None:
    hybrid = HybridRetriever([ByQuery("d", "a"), ByQuery("w", "ab")], merge="text")
    reranker = CrossEncoderRerank(TableScorer({"the text": 1.0}))
    retriever = RetrieveRerankRetriever(hybrid, reranker, fetch_k=1, rewrites=lambda query: ["b"])
    assert [node.node_id for node in retriever.retrieve("a")] == ["d"]
    assert [node.node_id for node in await retriever.aretrieve("a")] == ["d"]
