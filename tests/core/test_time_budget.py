"""A time budget: the caller gets what is scored by then, the thread gets on with what is still wanted."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from retrieve_rerank import CrossEncoder, Hit, InvalidInputError, Passage
from retrieve_rerank.models import loading
from retrieve_rerank.models.ranking import Ranker, as_ranker
from retrieve_rerank.models.threads import Worker
from tests.core.stubs import TableScorer, found, run_python

QUERY = "what is the capital of france"
LATE = 1.0  # seconds that a caller may come back late on a busy machine


class SlowScorer:
    """Takes `seconds` for each text; a text that is a number is its own logit."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[list[str]] = []

    def score(self, query: str, texts: Sequence[str]) -> Any:
        self.asked.append(list(texts))
        time.sleep(self.seconds * len(texts))
        return [float(text) for text in texts]


class AsyncScorer(SlowScorer):
    """As `SlowScorer`, for an event loop."""

    async def ascore(self, query: str, texts: Sequence[str]) -> Any:
        self.asked.append(list(texts))
        await asyncio.sleep(self.seconds * len(texts))
        return [float(text) for text in texts]


NUMBERS = [str(number) for number in range(100)]


@pytest.fixture
def model(tiny_cross_encoder: Path) -> Iterator[CrossEncoder]:
    with CrossEncoder(tiny_cross_encoder, precision="float32") as model:
        model.score(QUERY, ["loads the model"])
        yield model


@pytest.fixture
def slow_forward(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes every forward pass of a BERT take 200 ms more, and remembers when each began."""
    began: list[float] = []
    forward = transformers.BertModel.forward

    def slow(self: object, *arguments: object, **options: object) -> object:
        began.append(time.monotonic())
        time.sleep(0.2)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(transformers.BertModel, "forward", slow)
    return began


async def in_time(ranker: Ranker, budget: float, passages: Any, *, awaited: bool) -> list[Hit]:
    """Return what `rank` or `arank` gives, after at most the budget."""
    start = time.monotonic()
    if awaited:
        hits = await ranker.arank(QUERY, passages, time_budget=budget)
    else:
        hits = ranker.rank(QUERY, passages, time_budget=budget)
    assert time.monotonic() - start < budget + LATE
    return hits


async def ranked_in_time(ranker: Ranker, budget: float, passages: Any) -> list[list[Hit]]:
    """Return what `rank` gives, then what `arank` gives."""
    return [await in_time(ranker, budget, passages, awaited=awaited) for awaited in (False, True)]


@pytest.mark.parametrize("kind", [SlowScorer, AsyncScorer])
@pytest.mark.parametrize("awaited", [False, True])
async def test_a_slow_scorer_is_asked_in_order_and_what_it_did_not_reach_follows(
    kind: type[SlowScorer], awaited: bool
) -> None:
    ranker = as_ranker(kind(0.015))
    hits = await in_time(ranker, 0.8, NUMBERS, awaited=awaited)
    reached = sum(hit.logit is not None for hit in hits)
    assert 0 < reached < 100
    assert reached % 16 == 0  # whole chunks
    expected = [*map(str, reversed(range(reached))), *map(str, range(reached, 100))]
    assert [hit.passage.text for hit in hits] == expected
    assert [hit.rank for hit in hits] == list(range(1, 101))
    assert all(math.isnan(hit.score) and hit.window is None and not hit.truncated for hit in hits[reached:])


async def test_what_was_not_reached_keeps_its_retrieval_score() -> None:
    hits = found([f"{number}" for number in range(3)])
    for result in await ranked_in_time(as_ranker(SlowScorer(5.0)), 0.05, [*hits, Passage("new", "4")]):
        assert [hit.score for hit in result[:3]] == [hit.retrieval_score for hit in hits]
        assert math.isnan(result[3].score)
        assert all(hit.logit is None for hit in result)
        assert [hit.passage.id for hit in result] == ["id-0", "id-1", "id-2", "new"]


async def test_a_model_scores_the_first_passages_first_and_stops(
    model: CrossEncoder, slow_forward: list[float], many_texts: Callable[[], list[str]]
) -> None:
    texts = many_texts()
    expected = dict(zip(texts, model.score(QUERY, texts).tolist(), strict=True))
    slow_forward.clear()
    for hits in await ranked_in_time(model, 0.7, texts):
        model._worker.run(int, "1")  # the batch under way has ended
        passes = len(slow_forward)
        time.sleep(0.5)
        assert len(slow_forward) == passes  # the thread dropped the rest
        scored = [hit for hit in hits if hit.logit is not None]
        assert 0 < len(scored) < 200
        assert {hit.passage.id for hit in scored[:1]} <= {str(number) for number in range(96)}
        assert max(int(hit.passage.id) for hit in scored) < len(scored) + 96  # a few batches' worth at most
        assert [hit.logit for hit in scored] == pytest.approx([expected[hit.passage.text] for hit in scored], abs=1e-5)
        left = [int(hit.passage.id) for hit in hits[len(scored) :]]
        assert left == sorted(left)
        assert {hit.passage.text for hit in hits} == set(texts)


async def test_with_time_enough_it_is_as_without(model: CrossEncoder, many_texts: Callable[[], list[str]]) -> None:
    texts = [*many_texts(), "rome", "rome"]
    plain = model.rank(QUERY, texts)
    for hits in await ranked_in_time(model, 1e12, texts):
        assert [hit.logit for hit in hits] == pytest.approx([hit.logit for hit in plain], abs=1e-5)
        assert {hit.passage.id for hit in hits[:20]} == {hit.passage.id for hit in plain[:20]}
    scorer = TableScorer({"a": 1.0, "b": 2.0})
    for hits in await ranked_in_time(as_ranker(scorer), 60.0, ["a", "b", "a"]):
        assert [hit.passage.id for hit in hits] == ["1", "0", "2"]


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_threshold_is_for_scored_hits_and_top_n_for_all(awaited: bool) -> None:
    gate = threading.Event()

    class OneChunk(TableScorer):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            if texts[0] != "-8":
                gate.wait(20)
            return np.array([float(text) for text in texts])

    passages = [Passage(str(number), str(number - 8)) for number in range(100)]  # the first chunk: logits -8 to 7
    ranker, options = as_ranker(OneChunk({})), {"score_threshold": 0.9, "top_n": 10, "time_budget": 0.8}
    hits = await ranker.arank(QUERY, passages, **options) if awaited else ranker.rank(QUERY, passages, **options)
    gate.set()
    assert [hit.passage.id for hit in hits] == ["15", "14", "13", "12", "11", "16", "17", "18", "19", "20"]
    assert [hit.logit is None for hit in hits] == [False] * 5 + [True] * 5
    assert [hit.rank for hit in hits] == list(range(1, 11))


async def test_waiting_for_others_counts(model: CrossEncoder) -> None:
    gate = threading.Event()
    other = threading.Thread(target=model._worker.run, args=(gate.wait, 10))
    other.start()
    try:
        for hits in await ranked_in_time(model, 0.1, ["rome", "paris"]):
            assert [(hit.passage.text, hit.logit) for hit in hits] == [("rome", None), ("paris", None)]
    finally:
        gate.set()
        other.join()
    assert all(hit.logit is not None for hit in model.rank(QUERY, ["rome", "paris"], time_budget=30))


async def test_loading_does_not_count(tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = loading.load_cross_encoder

    def slow(checkpoint: loading.Checkpoint) -> object:
        time.sleep(1.0)
        return load(checkpoint)

    monkeypatch.setattr(loading, "load_cross_encoder", slow)
    model = CrossEncoder(tiny_cross_encoder)
    assert all(hit.logit is not None for hit in model.rank(QUERY, ["rome", "paris"], time_budget=0.9))
    model.close()
    assert all(hit.logit is not None for hit in await model.arank(QUERY, ["rome", "paris"], time_budget=0.9))
    model.close()


@pytest.mark.parametrize("budget", [0, -1, 0.0, math.nan, math.inf, True, "1"])
async def test_an_unusable_budget_is_refused_even_with_nothing_to_rank(budget: Any) -> None:
    ranker = as_ranker(TableScorer({}))
    with pytest.raises(InvalidInputError, match="time_budget must be a number of seconds above 0"):
        ranker.rank("query", [], time_budget=budget)
    with pytest.raises(InvalidInputError, match="time_budget"):
        await ranker.arank("query", [], time_budget=budget)


async def test_nothing_to_rank_takes_no_time() -> None:
    assert CrossEncoder("no-such-model").rank(QUERY, [], time_budget=1) == []
    assert await CrossEncoder("no-such-model").arank(QUERY, [], time_budget=1) == []


@pytest.mark.parametrize("method", ["arank", "ascore"])
async def test_a_cancelled_call_stops_at_the_next_batch(
    model: CrossEncoder, slow_forward: list[float], many_texts: Callable[[], list[str]], method: str
) -> None:
    """Without a budget too: nobody waits for the rest."""
    task = asyncio.create_task(getattr(model, method)(QUERY, many_texts()))
    while not slow_forward:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model._worker.run(int, "1") == 1  # the batch under way has ended
    assert len(slow_forward) <= 2
    assert model.score(QUERY, ["rome"]).shape == (1,)


class Hanging:
    """A scorer that hangs until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.hang = True

    def score(self, query: str, texts: Sequence[str]) -> Any:
        if self.hang:
            self.gate.wait(20)
        return np.ones(len(texts))


class HangingInTheLoop(Hanging):
    """One that is asynchronous and does not obey its cancellation."""

    async def ascore(self, query: str, texts: Sequence[str]) -> Any:
        while self.hang:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return np.ones(len(texts))


@pytest.mark.parametrize("kind", [Hanging, HangingInTheLoop])
async def test_a_scorer_that_hangs_holds_up_nobody(kind: type[Hanging]) -> None:
    scorer = kind()
    ranker = as_ranker(scorer)
    try:
        for hits in await ranked_in_time(ranker, 0.1, ["a", "b"]):
            assert [hit.logit for hit in hits] == [None, None]
        scorer.hang = False
        assert [hit.logit for hit in ranker.rank(QUERY, ["a"])] == [1.0]
        assert [hit.logit for hit in await ranker.arank(QUERY, ["a"])] == [1.0]
        assert [hit.logit for hit in ranker.rank(QUERY, ["a"], time_budget=10)] == [1.0]
    finally:
        scorer.hang = False
        scorer.gate.set()
        await asyncio.sleep(0.02)


async def test_a_model_that_hangs_holds_up_nobody(tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32")
    expected = model.score(QUERY, ["rome", "paris"])
    model._worker = Worker("impatient", patience=0.3)
    model.score(QUERY, ["rome"])
    gate, forward = threading.Event(), transformers.BertModel.forward
    hang = lambda self, *arguments, **options: gate.wait(20) and forward(self, *arguments, **options)  # noqa: E731
    try:
        for awaited in (False, True):
            monkeypatch.setattr(transformers.BertModel, "forward", hang)
            stuck = model._worker.thread
            call: Any = model.arank(QUERY, ["rome", "paris"], time_budget=0.1) if awaited else None
            start = time.monotonic()
            hits = await call if awaited else model.rank(QUERY, ["rome", "paris"], time_budget=0.1)
            assert time.monotonic() - start < 0.1 + LATE
            assert [hit.logit for hit in hits] == [None, None]
            monkeypatch.setattr(transformers.BertModel, "forward", forward)
            # Another thread takes over, with a model of its own: the one that hangs may still use the other.
            assert np.array_equal(model.score(QUERY, ["rome", "paris"]), expected)
            assert model._worker.thread is not stuck
            assert stuck.is_alive()
        monkeypatch.setattr(transformers.BertModel, "forward", hang)
        model.rank(QUERY, ["rome"], time_budget=0.1)
        start = time.monotonic()
        model.close()
        assert time.monotonic() - start < 5
        monkeypatch.setattr(transformers.BertModel, "forward", forward)
        assert np.array_equal(model.score(QUERY, ["rome", "paris"]), expected)
    finally:
        gate.set()
        model.close()


@pytest.mark.parametrize(
    "call", ["model.rank('a', ['b'], time_budget=0.2)", "asyncio.run(model.arank('a', ['b'], time_budget=0.2))"]
)
def test_the_interpreter_ends_although_a_model_hangs(tiny_cross_encoder: Path, call: str) -> None:
    script = f"""
        import asyncio, sys, threading, transformers
        from retrieve_rerank import CrossEncoder
        model = CrossEncoder(sys.argv[1])
        model.score("a", ["b"])
        transformers.BertModel.forward = lambda *arguments, **options: threading.Event().wait()
        print({call}[0].logit)
    """
    assert run_python(script, str(tiny_cross_encoder), timeout=120, forked=True).strip() == "None"
