"""A scorer that fails at any batch, seen through every door: nothing is lost, nothing hangs, the next call works."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from retrieve_rerank import CrossEncoder, DegradedWarning, Hit, ModelError, Passage, RetrieveRerank
from retrieve_rerank.langchain import CrossEncoderReranker
from retrieve_rerank.langchain import RetrieveRerankRetriever as LangChainRetriever
from retrieve_rerank.llama_index import CrossEncoderRerank
from retrieve_rerank.llama_index import RetrieveRerankRetriever as LlamaIndexRetriever
from tests.langchain.stubs import ListRetriever as LangChainFirst
from tests.llama_index.stubs import ListRetriever as LlamaIndexFirst

TEXTS = [f"t{number}" for number in range(48)]  # three batches of a scorer that has a time budget
RANKED = list(reversed(TEXTS))
BATCHES = {"first": 0, "middle": 1, "last": 2}
PLENTY = 60.0  # a budget that is never used up, but for which texts are scored in batches


class OutOfMemory(RuntimeError):
    """What the scorer raises."""


@dataclass
class Fault:
    """Scores later texts higher, but for one batch; after that it is well again."""

    kind: str = "none"
    at: int = 0
    calls: int = 0
    go_on: threading.Event = field(default_factory=threading.Event)

    def strike(self) -> str:
        """Return what to do at this batch."""
        number, self.calls = self.calls, self.calls + 1
        kind = self.kind if number == self.at else "none"
        if kind == "raises":
            raise OutOfMemory("no memory left")
        if kind == "hangs":
            self.go_on.wait(30)
        return kind

    def scores(self, texts: Sequence[str]) -> list[float]:
        kind = self.strike()
        scores = [float(text[1:]) + 10 for text in texts]
        if kind == "gives NaN":
            scores[len(scores) // 2] = math.nan
        return scores[:-1] if kind == "gives too few" else scores


class Scorer:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def score(self, query: str, texts: Sequence[str]) -> Any:
        return np.array(self.fault.scores(texts), np.float32)


class PairScorer(BaseCrossEncoder):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return self.fault.scores([text for _, text in text_pairs])


class First:
    """The core's first stage."""

    def retrieve(self, query: str, k: int) -> list[Hit]:
        return [
            Hit(Passage(text, text), rank, 1 / rank, retrieval_rank=rank, retrieval_score=1 / rank)
            for rank, text in enumerate(TEXTS, 1)
        ]


@dataclass
class Seen:
    """What a door let through: texts in order, whether each has a score, and the mark."""

    texts: list[str]
    scored: list[bool]
    degraded: str | None


def documents() -> list[Document]:
    return [Document(text, id=text, metadata={"retrieval_score": 1 / rank}) for rank, text in enumerate(TEXTS, 1)]


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=text, text=text), score=1 / rank) for rank, text in enumerate(TEXTS, 1)]


def of_core(result: Any) -> Seen:
    return Seen([hit.passage.id for hit in result], [hit.logit is not None for hit in result], result.degraded)


def of_documents(result: Sequence[Document]) -> Seen:
    facts = [document.metadata for document in result]
    marks = {fact.get("rerank_degraded") for fact in facts}
    assert len(marks) == 1
    for fact in facts:
        assert (fact["relevance_score"] is None) == (fact["rerank_logit"] is None)
    assert [fact["rerank_rank"] for fact in facts] == list(range(1, len(facts) + 1))
    return Seen(
        [str(document.id) for document in result], [fact["rerank_logit"] is not None for fact in facts], marks.pop()
    )


def of_nodes(result: list[Any]) -> Seen:
    marks = {node.degraded for node in result}
    assert len(marks) == 1
    assert [node.rerank_rank for node in result] == list(range(1, len(result) + 1))
    for node in result:
        assert (node.score is None) == (node.logit is None)
        assert node.retrieval_score is not None
    return Seen([node.node_id for node in result], [node.logit is not None for node in result], marks.pop())


def core(model: Any, **options: Any) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[Any], Seen]]:
    pipeline = RetrieveRerank(First(), model, fetch_k=len(TEXTS), top_n=60, **options)
    return lambda: pipeline.search("q"), lambda: pipeline.asearch("q"), of_core


def langchain_reranker(model: Any, **options: Any) -> Any:
    compressor = CrossEncoderReranker(model=model, top_n=60, **options)
    return (
        lambda: compressor.compress_documents(documents(), "q"),
        lambda: compressor.acompress_documents(documents(), "q"),
        of_documents,
    )


def langchain_step(model: Any, **options: Any) -> Any:
    step = CrossEncoderReranker(model=model).as_runnable(top_n=60, **options)
    return (
        lambda: step.invoke({"query": "q", "documents": documents()}),
        lambda: step.ainvoke({"query": "q", "documents": documents()}),
        of_documents,
    )


def langchain_retriever(model: Any, **options: Any) -> Any:
    first = LangChainFirst(documents=documents())
    retriever = LangChainRetriever(
        base_retriever=first, reranker=CrossEncoderReranker(model=model), top_n=60, **options
    )
    return lambda: retriever.invoke("q"), lambda: retriever.ainvoke("q"), of_documents


def llama_index_reranker(model: Any, **options: Any) -> Any:
    reranker = CrossEncoderRerank(model, top_n=60, **options)
    bundle = QueryBundle("q")
    return (
        lambda: reranker.postprocess_nodes(nodes(), bundle),
        lambda: reranker.apostprocess_nodes(nodes(), bundle),
        of_nodes,
    )


def llama_index_retriever(model: Any, **options: Any) -> Any:
    retriever = LlamaIndexRetriever(LlamaIndexFirst(nodes()), CrossEncoderRerank(model), top_n=60, **options)
    return lambda: retriever.retrieve("q"), lambda: retriever.aretrieve("q"), of_nodes


DOORS = [
    core,
    langchain_reranker,
    langchain_step,
    langchain_retriever,
    llama_index_reranker,
    llama_index_retriever,
]


def pairwise(kinds: Sequence[str]) -> pytest.MarkDecorator:
    """Try every door at every batch, and every kind of fault and way to call with each door and at each batch."""
    cases = [
        (door, kinds[(number + place) % len(kinds)], at, ("sync", "async")[(number + place // 2) % 2])
        for number, door in enumerate(DOORS)
        for place, at in enumerate(BATCHES)
    ]
    return pytest.mark.parametrize(
        ("door", "kind", "at", "call"), cases, ids=lambda value: getattr(value, "__name__", value)
    )


@pytest.fixture
def fault() -> Iterator[Fault]:
    fault = Fault()
    yield fault
    fault.go_on.set()


def scorer_for(door: Callable[..., Any], fault: Fault) -> Any:
    return PairScorer(fault) if door.__name__.startswith("langchain") else Scorer(fault)


def caller(door: Callable[..., Any], call: str, model: Any, **options: Any) -> Callable[[], Seen]:
    run, arun, seen = door(model, **options)
    return (lambda: seen(run())) if call == "sync" else (lambda: seen(asyncio.run(arun())))


@pairwise(["raises", "gives NaN", "gives too few"])
def test_a_scorer_that_fails(door: Any, kind: str, at: str, call: str, fault: Fault) -> None:
    cause = OutOfMemory if kind == "raises" else ModelError
    fault.kind, fault.at = kind, BATCHES[at]
    strict = caller(door, call, scorer_for(door, fault), time_budget=PLENTY)
    with pytest.raises(cause) as caught:
        strict()
    assert type(caught.value) is cause
    assert caught.value.__cause__ is None
    assert fault.calls == (3 if kind == "gives NaN" else fault.at + 1)
    assert strict() == Seen(RANKED, [True] * 48, None)

    fault.calls = 0
    lenient = caller(door, call, scorer_for(door, fault), time_budget=PLENTY, on_error="retrieval_order")
    with pytest.warns(DegradedWarning, match=f"re-ranking failed: {cause.__name__}: ") as warned:
        seen = lenient()
    assert len(warned) == 1
    assert (seen.texts, seen.scored) == (TEXTS, [False] * 48)
    assert (seen.degraded or "").startswith(f"re-ranking failed: {cause.__name__}: ")
    assert lenient() == Seen(RANKED, [True] * 48, None)


@pytest.mark.parametrize("on_error", ["raise", "retrieval_order"])
@pytest.mark.parametrize("call", ["sync", "async"])
@pytest.mark.parametrize(
    ("door", "at"),
    [(door, "middle") for door in DOORS] + [(core, "first"), (core, "last")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_scorer_that_hangs(door: Any, at: str, call: str, on_error: str, fault: Fault) -> None:
    fault.kind, fault.at = "hangs", BATCHES[at]
    call_it = caller(door, call, scorer_for(door, fault), time_budget=0.3, on_error=on_error)
    start = time.perf_counter()
    seen = call_it()
    assert time.perf_counter() - start < 5
    reached = 16 * fault.at
    assert seen.texts == [*reversed(TEXTS[:reached]), *TEXTS[reached:]]
    assert seen.scored == [True] * reached + [False] * (48 - reached)
    assert seen.degraded == f"time budget of 0.3 s: {reached} of 48 candidates scored"
    fault.go_on.set()
    time.sleep(0.05)  # the thread that hung ends its batch
    assert call_it() == Seen(RANKED, [True] * 48, None)


@pytest.fixture
def faulty_model(tiny_cross_encoder: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> Iterator[CrossEncoder]:
    """Our own model, whose forward pass fails."""
    import transformers

    monkeypatch.setattr("retrieve_rerank.models.engine._CPU_TOKENS", 64)  # several batches
    kind = transformers.BertForSequenceClassification
    forward = kind.forward

    def faulty(self: Any, *arguments: Any, **options: Any) -> Any:
        happened = fault.strike()
        output = forward(self, *arguments, **options)
        if happened == "gives NaN":
            output.logits = torch.full_like(output.logits, math.nan)
        return output

    with CrossEncoder(tiny_cross_encoder, precision="float32") as model:
        model.score("q", ["loaded"])
        monkeypatch.setattr(kind, "forward", faulty)
        yield model
        fault.go_on.set()


@pairwise(["raises", "gives NaN"])
def test_our_own_model_fails(
    door: Any, kind: str, at: str, call: str, fault: Fault, faulty_model: CrossEncoder
) -> None:
    expected = faulty_model.rank("q", TEXTS)
    batches, fault.calls, fault.kind = fault.calls, 0, kind
    assert batches > 2
    fault.at = {"first": 0, "middle": batches // 2, "last": batches - 1}[at]
    with pytest.raises((OutOfMemory, ModelError), match=r"no memory left|NaN"):
        caller(door, call, faulty_model)()
    fault.calls = 0
    lenient = caller(door, call, faulty_model, on_error="retrieval_order")
    with pytest.warns(DegradedWarning, match=r"no memory left|NaN"):
        assert lenient().texts == TEXTS
    after = lenient()
    assert (after.texts, after.degraded) == ([hit.passage.text for hit in expected], None)


@pytest.mark.parametrize("call", ["sync", "async"])
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_our_own_model_hangs(door: Any, call: str, fault: Fault, faulty_model: CrossEncoder) -> None:
    expected = [hit.passage.text for hit in faulty_model.rank("q", TEXTS)]
    fault.kind, fault.at, fault.calls = "hangs", 0, 0
    call_it = caller(door, call, faulty_model, time_budget=0.3)
    start = time.perf_counter()
    seen = call_it()
    assert time.perf_counter() - start < 5
    assert (seen.texts, seen.scored) == (TEXTS, [False] * 48)
    assert re.fullmatch(r"time budget of 0\.3 s: 0 of 48 candidates scored", seen.degraded or "")
    fault.go_on.set()
    assert caller(door, call, faulty_model)().texts == expected


@pytest.mark.parametrize("call", ["sync", "async"])
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_model_that_is_not_there(door: Any, call: str, tmp_path: Path) -> None:
    """Loading is a failure like another; and it is tried again at the next call."""
    with pytest.raises(ModelError, match="there is no folder"):
        caller(door, call, CrossEncoder(tmp_path / "nothing"))()
    lenient = caller(door, call, CrossEncoder(tmp_path / "nothing"), on_error="retrieval_order", time_budget=PLENTY)
    for _ in range(2):
        with pytest.warns(DegradedWarning, match="there is no folder"):
            assert lenient().texts == TEXTS
