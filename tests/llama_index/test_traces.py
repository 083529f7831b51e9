"""What a trace shows of both stages: spans, paired events with the facts, and both in OpenTelemetry."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span.base import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import PrivateAttr

from retrieve_rerank import CrossEncoder, DegradedWarning, TruncationWarning
from retrieve_rerank.llama_index import CrossEncoderRerank, RetrieveRerankRetriever
from tests.llama_index.stubs import BrokenScorer, ListRetriever, Recorder, TableScorer, recorded, scored

RERANK = ("ReRankStartEvent", "ReRankEndEvent")
LOGITS = {"a": -1.0, "b": 2.0, "c": 0.0}
FACTS = {"model", "precision", "candidates", "scored", "truncated", "seconds", "degraded"}


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rerank(call: str, reranker: CrossEncoderRerank, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
    if call == "sync":
        return reranker.postprocess_nodes(nodes, query_str="q")
    return asyncio.run(reranker.apostprocess_nodes(nodes, query_str="q"))


def retrieve(call: str, retriever: RetrieveRerankRetriever) -> list[NodeWithScore]:
    return retriever.retrieve("q") if call == "sync" else asyncio.run(retriever.aretrieve("q"))


def test_the_end_event_has_the_facts(call: str) -> None:
    with recorded(*RERANK) as recorder:
        found = rerank(call, CrossEncoderRerank(TableScorer(LOGITS), top_n=1), nodes := scored("a", "b", "c"))
    assert recorder.names == list(RERANK)
    start, end = recorder.events
    assert (start.query, start.top_n, start.model_name, start.nodes) == ("q", 1, "TableScorer", nodes)
    assert end.nodes == found
    tags = recorder.events[1].tags
    assert tags.keys() == FACTS
    assert {name: tags[name] for name in FACTS - {"seconds"}} == {
        "model": "TableScorer",
        "precision": None,
        "candidates": 3,
        "scored": 3,
        "truncated": 0,
        "degraded": None,
    }
    assert 0 <= tags["seconds"] < 60


def test_the_facts_of_our_own_model(call: str, tiny_cross_encoder: Path) -> None:
    reranker = CrossEncoderRerank(CrossEncoder(tiny_cross_encoder, precision="float32", max_length=16))
    with recorded(*RERANK) as recorder, pytest.warns(TruncationWarning):
        rerank(call, reranker, scored("paris", "bread " * 40))
    tags = recorder.events[1].tags
    assert (tags["model"], tags["precision"], tags["truncated"]) == (str(tiny_cross_encoder), "float32", 1)


def test_an_empty_list_is_paired_and_counted(call: str) -> None:
    """L5: the peer starts and never ends."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = CrossEncoderRerank(TableScorer(LOGITS), callback_manager=CallbackManager([debug]))
    with recorded(*RERANK) as recorder:
        assert rerank(call, reranker, []) == []
    assert recorder.names == list(RERANK)
    assert (recorder.events[1].tags["candidates"], recorder.events[1].tags["scored"]) == (0, 0)
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.RERANKING)] == [2]


@pytest.mark.parametrize("secret", [False, True])
def test_an_error_is_in_the_end_event_without_its_secrets(call: str, secret: bool) -> None:
    class Telling:
        def score(self, query: str, texts: list[str]) -> Any:
            raise PermissionError("refused: api_key=abc123")

    debug = LlamaDebugHandler(print_trace_on_end=False)
    scorer = Telling() if secret else BrokenScorer()
    reranker = CrossEncoderRerank(scorer, callback_manager=CallbackManager([debug]))
    with recorded(*RERANK) as recorder, pytest.raises((RuntimeError, PermissionError)):
        rerank(call, reranker, scored("a"))
    assert recorder.names == list(RERANK)
    told = "PermissionError: refused: api_key=***" if secret else "RuntimeError: out of memory"
    assert recorder.events[1].tags == {"error": told}
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.RERANKING)] == [2]


def test_a_degraded_call_says_so_in_event_and_nodes(call: str) -> None:
    reranker = CrossEncoderRerank(BrokenScorer(), on_error="retrieval_order", score_threshold=1.0)
    with recorded(*RERANK) as recorder, pytest.warns(DegradedWarning) as warned:
        found: Any = rerank(call, reranker, [*scored("a", "b"), NodeWithScore(node=TextNode(text="c"))])
    assert len(warned) == 1
    told = "re-ranking failed: RuntimeError: out of memory"
    assert recorder.events[1].tags["degraded"] == told
    assert [
        (node.text, node.score, node.retrieval_score, node.logit, node.rerank_rank, node.degraded) for node in found
    ] == [
        ("a", None, 0.9, None, 1, told),
        ("b", None, 0.8, None, 2, told),
        ("c", None, None, None, 3, told),
    ]
    found[0].model_dump_json()


# OpenTelemetry: no bridge comes with LlamaIndex, so this is one, over the public hooks only.


class OpenTelemetrySpan(BaseSpan):
    span: Any


class OpenTelemetryBridge(BaseSpanHandler[OpenTelemetrySpan]):
    """Turns LlamaIndex's spans into OpenTelemetry's."""

    _tracer: Any = PrivateAttr()

    def __init__(self, tracer: Any) -> None:
        super().__init__()
        self._tracer = tracer

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> OpenTelemetrySpan:
        from opentelemetry.trace import set_span_in_context

        parent = self.open_spans.get(parent_span_id or "")
        context = None if parent is None else set_span_in_context(parent.span)
        span = self._tracer.start_span(id_.rsplit("-", 5)[0], context=context)
        return OpenTelemetrySpan(id_=id_, parent_id=parent_span_id, span=span)

    def prepare_to_exit_span(self, id_: str, *_: Any, **__: Any) -> OpenTelemetrySpan:
        self.open_spans[id_].span.end()
        return self.open_spans[id_]

    def prepare_to_drop_span(self, id_: str, *_: Any, err: BaseException | None = None, **__: Any) -> OpenTelemetrySpan:
        self.open_spans[id_].span.record_exception(err)
        return self.prepare_to_exit_span(id_)


class FactsBridge(Recorder):
    """Puts the facts of re-rankings on the span that they happened in."""

    bridge: OpenTelemetryBridge

    def handle(self, event: BaseEvent, **kwargs: object) -> None:
        if event.class_name() == RERANK[1]:
            facts = {f"rerank.{name}": value for name, value in event.tags.items() if value is not None}
            self.bridge.open_spans[str(event.span_id)].span.set_attributes(facts)


@contextmanager
def exported() -> Iterator[Any]:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    bridge = OpenTelemetryBridge(provider.get_tracer("test"))
    root, facts = get_dispatcher(), FactsBridge(kinds=(), bridge=bridge)
    root.span_handlers.append(bridge)
    root.event_handlers.append(facts)
    try:
        yield exporter
    finally:
        root.span_handlers.remove(bridge)
        root.event_handlers.remove(facts)


def test_opentelemetry_sees_the_stages(call: str) -> None:
    retriever = RetrieveRerankRetriever(
        ListRetriever(scored("a", "b", "c"), 3), CrossEncoderRerank(TableScorer(LOGITS))
    )
    with exported() as exporter:
        retrieve(call, retriever)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    names = {span.context.span_id: name for name, span in spans.items()}

    def path(name: str) -> list[str]:
        parent = spans[name].parent
        return [*([] if parent is None else path(names[parent.span_id])), name]

    rerank = [name for name in spans if name.startswith("CrossEncoderRerank")]
    first = [name for name in spans if name.startswith("ListRetriever")]
    assert len(rerank) == 1
    assert (
        path(rerank[0])[0] == path(first[0])[0] == f"RetrieveRerankRetriever.{'a' if call == 'async' else ''}retrieve"
    )
    attributes = dict(spans[rerank[0]].attributes)
    assert (attributes["rerank.candidates"], attributes["rerank.model"]) == (3, "TableScorer")


def test_a_pipelines_callbacks_hear_of_the_re_ranking() -> None:
    """The re-ranker has none of its own; the caller's object stays as it was."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = CrossEncoderRerank(TableScorer(LOGITS))
    first = ListRetriever(scored("a", "b"))
    retriever = RetrieveRerankRetriever(first, reranker, callback_manager=CallbackManager([debug]))
    retriever.retrieve("q")
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.RERANKING)] == [2]
    assert reranker.callback_manager.handlers == []
