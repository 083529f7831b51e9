"""One thread with an event loop of its own, on which everything that one remote model asks runs.

So there is one pool of connections and one bound on requests for all callers, whether they wait, await or come from
several event loops; no thread is held by a call, and no caller's event loop ever waits. A call that is given up is
cancelled there, and its requests with it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from retrieve_rerank.errors import RemoteError
from retrieve_rerank.models.worker import time_left

_FAREWELL = 2.0  # seconds that the interpreter's end waits, all threads together


class Closable(Protocol):
    """What lives on the loop."""

    async def aclose(self) -> None:
        """Let go of what is held."""


R = TypeVar("R", bound=Closable)
T = TypeVar("T")


class LoopThread(Generic[R]):
    """Runs coroutines around one resource, which is made at the first call.

    Args:
        name: What the thread is called, and what errors call it.
        make: Makes the resource; must not hold whoever holds this.
    """

    def __init__(self, name: str, make: Callable[[], R]) -> None:
        self._name = name
        self._make = make
        self._lock = threading.Lock()
        self._lane: _Lane[R] | None = None
        self._process = os.getpid()

    @property
    def resource(self) -> R | None:
        """The resource, if it is there; to be looked at only."""
        lane = self._lane
        return None if lane is None else lane.resource

    def run(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop and wait for its result."""
        future = self._submit(call)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._closed() from None
        finally:
            future.cancel()  # whoever waited may have been interrupted

    async def arun(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop and await its result. A cancelled call is cancelled there, too."""
        return await asyncio.wrap_future(self._submit(call))

    def run_until(self, deadline: float | None, call: Callable[[R], Coroutine[Any, Any, None]]) -> None:
        """As `run`, at most until `deadline`, a value of `time.monotonic`; then the call is cancelled."""
        future = self._submit(call)
        try:
            concurrent.futures.wait([future], time_left(deadline))
        finally:
            closed = future.cancelled()  # by the end of the interpreter
            cancelled = future.cancel()
        if closed:
            raise self._closed()
        if not cancelled:
            future.result()

    async def arun_until(self, deadline: float | None, call: Callable[[R], Coroutine[Any, Any, None]]) -> None:
        """As `run_until`, without blocking the event loop."""
        waiting = asyncio.wrap_future(self._submit(call))
        try:
            await asyncio.wait([waiting], timeout=time_left(deadline))
        finally:
            cancelled = waiting.cancel()
        if not cancelled:
            waiting.result()

    def close(self) -> None:
        """Let the calls under way end, then the resource and the thread. A later call starts both again."""
        self._notice_fork()
        with self._lock:
            lane, self._lane = self._lane, None
            if lane is not None:
                self._unheld.detach()
                lane.stop()
        if lane is not None:
            lane.thread.join()

    def _submit(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        self._notice_fork()
        with self._lock:
            if self._lane is None or self._lane.stopped:
                self._lane = _Lane(self._name, self._make)
                self._unheld = weakref.finalize(self, self._lane.stop)
                self._unheld.atexit = False
            return self._lane.submit(call)

    def _notice_fork(self) -> None:
        # A forked child has neither the thread nor a right to its connections, and perhaps a lock that nobody frees.
        if os.getpid() != self._process:
            self._lock, self._lane, self._process = threading.Lock(), None, os.getpid()

    def _closed(self) -> RemoteError:
        return RemoteError(f"{self._name} was closed while a call was under way; make the call again")


class _Lane(Generic[R]):
    """The thread, its loop and the resource; does not hold the `LoopThread`, so that it ends with it."""

    def __init__(self, name: str, make: Callable[[], R]) -> None:
        self.resource = make()
        self.loop = asyncio.new_event_loop()
        self.stopped = False
        self._over = asyncio.Event()
        self._calls: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()
        _lanes.add(self)

    def submit(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        future = asyncio.run_coroutine_threadsafe(call(self.resource), self.loop)
        self._calls.add(future)
        return future

    def stop(self) -> None:
        """End after the calls that were made before."""
        self.stopped = True
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self._over.set)

    def _work(self) -> None:
        try:
            self.loop.run_until_complete(self._until_over())
        finally:
            self.loop.close()

    async def _until_over(self) -> None:
        await self._over.wait()
        if calls := [asyncio.wrap_future(call) for call in self._calls if not call.done()]:
            await asyncio.gather(*calls, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}  # what callers who gave up have left behind
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.resource.aclose()


_lanes: weakref.WeakSet[_Lane[Any]] = weakref.WeakSet()


def _farewell(process: int) -> None:
    if os.getpid() != process:
        return
    end = time.monotonic() + _FAREWELL
    lanes = list(_lanes)
    for lane in lanes:
        lane.stop()
    for lane in lanes:
        lane.thread.join(max(0.0, end - time.monotonic()))


atexit.register(_farewell, os.getpid())
