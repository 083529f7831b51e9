"""The threads that models and indexes run on, and that callers, sync or async, wait for.

A tokenizer and a model are not made for two threads at once, and an event loop must not wait for either. So each model,
and each index, has a `Worker`: a thread of its own. Sync callers wait for it, async callers await it, and neither the
event loop's thread nor its shared default pool is ever used. A call that takes long lets short ones in between its
parts (`between`), so that nobody waits for a whole index to be encoded.

What asks a server runs on an `EventLoopThread`: one pool of connections and one bound on requests for all callers,
whichever event loops they come from. A call that is given up is cancelled there, and its requests with it.

Other people's retrievers, which may be asked side by side, get a thread a call (`run_beside`). All threads are daemons:
one that hangs in foreign code keeps no interpreter alive.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from retrieve_rerank.errors import RemoteError, RetrieveRerankError

_FAREWELL = 5.0  # seconds that the interpreter's end waits for calls under way, all threads together


class Closable(Protocol):
    """What lives on an event loop of its own."""

    async def aclose(self) -> None:
        """Let go of what is held."""


P = ParamSpec("P")
R = TypeVar("R", bound=Closable)
T = TypeVar("T")
_Call: TypeAlias = "tuple[Future[Any], Callable[[], Any]]"


class Worker:
    """Runs calls one after another on one thread, started at the first call.

    Args:
        name: What the thread is called, and what errors call it.
        patience: Seconds that a call which nobody waits for any more (see `run_until`) may go on before it counts as
            hung, and a new thread takes its place. None never replaces the thread: what runs there cannot be used from
            two threads.
    """

    def __init__(self, name: str, *, patience: float | None = None) -> None:
        self._name = name
        self._patience = patience
        self._token = object()
        self._lock = threading.Lock()
        self._lane: _Lane | None = None
        self._closing: _Lane | None = None
        self._process = os.getpid()

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
        lane, future = self._submit(call, short=short)
        try:
            return future.result()
        finally:
            lane.forget(future)
            del future  # or an error, which holds this frame, and its future would hold each other

    def _submit(self, call: Callable[[], T], *, short: bool = False) -> tuple[_Lane, Future[T]]:
        if os.getpid() != self._process and (self._lane, self._closing) == (None, None):  # never used before the fork
            self._lock, self._process = threading.Lock(), os.getpid()
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"{self._name} was used in process {self._process} and cannot be used in its forked child "
                f"{os.getpid()}: threads and native handles do not survive a fork. Create it in the child, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        with self._lock:
            if self._lane is None or self._lane.closed:
                self._lane = _Lane(self._name, self._patience, self._token)
                self._unheld = _end_with(self, self._lane)
                if self._closing is not None:  # never two threads at once: the new one begins when the old one ends
                    self._lane.put(self._closing.join)
                    self._closing = None
            return self._lane, self._lane.put(call, short=short)


class EventLoopThread(Generic[R]):
    """Runs coroutines around one resource on an event loop of its own; both are made at the first call.

    Args:
        name: What the thread is called, and what errors call it.
        make: Makes the resource; must not hold whoever holds this.
    """

    def __init__(self, name: str, make: Callable[[], R]) -> None:
        self._name = name
        self._make = make
        self._lock = threading.Lock()
        self._loop: _Loop[R] | None = None
        self._process = os.getpid()

    @property
    def resource(self) -> R | None:
        """The resource, if it is there; to be looked at only."""
        loop = self._loop
        return None if loop is None else loop.resource

    def run(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop and wait for its result."""
        future = self._submit(call)
        try:
            return future.result()
        except CancelledError:
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
            loop, self._loop = self._loop, None
            if loop is not None:
                self._unheld.detach()
                loop.close()
        if loop is not None:
            loop.thread.join()

    def _submit(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        self._notice_fork()
        with self._lock:
            if self._loop is None or self._loop.closed:
                self._loop = _Loop(self._name, self._make)
                self._unheld = _end_with(self, self._loop)
            return self._loop.submit(call)

    def _notice_fork(self) -> None:
        # A forked child has neither the thread nor a right to its connections, and perhaps a lock that nobody frees.
        if os.getpid() != self._process:
            self._lock, self._loop, self._process = threading.Lock(), None, os.getpid()

    def _closed(self) -> RemoteError:
        return RemoteError(f"{self._name} was closed while a call was under way; make the call again")


def run_beside(name: str, call: Callable[[], T]) -> Future[T]:
    """Run `call` on a thread of its own, a daemon that ends with it, in the caller's context."""
    future: Future[T] = Future()
    _start(name, partial(contextvars.copy_context().run, _fulfil, future, call))
    return future


def time_left(deadline: float | None) -> float | None:
    """Return the seconds until `deadline`, a value of `time.monotonic`; 0.0 once it has passed."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


class _Lane:
    """A queue of calls and the thread that works it off."""

    def __init__(self, name: str, patience: float | None, token: object) -> None:
        self._name = name
        self._patience = patience
        self._token = token
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._short: deque[_Call] = deque()
        self._lock = threading.RLock()  # a finalizer may interrupt its own holder
        self._running: Future[Any] | None = None
        self._forgotten: Future[Any] | None = None  # the one under way, if it is to end where it may
        self._given_up: Future[Any] | None = None  # the one under way, if nobody waits for it
        self.closed = False
        self.thread = _start(name, self._work)
        _open.add(self)

    def put(self, call: Callable[[], T], *, short: bool = False) -> Future[T]:
        future: Future[T] = Future()
        if short:
            self._short.append((future, call))
        self._queue.put(_SHORT if short else (future, call))
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

    def give_up(self, future: Future[Any]) -> None:
        """Say that nobody waits for a call any more: it is dropped, or must end soon."""
        if future.done() or future.cancel():
            return
        with self._lock:
            if self._running is not future or self._given_up is future:
                return
            self._given_up = future
        if self.closed:
            self._replace(future)
        elif self._patience is not None:
            timer = threading.Timer(self._patience, self._replace, [future])
            timer.daemon = True
            timer.start()

    def close(self) -> None:
        """End the thread after what is queued. A call under way that nobody waits for holds up nothing."""
        self.closed = True
        self._queue.put(None)
        self._replace(self._given_up)

    def join(self) -> None:
        """Wait for the thread to end, also for one that takes over meanwhile."""
        thread = None
        while thread is not self.thread:
            thread = self.thread
            thread.join()

    def _replace(self, hung: Future[Any] | None) -> None:
        """Let a new thread work off the queue if `hung` is still under way; the old one ends with it."""
        with self._lock:
            if hung is not None and self._running is hung:
                self._given_up = self._running = None
                self.thread = _start(self._name, self._work)

    def _let_one_in(self) -> None:
        if threading.current_thread() is self.thread and self._short:  # else it was let in before
            _fulfil(*self._short.popleft())

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
                self._given_up = self._running = self._forgotten = None


class _Loop(Generic[R]):
    """An event loop, its thread and the resource."""

    def __init__(self, name: str, make: Callable[[], R]) -> None:
        self.resource = make()
        self.closed = False
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._calls: weakref.WeakSet[Future[Any]] = weakref.WeakSet()
        self.thread = _start(name, self._work)
        _open.add(self)

    def submit(self, call: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        future = asyncio.run_coroutine_threadsafe(call(self.resource), self._loop)
        self._calls.add(future)
        return future

    def close(self) -> None:
        """End after the calls that were made before."""
        self.closed = True
        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._over.set)

    def _work(self) -> None:
        try:
            self._loop.run_until_complete(self._until_over())
        finally:
            self._loop.close()

    async def _until_over(self) -> None:
        await self._over.wait()
        if calls := [asyncio.wrap_future(call) for call in self._calls if not call.done()]:
            await asyncio.gather(*calls, return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}  # what callers who gave up have left behind
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.resource.aclose()


class _Here(threading.local):
    """Whose thread this is."""

    token: object = None
    lane: _Lane | None = None


# In the queue: the turn of a short call, unless it was let in before.
_SHORT: _Call = (Future(), lambda: None)
_here = _Here()
_open: weakref.WeakSet[_Lane | _Loop[Any]] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _start(name: str, work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    _threads.add(thread)
    return thread


def _end_with(owner: object, held: _Lane | _Loop[Any]) -> weakref.finalize[..., Any]:
    """Close what `owner` holds once nobody holds `owner`: a thread must not outlive everybody who uses it."""
    ending = weakref.finalize(owner, held.close)
    ending.atexit = False
    return ending


async def _awaited(lane: _Lane, future: Future[T]) -> T:
    try:
        return await asyncio.wrap_future(future)
    finally:
        lane.forget(future)
        del future


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


def _farewell(process: int) -> None:
    # A thread in the middle of native code while the interpreter is taken down can crash it: let it finish.
    if os.getpid() != process:
        return
    end = time.monotonic() + _FAREWELL
    for held in list(_open):
        held.close()
    for thread in list(_threads):
        thread.join(max(0.0, end - time.monotonic()))


atexit.register(_farewell, os.getpid())
