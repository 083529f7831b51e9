"""One model, many callers: threads, tasks, closing; questions are answered while documents are encoded."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import BiEncoder, CrossEncoder
from retrieve_rerank.models import loading
from retrieve_rerank.models.engine import BiEngine
from tests.core.stubs import run_python
from tests.core.test_cross_encoder import QUERY, TEXTS, many_texts


@pytest.mark.parametrize(
    ("kind", "fixture", "load"),
    [(BiEncoder, "tiny_bi_encoder", "load_bi_encoder"), (CrossEncoder, "tiny_cross_encoder", "load_cross_encoder")],
)
def test_many_threads_get_what_one_would_and_the_model_loads_once(
    kind: Any, fixture: str, load: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    loaded = getattr(loading, load)
    monkeypatch.setattr(loading, load, lambda checkpoint: loads.append(checkpoint) or loaded(checkpoint))
    path, texts = request.getfixturevalue(fixture), many_texts()
    jobs = [(f"query {number} {'rome ' * (number % 5)}", texts[number : number + 9]) for number in range(32)]

    def answer(model: Any, job: tuple[str, list[str]]) -> Any:
        return model.score(*job) if kind is CrossEncoder else model.encode_queries([job[0]])[0]

    serial = kind(path, precision="float32")
    expected = [answer(serial, job) for job in jobs]
    loads.clear()
    with kind(path, precision="float32") as model, ThreadPoolExecutor(8) as pool:
        # Callers share batches, which rounds differently.
        assert np.allclose(list(pool.map(lambda job: answer(model, job), jobs)), expected, atol=1e-5)
    assert len(loads) == 1


async def test_fifty_tasks_get_what_one_would_and_the_loop_goes_on(tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32")
    texts = many_texts()
    jobs = [(f"query {number}", texts[number : number + 20]) for number in range(50)]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.002)
            ticks += 1

    ticking = asyncio.create_task(tick())
    results = await asyncio.gather(*(model.arank(*job) for job in jobs))
    ticking.cancel()
    assert ticks > 10
    for found, job in zip(results, jobs, strict=True):
        expected = model.rank(*job)
        assert [hit.passage for hit in found] == [hit.passage for hit in expected]
        assert [hit.logit for hit in found] == pytest.approx([hit.logit for hit in expected], abs=1e-5)
    scores = await model.ascore(QUERY, TEXTS)
    assert np.array_equal(scores, model.score(QUERY, TEXTS))


def test_close_frees_the_model_and_a_later_call_loads_it_again(tiny_cross_encoder: Path) -> None:
    model = CrossEncoder(tiny_cross_encoder, precision="float32")
    model.close()  # never used
    before = model.score(QUERY, TEXTS)
    engine, thread = weakref.ref(model._engine), model._worker.run(threading.current_thread)
    assert "not loaded" not in repr(model)
    model.close()
    assert "not loaded" in repr(model)
    assert engine() is None
    thread.join(5)
    assert not thread.is_alive()
    assert np.array_equal(model.score(QUERY, TEXTS), before)
    model.close()
    model.close()


def test_the_interpreter_ends_although_a_model_is_open(tiny_cross_encoder: Path) -> None:
    script = """
        import sys
        from retrieve_rerank import CrossEncoder
        print(len(CrossEncoder(sys.argv[1]).score("a", ["b", "c"])))
    """
    assert run_python(script, str(tiny_cross_encoder), forked=True).strip() == "2"


class Slow:
    """Counts batches, and makes each of more than one text take a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        forward = BiEngine._forward

        def slow(engine: BiEngine, made: dict[str, Any]) -> Any:
            if len(made["input_ids"]) > 1:
                self.batches += 1
                time.sleep(0.02)
            return forward(engine, made)

        monkeypatch.setattr(BiEngine, "_forward", slow)

    def wait(self, batches: int) -> None:
        asyncio.run(self.awaited(batches))

    async def awaited(self, batches: int) -> None:
        end = time.monotonic() + 20
        while self.batches < batches and time.monotonic() < end:
            await asyncio.sleep(0.001)
        assert self.batches >= batches


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


@pytest.fixture
def encoder(tiny_bi_encoder: Path) -> Iterator[BiEncoder]:
    with BiEncoder(tiny_bi_encoder, precision="float32", batch_tokens=64) as model:
        yield model


def test_a_question_does_not_wait_for_all_documents(encoder: BiEncoder, slow: Slow) -> None:
    texts = many_texts() * 2
    with ThreadPoolExecutor(1) as pool:
        documents = pool.submit(encoder.encode_documents, texts)
        slow.wait(3)
        for number in range(3):
            question = encoder.encode_queries([f"where is rome {number}"])
            assert encoder.dimension == question.shape[1]
        at = slow.batches
        assert not documents.done()
        found = documents.result(60)
    assert at < slow.batches / 2
    assert np.allclose(found, encoder.encode_documents(texts), atol=1e-6)
    assert np.allclose(question, encoder.encode_queries(["where is rome 2"]), atol=1e-6)


async def test_nor_does_it_in_async_code(encoder: BiEncoder, slow: Slow) -> None:
    documents = asyncio.create_task(encoder.aencode_documents(many_texts() * 2))
    await slow.awaited(3)
    question = await encoder.aencode_queries(["where is rome"])
    assert not documents.done()
    assert np.allclose(question, encoder.encode_queries(["where is rome"]), atol=1e-6)
    await documents


async def test_cancelled_documents_end_with_the_batch_under_way(encoder: BiEncoder, slow: Slow) -> None:
    documents = asyncio.create_task(encoder.aencode_documents(many_texts() * 2))
    await slow.awaited(3)
    documents.cancel()
    with pytest.raises(asyncio.CancelledError):
        await documents
    await asyncio.sleep(0.1)
    at = slow.batches
    assert at < 10
    await asyncio.sleep(0.1)
    assert slow.batches == at
    assert (await encoder.aencode_documents(["rome"])).shape[0] == 1


def test_an_error_in_a_question_is_not_the_documents(encoder: BiEncoder, slow: Slow) -> None:
    texts = many_texts() * 2
    outcomes: list[object] = []

    def ask() -> None:
        try:
            encoder.encode_queries(["rome"])
        except ValueError as error:
            outcomes.append(str(error))

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        documents = pool.submit(encoder.encode_documents, texts)
        slow.wait(2)

        def broken(*_: object, **__: object) -> object:
            raise ValueError("this question fails")

        patch.setattr(encoder, "_encode", broken)
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(20)
        assert not documents.done()
        assert len(documents.result(60)) == len(texts)
    assert outcomes == ["this question fails"]


async def test_many_questions_are_a_long_call_too(encoder: BiEncoder, slow: Slow) -> None:
    many = asyncio.create_task(encoder.aencode_queries(many_texts() * 2))
    await slow.awaited(3)
    await encoder.aencode_queries(["where is rome"])
    assert not many.done()
    many.cancel()
    await asyncio.sleep(0.1)
    at = slow.batches
    await asyncio.sleep(0.1)
    assert slow.batches == at
