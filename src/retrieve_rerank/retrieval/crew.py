"""Several retrievers asked at once, and what becomes of the answer where one of them fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, Future, wait
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar

from retrieve_rerank.errors import DegradedWarning, InvalidInputError, RetrieveRerankError, in_one_line, warn_caller
from retrieve_rerank.models.worker import run_beside

OnError = Literal["raise", "skip"]
P = ParamSpec("P")
T = TypeVar("T")


class Crew:
    """Runs calls side by side, each on a thread of its own in the caller's context, so that none waits for another.

    A thread ends with its call. One that hangs is left alone: it takes no other call's place and, as a daemon, keeps no
    interpreter alive.

    Args:
        name: What the threads are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def ask(
        self, names: Sequence[str], calls: Sequence[Callable[[], T]], on_error: OnError, *, with_options: bool = False
    ) -> list[T | None]:
        """Return what each call returns; None for one that failed and is skipped.

        Args:
            names: Of the calls, for the warning.
            calls: What to run.
            on_error: "raise" raises the first failure at once and lets the other calls end by themselves; "skip" warns
                and goes on without those that failed. What the caller did wrong is never skipped.
            with_options: Whether the calls hand options on, so that a TypeError means that one was not understood.

        Raises:
            RetrieveRerankError: If all calls failed and would be skipped.
        """
        futures = [run_beside(self._name, call) for call in calls]
        wait(futures, return_when=FIRST_EXCEPTION if on_error == "raise" else ALL_COMPLETED)
        failures = [_failure(future) for future in futures]
        _judge(names, failures, on_error, (InvalidInputError, TypeError) if with_options else InvalidInputError)
        return [None if failure else future.result() for future, failure in zip(futures, failures, strict=True)]

    async def aask(
        self,
        names: Sequence[str],
        calls: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        on_error: OnError,
        *,
        with_options: bool = False,
    ) -> list[T | None]:
        """As `ask`, for coroutine functions, without blocking the event loop; calls not waited for are cancelled."""
        tasks = [asyncio.ensure_future(call()) for call in calls]
        try:
            await asyncio.wait(tasks, return_when=FIRST_EXCEPTION if on_error == "raise" else ALL_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
                task.add_done_callback(_failure)  # looked at, or asyncio would log it as never retrieved
        failures = [_failure(task) for task in tasks]
        _judge(names, failures, on_error, (InvalidInputError, TypeError) if with_options else InvalidInputError)
        return [None if failure else task.result() for task, failure in zip(tasks, failures, strict=True)]

    async def arun(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call that blocks on a thread and await its result. A cancelled call goes on by itself."""
        return await asyncio.wrap_future(run_beside(self._name, partial(call, *args, **kwargs)))


def named(parts: Iterable[object]) -> list[str]:
    """Return a name for each retriever: its number and its class."""
    return [f"retriever {number} ({type(part).__name__})" for number, part in enumerate(parts, start=1)]


def check_on_error(on_error: OnError) -> OnError:
    """Return `on_error`, or raise InvalidInputError."""
    if on_error not in ("raise", "skip"):
        raise InvalidInputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    return on_error


def _failure(done: Future[T] | asyncio.Future[T]) -> BaseException | None:
    """Return why a call failed; None if it did not, or has not ended."""
    return None if done.cancelled() or not done.done() else done.exception()


def _judge(
    names: Sequence[str],
    failures: Sequence[BaseException | None],
    on_error: OnError,
    never_skipped: type[Exception] | tuple[type[Exception], ...],
) -> None:
    failed = [(name, failure) for name, failure in zip(names, failures, strict=True) if failure is not None]
    if not failed:
        return
    for _, failure in failed:
        if on_error == "raise" or isinstance(failure, never_skipped) or not isinstance(failure, Exception):
            raise failure
    said = "; ".join(f"{name}: {in_one_line(failure)}" for name, failure in failed)
    if len(failed) == len(names):
        raise RetrieveRerankError(f"every retriever failed: {said}") from failed[0][1]
    warn_caller(f"the result lacks what these would have found: {said}", DegradedWarning)
