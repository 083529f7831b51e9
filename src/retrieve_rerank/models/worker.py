"""One thread that everything of one model, or of one index, runs on.

A tokenizer and a model are not made for two threads at once, and an event loop must not wait for either. So each
model has a thread of its own: sync callers wait for it, async callers await it, and neither the event loop's thread nor
its shared default pool is ever used.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from retrieve_rerank.errors import RetrieveRerankError

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs calls one after another on one thread, started at the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._thread: int | None = None
        self._process = os.getpid()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on the thread and wait for its result."""
        if threading.get_ident() == self._thread:  # already there: waiting for ourselves would never end
            return call(*args, **kwargs)
        return self._submit(call, *args, **kwargs).result()

    async def arun(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on the thread and await its result. A cancelled call that has not begun is dropped."""
        return await asyncio.wrap_future(self._submit(call, *args, **kwargs))

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Run `last` after what is queued, then let the thread end. A later call starts a new one."""
        with self._lock:
            executor, self._executor, self._thread = self._executor, None, None
        if executor is not None and os.getpid() == self._process:
            if last is not None:
                executor.submit(last).result()
            executor.shutdown(wait=False)

    def _submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"{self._name} was made in process {self._process} and cannot be used in its forked child "
                f"{os.getpid()}: threads and native handles do not survive a fork. Create it in the child, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, self._name, initializer=self._remember_thread)
            return self._executor.submit(call, *args, **kwargs)

    def _remember_thread(self) -> None:
        self._thread = threading.get_ident()
