"""One cross-encoder, many callers: threads, tasks, closing."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from retrieve_rerank import CrossEncoder
from retrieve_rerank.models import loading
from tests.core.stubs import run_python
from tests.core.test_cross_encoder import QUERY, TEXTS, many_texts


def test_many_threads_get_what_one_would_and_the_model_loads_once(
    tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    load = loading.load_cross_encoder
    monkeypatch.setattr(loading, "load_cross_encoder", lambda checkpoint: loads.append(checkpoint) or load(checkpoint))
    texts = many_texts()
    jobs = [(f"query {number} {'rome ' * (number % 5)}", texts[number : number + 9]) for number in range(32)]
    serial = CrossEncoder(tiny_cross_encoder, precision="float32")
    expected = [serial.score(*job) for job in jobs]
    loads.clear()
    with CrossEncoder(tiny_cross_encoder, precision="float32") as model, ThreadPoolExecutor(8) as pool:
        # Callers share batches, which rounds differently.
        assert np.allclose(list(pool.map(lambda job: model.score(*job), jobs)), expected, atol=1e-5)
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
