"""One thread that everything of one model, or of one index, runs on.

A tokenizer and a model are not made for two threads at once, and an event loop must not wait for either. So each
model has a thread of its own: sync callers wait for it, async callers await it, and neither the event loop's thread nor
its shared default pool is ever used. The thread is a daemon: one that hangs in foreign code keeps no interpreter alive.
A call that takes long lets short ones in between its parts (`between`), so that nobody waits for a whole index to be
encoded. Other people's retrievers, which may be asked side by side, get a daemon thread a call instead (`run_beside`).
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from retrieve_rerank.errors import RetrieveRerankError

_PATIENCE = 60.0  # seconds; a forward pass that takes longer than this beyond its deadline hangs
_FAREWELL = 5.0  # seconds that the interpreter's end waits for calls under way, all workers together

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Runs calls one after another on one thread, started at the first call.

    Args:
        name: What the thread is called, and what errors call it.
        patience: Seconds that a call which nobody waits for any more (see `run_until`) may go on. After them it counts
            as hung, and a new thread takes its place.
    """

    def __init__(self, name: str, *, patience: float = _PATIENCE) -> None:
        self._name = name
        self._patience = patience
        self._token = object()
        self._lock = threading.Lock()
        self._lane: _Lane | None = None
        self._closing: _Lane | None = None
        self._process = os.getpid()
        self._untouched = True

    def __reduce__(self) -> tuple[Callable[..., Worker], tuple[()]]:
        return partial(Worker, self._name, patience=self._patience), ()  # pickled and copied as a worker of its own

    @property
    def thread(self) -> threading.Thread | None:
        """The thread that the next call runs on, if it has started."""
        lane = self._lane
        return None if lane is None else lane.thread

    def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on the thread and wait for its result. A caller who is interrupted gives the call up."""
        return self._run(partial(call, *args, **kwargs))

    async def arun(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `call` on the thread and await its result. A cancelled call is dropped, or ends where it may."""
        return await _awaited(*self._submit(partial(call, *args, **kwargs)))

    def run_soon(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for a short call: one under way that takes long lets it in."""
        return self._run(partial(call, *args, **kwargs), short=True)

    async def arun_soon(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run_soon`, without blocking the event loop."""
        return await _awaited(*self._submit(partial(call, *args, **kwargs), short=True))

    def between(self) -> None:
        """Let in the short calls that wait. For a call that takes long, between its parts.

        Raises:
            concurrent.futures.CancelledError: If nobody waits for the call under way any more: it is to end.
        """
        if _here.lane is not None and _here.token is self._token:
            _here.lane.between()

    def run_until(self, deadline: float | None, call: Callable[P, None], /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Run `call` on the thread and wait until it ends, or until `deadline`, a value of `time.monotonic`.

        Returns:
            Whether the call has ended. One that has not begun is dropped. One under way goes on until it notices that
            nobody waits, as `Scoring.wanted` tells; if it does not, another thread takes over after `patience`.
        """
        if _here.token is self._token:
            call(*args, **kwargs)
            return True
        lane, future = self._submit(partial(call, *args, **kwargs))
        try:
            concurrent.futures.wait([future], time_left(deadline))
        finally:
            lane.give_up(future)
        ended = future.done() and not future.cancelled()
        if ended:
            future.result()
        return ended

    async def arun_until(
        self, deadline: float | None, call: Callable[P, None], /, *args: P.args, **kwargs: P.kwargs
    ) -> bool:
        """As `run_until`, without blocking the event loop. A cancelled call is given up too."""
        lane, future = self._submit(partial(call, *args, **kwargs))
        waiting = asyncio.wrap_future(future)
        try:
            await asyncio.wait([waiting], timeout=time_left(deadline))
        finally:
            lane.give_up(future)
            ended = not waiting.cancel()  # a late result or error must not go to a loop that may be closed by then
        if ended:
            waiting.result()
        return ended

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Run `last` after what is queued, then let the thread end. A later call starts a new one."""
        with self._lock:
            lane, self._lane = self._lane, None
            if lane is None or lane.closed or os.getpid() != self._process:  # closed: the interpreter is ending
                return
            done = lane.put(last) if last is not None else None
            self._unheld.detach()
            lane.close()
            self._closing = lane
        if done is not None and _here.token is not self._token:
            done.result()

    def _run(self, call: Callable[[], T], *, short: bool = False) -> T:
        if _here.token is self._token:  # already there: waiting for ourselves would never end
            return call()
        return _result(*self._submit(call, short=short))

    def _submit(self, call: Callable[[], T], *, short: bool = False) -> tuple[_Lane, Future[T]]:
        if os.getpid() != self._process and self._untouched:  # made before the fork, and first used after it
            self._lock, self._process = threading.Lock(), os.getpid()
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"{self._name} was used in process {self._process} and cannot be used in its forked child "
                f"{os.getpid()}: threads and native handles do not survive a fork. Create it in the child, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        with self._lock:
            self._untouched = False
            if self._lane is None or self._lane.closed:
                # The thread does not hold the worker, or it would outlive everybody who does.
                self._lane = _Lane(self._name, self._patience, self._token)
                self._unheld = weakref.finalize(self, self._lane.close)
                self._unheld.atexit = False
                if self._closing is not None:  # never two threads at once: the new one begins when the old one ends
                    self._lane.put(self._closing.join)
                    self._closing = None
            return self._lane, self._lane.put(call, short=short)


def _result(lane: _Lane, future: Future[T]) -> T:
    try:
        return future.result()
    finally:
        lane.forget(future)
        del future  # or an error, which holds this frame, and its future would hold each other


async def _awaited(lane: _Lane, future: Future[T]) -> T:
    try:
        return await asyncio.wrap_future(future)
    finally:
        lane.forget(future)
        del future


def time_left(deadline: float | None) -> float | None:
    """Return the seconds until `deadline`, a value of `time.monotonic`; 0.0 once it has passed."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


def run_beside(name: str, call: Callable[[], T]) -> Future[T]:
    """Run `call` on a thread of its own, a daemon that ends with it, in the caller's context."""
    future: Future[T] = Future()
    work = partial(contextvars.copy_context().run, _fulfil, future, call)
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    _threads.add(thread)
    return future


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(call())
        except StopIteration as error:  # asyncio cannot pass it on: whoever awaits would wait for ever
            stopped = RuntimeError(f"StopIteration was raised: {error}")
            stopped.__cause__ = error
            future.set_exception(stopped)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            future.set_exception(error)
        finally:
            del future, call  # or an error, which holds this frame, and its future would hold each other


# In the queue: the turn of a short call, unless it was let in before.
_SHORT: tuple[Future[Any], Callable[[], Any]] = (Future(), lambda: None)


class _Here(threading.local):
    """Whose thread this is."""

    token: object = None
    lane: _Lane | None = None


class _Lane:
    """A queue of calls and the thread that works it off."""

    def __init__(self, name: str, patience: float, token: object) -> None:
        self._name = name
        self._patience = patience
        self._token = token
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._short: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._lock = threading.RLock()  # a finalizer may interrupt its own holder
        self._running: Future[Any] | None = None
        self._forgotten: Future[Any] | None = None  # the one under way, if it is to end where it may
        self._given_up: threading.Timer | None = None  # ticks while nobody waits for the call under way
        self.closed = False
        self._start()
        _lanes.add(self)

    def put(self, call: Callable[[], T], *, short: bool = False) -> Future[T]:
        future: Future[T] = Future()
        if short:
            self._short.append((future, call))
            self._queue.put(_SHORT)
        else:
            self._queue.put((future, call))
        return future

    def forget(self, future: Future[Any]) -> None:
        """Say that the caller is gone: a call that has not begun is dropped, and one under way learns it in between."""
        if future.done() or future.cancel():
            return
        with self._lock:
            if self._running is future:
                self._forgotten = future

    def between(self) -> None:
        for _ in range(len(self._short)):  # not those that come meanwhile, or the long call would never go on
            self._let_one_in()
        with self._lock:
            if self._forgotten is not None and self._forgotten is self._running:
                raise CancelledError

    def _let_one_in(self) -> None:
        if threading.current_thread() is self.thread and self._short:  # else it was let in before
            _fulfil(*self._short.popleft())

    def close(self) -> None:
        """End the thread after what is queued. A call under way that nobody waits for holds up nothing."""
        self.closed = True
        self._queue.put(None)
        self._replace()

    def join(self) -> None:
        """Wait for the thread to end, also for one that takes over meanwhile."""
        thread = None
        while thread is not self.thread:
            thread = self.thread
            thread.join()

    def give_up(self, future: Future[Any]) -> None:
        """Say that nobody waits for a call any more: it is dropped, or must end soon."""
        if future.done() or future.cancel():
            return
        with self._lock:
            if self._running is not future or self._given_up is not None:
                return
            self._given_up = threading.Timer(self._patience, self._replace)
            self._given_up.daemon = True
            self._given_up.start()
        if self.closed:
            self._replace()

    def _start(self) -> None:
        self.thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self.thread.start()
        _threads.add(self.thread)

    def _replace(self) -> None:
        """Let a new thread work off the queue if nobody waits for the call under way; the old one ends with it."""
        with self._lock:
            if self._given_up is not None:
                self._given_up.cancel()
                self._given_up = self._running = None
                self._start()

    def _work(self) -> None:
        _here.token, _here.lane = self._token, self
        while (item := self._queue.get()) is not None:
            if item is _SHORT:
                self._let_one_in()
                continue
            future, call = item
            with self._lock:
                self._running = future
            _fulfil(future, call)
            del item, future, call  # or an idle thread would hold what it last worked on
            with self._lock:
                if threading.current_thread() is not self.thread:
                    return
                if self._given_up is not None:
                    self._given_up.cancel()
                self._given_up = self._running = self._forgotten = None


_here = _Here()
_lanes: weakref.WeakSet[_Lane] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _farewell(process: int) -> None:
    # A thread in the middle of native code while the interpreter is taken down can crash it: let it finish.
    if os.getpid() != process:
        return
    end = time.monotonic() + _FAREWELL
    for lane in list(_lanes):
        lane.close()
    for thread in list(_threads):
        thread.join(max(0.0, end - time.monotonic()))


atexit.register(_farewell, os.getpid())
