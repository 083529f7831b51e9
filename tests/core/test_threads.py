"""One thread for many callers."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from retrieve_rerank import RetrieveRerankError
from retrieve_rerank.models.threads import Worker
from tests.core.stubs import run_python


def test_calls_run_on_one_thread_that_is_not_the_callers() -> None:
    worker = Worker("w")
    with ThreadPoolExecutor(8) as pool:
        threads = set(pool.map(lambda _: worker.run(threading.get_ident), range(50)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    worker.close()


def test_calls_never_overlap_and_each_caller_gets_its_own_result() -> None:
    worker = Worker("w")
    inside = 0

    def call(number: int, *, add: int) -> int:
        nonlocal inside
        inside += 1
        time.sleep(0.001)
        alone = inside == 1
        inside -= 1
        return number + add if alone else -1

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: worker.run(call, number, add=1000), range(100)))
    assert results == [number + 1000 for number in range(100)]
    worker.close()


def test_a_call_from_inside_does_not_wait_for_itself() -> None:
    worker = Worker("w")
    assert worker.run(lambda: worker.run(lambda: worker.run(int, "7"))) == 7
    worker.close()


def test_no_thread_starts_before_the_first_call_and_none_stays_after_close() -> None:
    before = threading.active_count()
    worker = Worker("counted worker")
    assert threading.active_count() == before
    thread = worker.run(threading.current_thread)
    assert "counted worker" in thread.name
    worker.close()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("error", [ValueError("sync"), KeyError("k"), RetrieveRerankError("ours"), SystemExit(3)])
async def test_exceptions_reach_the_caller_and_the_worker_lives_on(error: BaseException) -> None:
    worker = Worker("w")

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        worker.run(fail)
    assert caught.value is error
    with pytest.raises(type(error)):
        await worker.arun(fail)
    assert worker.run(int, "1") == 1
    worker.close()


async def test_awaiting_does_not_block_the_event_loop() -> None:
    worker = Worker("w")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    assert await worker.arun(lambda: time.sleep(0.3) or "slept") == "slept"
    ticking.cancel()
    assert ticks >= 10
    worker.close()


async def test_awaiting_does_not_use_the_loops_default_pool() -> None:
    worker = Worker("own thread")
    name = await worker.arun(lambda: threading.current_thread().name)
    assert "own thread" in name
    worker.close()


async def test_a_cancelled_call_that_has_not_begun_is_dropped() -> None:
    worker = Worker("w")
    gate, done = threading.Event(), []
    first = asyncio.create_task(worker.arun(gate.wait, 5))
    second = asyncio.create_task(worker.arun(done.append, "never"))
    await asyncio.sleep(0.05)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    assert await first is True
    assert worker.run(int, "1") == 1
    assert done == []
    worker.close()


@pytest.mark.parametrize("used", [False, True])
def test_close_can_be_called_at_any_time_and_twice(used: bool) -> None:
    worker = Worker("w")
    if used:
        worker.run(int, "1")
    worker.close(last=lambda: None)
    worker.close(last=lambda: None)


def test_a_worker_that_was_never_used_has_nothing_to_do_at_the_end() -> None:
    done: list[str] = []
    Worker("w").close(last=lambda: done.append("freed"))
    assert done == []


def test_close_waits_for_the_calls_already_made_then_frees() -> None:
    worker = Worker("w")
    order: list[str] = []
    callers = []
    for number in range(3):
        caller = threading.Thread(target=worker.run, args=(lambda n=number: time.sleep(0.05) or order.append(f"{n}"),))
        caller.start()
        callers.append(caller)
    time.sleep(0.02)
    worker.close(last=lambda: order.append("freed"))
    assert order[-1] == "freed"
    assert sorted(order[:-1]) == ["0", "1", "2"]
    for caller in callers:
        caller.join()


def test_a_call_after_close_starts_a_new_thread() -> None:
    worker = Worker("w")
    first = worker.run(threading.current_thread)
    worker.close()
    second = worker.run(threading.current_thread)
    assert second is not first
    assert worker.run(threading.current_thread) is second
    worker.close()


def test_the_thread_of_a_worker_that_nobody_holds_ends() -> None:
    worker = Worker("w")
    thread = worker.run(threading.current_thread)
    del worker
    gc.collect()
    thread.join(1)
    assert not thread.is_alive()


def test_a_call_during_close_does_not_run_beside_the_calls_before_it() -> None:
    worker = Worker("w")
    gate, running = threading.Event(), threading.Event()
    overlapped: list[bool] = []

    def slow() -> None:
        running.set()
        gate.wait(5)
        running.clear()

    caller = threading.Thread(target=worker.run, args=(slow,))
    caller.start()
    running.wait(5)
    closer = threading.Thread(target=worker.close, args=(lambda: None,))
    closer.start()
    while worker._lane is not None and closer.is_alive():  # until close has begun
        time.sleep(0.001)
    late = threading.Thread(target=worker.run, args=(lambda: overlapped.append(running.is_set()),))
    late.start()
    late.join(0.3)
    gate.set()
    for thread in (caller, closer, late):
        thread.join(5)
    worker.close()
    assert overlapped == [False]


FORK = """
import multiprocessing, sys, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of forking with threads; that is the point here
from retrieve_rerank.models.threads import Worker

worker = Worker("the model x")
assert worker.run(int, "1") == 1

def child(queue):
    try:
        queue.put(worker.run(int, "2"))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")
    worker.close()  # does nothing, and does not hang

context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
print(queue.get(timeout=20))
process.join(20)
print(process.exitcode, worker.run(int, "3"))
"""


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="needs fork")
def test_a_forked_child_gets_a_clear_error_and_the_parent_goes_on() -> None:
    message, rest = run_python(FORK).splitlines()
    assert message.startswith("RetrieveRerankError: the model x was used in process")
    assert "get_context('spawn')" in message
    assert rest == "0 3"


def test_the_interpreter_ends_although_a_worker_is_open() -> None:
    script = """
        from retrieve_rerank.models.threads import Worker
        worker = Worker("w")
        print(worker.run(int, "5"))
    """
    assert run_python(script, timeout=20).strip() == "5"


# Calls that their callers wait for until a deadline only.


def test_a_call_that_ends_in_time_has_ended_and_its_error_comes_out() -> None:
    worker, done = Worker("w"), []
    assert worker.run_until(time.monotonic() + 10, done.append, "done") is True
    assert worker.run_until(None, done.append, "no deadline") is True
    assert done == ["done", "no deadline"]
    with pytest.raises(ZeroDivisionError):
        worker.run_until(time.monotonic() + 10, lambda: print(1 / 0))
    with pytest.raises(TimeoutError, match="its own"):  # not taken for the deadline
        worker.run_until(time.monotonic() + 10, raises, TimeoutError("its own"))
    worker.close()


def raises(error: Exception) -> None:
    raise error


async def test_a_call_that_has_not_begun_by_its_deadline_never_runs() -> None:
    worker, gate, done = Worker("w"), threading.Event(), []
    first = asyncio.create_task(worker.arun(gate.wait, 10))
    await asyncio.sleep(0.05)
    assert worker.run_until(time.monotonic() + 0.05, done.append, "never") is False
    assert await worker.arun_until(time.monotonic() + 0.05, done.append, "never") is False
    assert worker.run_until(time.monotonic() - 1, done.append, "never") is False
    gate.set()
    await first
    assert worker.run(int, "1") == 1
    assert done == []
    worker.close()


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_call_that_hangs_is_replaced_after_a_while_and_what_waits_behind_it_runs(awaited: bool) -> None:
    worker, gate = Worker("w", patience=0.2), threading.Event()
    stuck = worker.run(threading.current_thread)
    deadline = time.monotonic() + 0.05
    call = worker.arun_until(deadline, gate.wait, 20) if awaited else None
    assert (await call if call is not None else worker.run_until(deadline, gate.wait, 20)) is False
    start = time.monotonic()
    thread = worker.run(threading.current_thread)  # without a deadline: it would wait for ever
    assert 0.1 < time.monotonic() - start < 5
    assert thread is not stuck
    gate.set()
    stuck.join(5)
    assert not stuck.is_alive()  # it came back, and took no work from the other
    assert worker.run(threading.current_thread) is thread
    worker.close()
    thread.join(5)
    assert not thread.is_alive()


def test_a_call_that_is_only_late_keeps_its_thread() -> None:
    worker = Worker("w", patience=0.3)
    thread = worker.run(threading.current_thread)
    assert worker.run_until(time.monotonic() + 0.02, time.sleep, 0.1) is False
    assert worker.run(threading.current_thread) is thread
    time.sleep(0.4)
    assert worker.run(threading.current_thread) is thread
    worker.close()


@pytest.mark.parametrize("closed_first", [False, True])
def test_close_does_not_wait_for_a_call_that_nobody_waits_for(closed_first: bool) -> None:
    worker, gate, freed = Worker("w", patience=60), threading.Event(), []
    caller = threading.Thread(target=worker.run_until, args=(time.monotonic() + 0.2, gate.wait, 20))
    caller.start()
    if not closed_first:
        caller.join()
    start = time.monotonic()
    worker.close(last=lambda: freed.append("freed"))
    assert time.monotonic() - start < 5
    assert freed == ["freed"]
    assert worker.run(int, "7") == 7
    gate.set()
    worker.close()


async def test_a_cancelled_call_with_a_deadline_is_given_up() -> None:
    worker, gate = Worker("w", patience=0.1), threading.Event()
    waiting = asyncio.create_task(worker.arun_until(None, gate.wait, 20))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await worker.arun(int, "1") == 1
    gate.set()
    worker.close()


def test_a_plain_call_is_never_replaced() -> None:
    """A cancelled write goes on to its end: two threads in one index would be worse than waiting."""
    worker, order = Worker("w", patience=0.01), []

    async def cancel_it() -> None:
        writing = asyncio.create_task(worker.arun(lambda: time.sleep(0.3) or order.append("written")))
        await asyncio.sleep(0.05)
        writing.cancel()

    asyncio.run(cancel_it())
    worker.run(order.append, "next")
    assert order == ["written", "next"]
    worker.close()


def test_a_late_error_after_the_loop_has_closed_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker("w")

    def late() -> None:
        time.sleep(0.3)
        raise ValueError("late")

    assert asyncio.run(worker.arun_until(time.monotonic() + 0.05, late)) is False
    assert worker.run(int, "1") == 1
    gc.collect()
    assert caplog.records == []
    worker.close()


@pytest.mark.parametrize("hangs", [True, False])
def test_the_interpreter_ends_with_a_call_given_up(hangs: bool) -> None:
    """A call that is only late is let finish; one that hangs is left behind."""
    script = f"""
        import threading, time
        from retrieve_rerank.models.threads import Worker
        worker = Worker("w")
        call = threading.Event().wait if {hangs} else lambda: (time.sleep(0.5), print("finished", flush=True))
        print(worker.run_until(time.monotonic() + 0.1, call), flush=True)
    """
    assert run_python(script).split() == (["False"] if hangs else ["False", "finished"])


def test_a_call_made_while_the_interpreter_ends_does_not_hang() -> None:
    script = """
        import atexit
        def late():
            try:
                print(worker.run(int, "2"))
            except RuntimeError as error:  # Python 3.12: no new threads any more
                print(2)
        atexit.register(late)
        from retrieve_rerank.models.threads import Worker
        worker = Worker("w")
        print(worker.run(int, "1"))
    """
    assert run_python(script).split() == ["1", "2"]


def test_closing_it_when_the_interpreter_has_ended_its_thread_does_not_hang() -> None:
    script = """
        import atexit
        atexit.register(lambda: worker.close(last=lambda: None))
        from retrieve_rerank.models.threads import Worker
        worker = Worker("w")
        print(worker.run(int, "1"))
    """
    assert run_python(script, timeout=20).split() == ["1"]


def test_a_long_call_lets_short_ones_in() -> None:
    worker = Worker("w")
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        assert go_on.wait(10)
        order.append("long")
        worker.between()
        order.append("long")

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(worker.run, long)]
        assert begun.wait(10)
        calls.append(pool.submit(worker.run, order.append, "not short"))
        while worker._lane is None or not worker._lane._queue.qsize():
            time.sleep(0.001)
        calls.append(pool.submit(worker.run_soon, order.append, "short"))
        while not worker._lane._short:
            time.sleep(0.001)
        go_on.set()
        for call in calls:
            call.result(10)
    assert order == ["long", "short", "long", "not short"]
    assert worker.run_soon(worker.run_soon, int, "7") == 7
    worker.between()  # outside a call there is nothing to let in
    worker.close()


def test_short_calls_keep_their_errors_and_their_cancellation() -> None:
    worker = Worker("w")
    begun = threading.Event()

    def long() -> str:
        begun.set()
        while not worker._lane or len(worker._lane._short) < 2:
            time.sleep(0.001)
        worker.between()
        return "done"

    async def main() -> None:
        running = asyncio.create_task(worker.arun(long))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        wrong = asyncio.create_task(worker.arun_soon(int, "x"))
        late = asyncio.create_task(worker.arun_soon(pytest.fail, "it was cancelled"))
        await asyncio.sleep(0)
        late.cancel()
        with pytest.raises(ValueError, match="invalid literal"):
            await wrong
        with pytest.raises(asyncio.CancelledError):
            await late
        assert await running == "done"
        assert await worker.arun_soon(int, "7") == 7

    asyncio.run(main())
    worker.close()


@pytest.mark.parametrize("way", ["cancelled", "interrupted"])
def test_a_call_that_nobody_waits_for_ends_between_its_parts(way: str) -> None:
    worker = Worker("w")
    parts = 0
    ended = threading.Event()

    def long() -> None:
        nonlocal parts
        if way == "interrupted":
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while parts < 5000:
                parts += 1
                time.sleep(0.002)
                worker.between()
        finally:
            ended.set()

    if way == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            worker.run(long)
    else:

        async def cancelled() -> None:
            await asyncio.wait_for(worker.arun(long), 0.1)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(cancelled())
    assert ended.wait(5)
    assert parts < 5000
    assert worker.run(int, "7") == 7  # the next one is not taken for it
    worker.run(worker.between)
    worker.close()


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="needs fork")
def test_a_worker_that_was_made_and_not_used_works_in_a_forked_child() -> None:
    """As servers do that import the application before they fork."""
    message, rest = run_python(FORK.replace('assert worker.run(int, "1") == 1', "")).splitlines()
    assert (message, rest) == ("2", "0 3")


async def test_a_call_that_raises_stop_iteration_does_not_keep_its_caller_waiting() -> None:
    """As `next(iter([]))` does in somebody's retriever: asyncio refuses it as the result of a future."""
    worker = Worker("w")
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(worker.arun(lambda: next(iter(()))), 20)
    worker.close()
