"""What a trace shows of both stages, to LangChain's own tracers and to OpenTelemetry through LangSmith's client."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.tracers.schemas import Run

from retrieve_rerank import CrossEncoder, DegradedWarning, InvalidInputError, TruncationWarning
from retrieve_rerank.langchain import CrossEncoderReranker, RetrieveRerankRetriever
from tests.langchain.stubs import Broken, ListRetriever, TableCrossEncoder, ids

SCORES = {"low": -2.0, "high": 3.0, "middle": 0.0}
FACTS = {"model", "precision", "candidates", "scored", "truncated", "seconds", "degraded"}


class Tracer(BaseTracer):
    """Keeps the finished root runs."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


class AsyncTracer(AsyncBaseTracer):
    """The same of LangChain's async kind."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    async def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


def documents() -> list[Document]:
    return [Document(text, id=f"id-{text}") for text in SCORES]


def pipeline(model: Any = None, **options: Any) -> RetrieveRerankRetriever:
    reranker = CrossEncoderReranker(model=TableCrossEncoder(SCORES) if model is None else model)
    first = ListRetriever(documents=documents(), k=3)
    return RetrieveRerankRetriever(base_retriever=first, reranker=reranker, **options)


def traced(call: str, component: Any, given: Any) -> Run:
    """Return the root run of one call, sync or async; that it fails is part of it."""
    tracer = Tracer() if call == "sync" else AsyncTracer()
    config: Any = {"callbacks": [tracer]}
    with contextlib.suppress(ConnectionError):
        component.invoke(given, config) if call == "sync" else asyncio.run(component.ainvoke(given, config))
    assert len(tracer.roots) == 1
    assert not tracer.run_map  # every run that began has ended
    return tracer.roots[0]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_stages_are_children_with_inputs_outputs_and_facts(call: str) -> None:
    root = traced(call, pipeline(top_n=2), "q")
    assert (root.name, root.run_type, root.error) == ("RetrieveRerankRetriever", "retriever", None)
    first, second = root.child_runs
    assert (first.name, first.run_type, first.inputs) == ("ListRetriever", "retriever", {"query": "q"})
    assert ids(first.outputs["documents"]) == ["id-low", "id-high", "id-middle"]
    assert (second.name, second.run_type) == ("CrossEncoderReranker", "chain")
    assert second.inputs["query"] == "q"
    assert ids(second.inputs["documents"]) == ["id-low", "id-high", "id-middle"]
    assert ids(second.outputs["documents"]) == ["id-high", "id-middle"]
    assert second.outputs["documents"][0].metadata["rerank_logit"] == 3.0
    assert second.outputs.keys() == FACTS | {"documents"}
    assert [second.outputs[name] for name in ("model", "candidates", "scored", "truncated", "degraded")] == [
        "TableCrossEncoder",
        3,
        3,
        0,
        None,
    ]
    assert 0 <= second.outputs["seconds"] < 60
    assert ids(root.outputs["documents"]) == ["id-high", "id-middle"]


def test_the_facts_of_our_own_model(call: str, tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32", max_length=16)
    step = CrossEncoderReranker(model=model, top_n=1).as_runnable()
    given = [Document("paris"), Document("bread " * 40)]
    with pytest.warns(TruncationWarning):
        run = traced(call, step, {"query": "capital", "documents": given})
    facts = {name: run.outputs[name] for name in FACTS - {"seconds"}}
    assert facts == {
        "model": str(tiny_cross_encoder),
        "precision": "float32",
        "candidates": 2,
        "scored": 2,
        "truncated": 1,
        "degraded": None,
    }


def test_an_error_ends_the_runs(call: str) -> None:
    root = traced(call, pipeline(Broken(SCORES)), "q")
    first, second = root.child_runs
    assert first.error is None
    assert "server gone" in str(second.error)
    assert "server gone" in str(root.error)


def test_a_degraded_run_says_so(call: str) -> None:
    with pytest.warns(DegradedWarning):
        root = traced(call, pipeline(Broken(SCORES), on_error="retrieval_order"), "q")
    outputs = root.child_runs[1].outputs
    assert root.error is None
    assert outputs["degraded"] == "re-ranking failed: ConnectionError: server gone"
    assert (outputs["scored"], outputs["candidates"]) == (0, 3)
    assert ids(outputs["documents"]) == ["id-low", "id-high", "id-middle"]


def test_inside_the_incumbents_retriever(call: str) -> None:
    """C3: the stock compressor leaves nothing in the trace."""
    compressor = CrossEncoderReranker(model=TableCrossEncoder(SCORES), top_n=1)
    first = ListRetriever(documents=documents(), k=3)
    root = traced(call, ContextualCompressionRetriever(base_compressor=compressor, base_retriever=first), "q")
    assert [run.name for run in root.child_runs] == ["ListRetriever", "CrossEncoderReranker"]
    assert root.child_runs[1].outputs["candidates"] == 3


def test_a_compressor_called_in_a_step_of_a_chain_is_a_child_of_it(call: str) -> None:
    compressor = CrossEncoderReranker(model=TableCrossEncoder(SCORES), top_n=1)
    step = RunnableLambda(lambda query: list(compressor.compress_documents(documents(), query)), name="own step")
    root = traced(call, step, "q")
    assert [run.name for run in root.child_runs] == ["CrossEncoderReranker"]


async def test_events() -> None:
    events = [event async for event in pipeline(top_n=1).astream_events("q", version="v2")]
    assert [(event["event"], event["name"]) for event in events] == [
        ("on_retriever_start", "RetrieveRerankRetriever"),
        ("on_retriever_start", "ListRetriever"),
        ("on_retriever_end", "ListRetriever"),
        ("on_chain_start", "CrossEncoderReranker"),
        ("on_chain_end", "CrossEncoderReranker"),
        ("on_retriever_end", "RetrieveRerankRetriever"),
    ]
    assert all(event["parent_ids"] == [events[0]["run_id"]] for event in events[1:5])
    assert events[4]["data"]["output"]["candidates"] == 3


async def test_the_step_is_a_runnable_like_any_other() -> None:
    step = CrossEncoderReranker(model=TableCrossEncoder(SCORES), top_n=1).as_runnable()
    job: Any = {"query": "q", "documents": documents()}
    chain = RunnableLambda(lambda _: job) | step | (lambda found: [document.page_content for document in found])
    assert chain.invoke("x") == await chain.ainvoke("x") == ["high"]
    assert chain.batch(["x", "y"]) == [["high"], ["high"]]
    assert [chunk async for chunk in chain.astream("x")] == list(chain.stream("x")) == [["high"]]
    assert traced("sync", step.with_config(run_name="mine"), job).name == "mine"
    assert set(step.get_input_jsonschema()["$defs"]["RerankInput"]["properties"]) == {"query", "documents"}
    with pytest.raises(InvalidInputError, match="query is empty"):
        step.invoke({"query": "", "documents": []})


def test_opentelemetry_sees_the_stages(call: str) -> None:
    """By LangSmith's client, which comes with langchain-core, in its mode for OpenTelemetry alone."""
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    langsmith = pytest.importorskip("langsmith")
    if "tracing_mode" not in inspect.signature(langsmith.Client).parameters:
        pytest.skip("this version of LangSmith's client cannot send to OpenTelemetry alone")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    client = langsmith.Client(tracing_mode="otel", otel_tracer_provider=provider)
    config: Any = {"callbacks": [LangChainTracer(client=client)]}
    retriever = pipeline()
    retriever.invoke("q", config) if call == "sync" else asyncio.run(retriever.ainvoke("q", config))
    client.flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"RetrieveRerankRetriever", "ListRetriever", "CrossEncoderReranker"}
    parent = spans["RetrieveRerankRetriever"].context.span_id
    assert spans["ListRetriever"].parent.span_id == spans["CrossEncoderReranker"].parent.span_id == parent
    assert '"candidates": 3' in str(spans["CrossEncoderReranker"].attributes).replace('":3', '": 3')
