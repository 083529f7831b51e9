"""Streams: batches that are computed at once, each on its part of the processor's cores.

One batch on all cores keeps none of them busy all the time: between two matrix products they wait for one another, and
much of the rest is done by one alone. Several batches, each on a core of its own, do not wait. A call's streams are
threads that end with it; what puts its batches together, and takes the results, stays on the thread that asks.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from retrieve_rerank.models.threads import run_beside

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container on Linux: microseconds of all cores, and of what time
_setting_threads = threading.Lock()

B = TypeVar("B")
R = TypeVar("R")


def cores() -> int:
    """Return how many cores this process computes on.

    What it may use, by its affinity and its container's limit, and no more than torch is told to: `OMP_NUM_THREADS` in
    the environment, or `torch.set_num_threads`, set fewer.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit in it ("max")
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
        allowed = min(allowed, math.ceil(quota / period))
    return max(1, min(torch.get_num_threads(), allowed))


def in_streams(
    take: Callable[[], B | None], compute: Callable[[B], R], streams: int, threads: int
) -> Iterator[tuple[B, R]]:
    """Compute batches, several at once, and yield each with its result once it is there.

    Args:
        take: Gives the next batch, or None if there is none at present; called on the thread that iterates.
        compute: Makes a batch's result; called on the streams' threads, of a single batch on the one that iterates.
        streams: How many batches are computed at once.
        threads: How many threads torch may use for each.
    """
    first = take()
    if first is None:
        return
    second = take() if streams > 1 else None
    if second is None:  # nothing to do beside it
        batch: B | None = first
        while batch is not None:
            yield batch, compute(batch)
            batch = take()
        return
    given: SimpleQueue[B | None] = SimpleQueue()
    done: SimpleQueue[tuple[B, R | BaseException]] = SimpleQueue()
    given.put(first)
    given.put(second)
    under_way = 2
    running = _start(lambda ready: _work(given, done, compute, ready, threads), streams)
    try:
        while True:
            while under_way <= streams and (batch := take()) is not None:  # one waits, so that no stream does
                given.put(batch)
                under_way += 1
            if not under_way:
                return
            batch, result = done.get()
            under_way -= 1
            if isinstance(result, BaseException):
                raise result
            yield batch, result
    finally:
        with contextlib.suppress(Empty):
            while True:
                given.get_nowait()
        for _ in running:
            given.put(None)
        concurrent.futures.wait(running)


def _start(work: Callable[[SimpleQueue[int]], None], streams: int) -> list[concurrent.futures.Future[None]]:
    ready: SimpleQueue[int] = SimpleQueue()
    with _setting_threads:
        running = [run_beside("retrieve-rerank stream", partial(work, ready)) for _ in range(streams)]
        # What a stream has set for itself is also what new threads of others would begin with.
        torch.set_num_threads(max(ready.get() for _ in running))
    return running


def _work(
    given: SimpleQueue[B | None],
    done: SimpleQueue[tuple[B, R | BaseException]],
    compute: Callable[[B], R],
    ready: SimpleQueue[int],
    threads: int,
) -> None:
    before = torch.get_num_threads()  # asked first, or the thread would not keep what is set
    torch.set_num_threads(threads)
    ready.put(before)
    while (batch := given.get()) is not None:
        done.put((batch, _result(compute, batch)))


def _result(compute: Callable[[B], R], batch: B) -> R | BaseException:
    try:
        return compute(batch)
    except BaseException as error:  # noqa: BLE001 - it belongs to the thread that iterates
        return error
