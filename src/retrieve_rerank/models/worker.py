"""One thread that everything of one model, or of one index, runs on.

A tokenizer and a model are not made for two threads at once, and an event loop must not wait for either. So each
model has a thread of its own: sync callers wait for it, async callers await it, and neither the event loop's thread nor
its shared default pool is ever used.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from retrieve_rerank.errors import RetrieveRerankError

_MINE = True
P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs calls one after another on one thread, started at the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._closing: ThreadPoolExecutor | None = None
        self._here = threading.local()  # `mine` is set on our own thread only
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[Worker], tuple[str]]:
        return Worker, (self._name,)  # pickled and copied as a worker of its own

    def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on the thread and wait for its result."""
        if getattr(self._here, "mine", False):  # already there: waiting for ourselves would never end
            return call(*args, **kwargs)
        return self._submit(call, *args, **kwargs).result()

    async def arun(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on the thread and await its result. A cancelled call that has not begun is dropped."""
        return await asyncio.wrap_future(self._submit(call, *args, **kwargs))

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Run `last` after what is queued, then let the thread end. A later call starts a new one."""
        with self._lock:
            executor, self._executor = self._executor, None
            if executor is None or os.getpid() != self._process:
                return
            done = executor.submit(last) if last is not None else None
            executor.shutdown(wait=False)
            self._closing = executor
        if done is not None and not getattr(self._here, "mine", False):
            done.result()

    def _submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"{self._name} was made in process {self._process} and cannot be used in its forked child "
                f"{os.getpid()}: threads and native handles do not survive a fork. Create it in the child, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        with self._lock:
            if self._executor is None:
                # The thread must not hold the worker, or it would outlive everybody who does.
                remember = functools.partial(setattr, self._here, "mine", _MINE)
                self._executor = ThreadPoolExecutor(1, self._name, initializer=remember)
                if self._closing is not None:  # never two threads at once: the new one begins when the old one ends
                    self._executor.submit(self._closing.shutdown)
                    self._closing = None
            return self._executor.submit(call, *args, **kwargs)
