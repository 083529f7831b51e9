"""Calls of many callers in common batches: who is taken along, who is not, and whose error is whose."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError
from retrieve_rerank.models.engine import CrossEngine
from tests.core.test_cross_encoder import many_texts

JOBS = [(f"query {number}", many_texts()[number : number + 5]) for number in range(16)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The queries that each call of the engine scored together."""
    calls: list[list[str]] = []
    score = CrossEngine.score

    def recorded(engine: CrossEngine, scorings: list) -> None:
        calls.append([scoring.query for scoring in scorings])
        score(engine, scorings)

    monkeypatch.setattr(CrossEngine, "score", recorded)
    return calls


@contextmanager
def held(model: CrossEncoder) -> Iterator[None]:
    """Keep the model's thread busy, so that what is called meanwhile waits."""
    gate = threading.Event()
    holder = threading.Thread(target=model._worker.run, args=(gate.wait, 10))
    holder.start()
    try:
        yield
    finally:
        gate.set()
        holder.join()


def waiting(model: CrossEncoder, count: int) -> None:
    for _ in range(5000):
        if len(model._batching._waiting) == count:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"{len(model._batching._waiting)} of {count} calls wait")


def test_threads_that_wait_are_scored_together_and_get_what_one_alone_would(
    model: CrossEncoder, taken: list[list[str]]
) -> None:
    expected = [model.score(*job) for job in JOBS]
    taken.clear()
    with ThreadPoolExecutor(16) as pool:
        with held(model):
            calls = [pool.submit(model.score, *job) for job in JOBS]
            waiting(model, 16)
        found = [call.result() for call in calls]
    assert np.allclose(found, expected, atol=1e-5)
    assert sorted(query for call in taken for query in call) == sorted(query for query, _ in JOBS)  # each once
    assert len(taken) == 1
    assert not model._batching._waiting


async def test_tasks_that_wait_are_scored_together(model: CrossEncoder, taken: list[list[str]]) -> None:
    expected = [model.rank(*job) for job in JOBS]
    taken.clear()
    with held(model):
        calls = [asyncio.create_task(model.arank(*job)) for job in JOBS]
        await asyncio.sleep(0.05)
    found = await asyncio.gather(*calls)
    assert [[hit.passage.id for hit in hits] for hits in found] == [[hit.passage.id for hit in h] for h in expected]
    assert len(taken) == 1


def test_no_more_is_taken_along_than_fills_a_few_batches(tiny_cross_encoder: Path, taken: list[list[str]]) -> None:
    with CrossEncoder(tiny_cross_encoder, precision="float32", batch_tokens=16 * 12) as model:  # 12 texts at once
        model.score("a", ["b"])
        taken.clear()
        with ThreadPoolExecutor(16) as pool:
            with held(model):
                calls = [pool.submit(model.score, *job) for job in JOBS]
                waiting(model, 16)
            assert all(len(call.result()) == 5 for call in calls)
    assert [len(call) for call in taken] == [2] * 8


def test_an_error_reaches_its_own_caller_and_nobody_else(model: CrossEncoder) -> None:
    expected = [model.score(*job) for job in JOBS[:4]]
    with ThreadPoolExecutor(5) as pool:
        with held(model):
            calls: list[Future] = [pool.submit(model.score, *job) for job in JOBS[:2]]
            wrong = pool.submit(model.score, "word " * 600, ["no room for this"])
            calls += [pool.submit(model.score, *job) for job in JOBS[2:4]]
            waiting(model, 5)
        assert np.allclose([call.result() for call in calls], expected, atol=1e-5)
        with pytest.raises(InvalidInputError, match="leaves no room"):
            wrong.result()


async def test_a_cancelled_call_is_not_taken_along(model: CrossEncoder, taken: list[list[str]]) -> None:
    taken.clear()
    with held(model):
        calls = [asyncio.create_task(model.ascore(*job)) for job in JOBS[:4]]
        await asyncio.sleep(0.05)
        calls[2].cancel()
        await asyncio.sleep(0.01)
    assert len(await asyncio.gather(*calls, return_exceptions=True)) == 4
    assert taken == [["query 0", "query 1", "query 3"]]


async def test_what_was_cancelled_in_the_middle_is_not_scored_to_its_end(
    model: CrossEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model._engine.token_budget = 64  # a few short texts a batch
    batches: list[int] = []
    forward, begun, gate = CrossEngine._forward, threading.Event(), threading.Event()

    def slow(engine: CrossEngine, made: dict) -> object:
        batches.append(len(made["input_ids"]))
        begun.set()
        gate.wait(10)
        return forward(engine, made)

    monkeypatch.setattr(CrossEngine, "_forward", slow)
    call = asyncio.create_task(model.ascore("query", many_texts()))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    call.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    model._worker.run(int)  # the thread is free again
    assert len(batches) == 1


def test_a_call_with_a_time_budget_goes_alone(model: CrossEncoder, taken: list[list[str]]) -> None:
    taken.clear()
    with ThreadPoolExecutor(5) as pool:
        with held(model):
            calls = [pool.submit(model.rank, *job) for job in JOBS[:2]]
            waiting(model, 2)
            hurried = pool.submit(model.rank, *JOBS[2], time_budget=30.0)
            calls += [pool.submit(model.rank, *job) for job in JOBS[3:5]]
            waiting(model, 4)
        assert all(hit.logit is not None for call in [*calls, hurried] for hit in call.result())
    assert ["query 2"] in taken
    assert all("query 2" not in call or len(call) == 1 for call in taken)
