"""Several first stages as one LlamaIndex retriever."""

from __future__ import annotations

import time
from typing import Any

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from retrieve_rerank.llama_index import (
    ChromaRetriever,
    ChromaVectorStore,
    CrossEncoderRerank,
    FusedNode,
    HybridRetriever,
    RerankedNode,
)
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
