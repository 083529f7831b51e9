"""What the contracts share: how an answer is read, how a check says what is wrong, how to run them without pytest."""

from __future__ import annotations

import asyncio
import threading
import unittest
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

PATIENCE = 60.0  # seconds after which a call counts as one that hangs
_TICK = 0.005


@dataclass(frozen=True, slots=True)
class Answer:
    """One item that a component returned, whatever its framework calls it.

    Attributes:
        id: Its id.
        text: Its text.
        metadata: Its metadata, without what the component itself wrote there.
        score: What it is ordered by, as the component gave it; None where it gives none.
        rank: Its 1-based rank, if the component says it.

    Example:
        >>> Answer("1", "Paris", score=0.9).metadata
        {}
    """

    id: str | None
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    score: Any = None
    rank: int | None = None


def run_contract(contract: type) -> dict[str, str]:
    """Run a contract without pytest: for tables, and for a look at one component.

    Args:
        contract: A class made from one of the contracts.

    Returns:
        By check, "pass", "FAIL: …" or "n/a: …", in the order of the contract.

    Example:
        >>> from retrieve_rerank.testing import RetrieverContract, hits_of
        >>> class Sorted:
        ...     def __init__(self, passages):
        ...         self.texts = [passage.text for passage in passages]
        ...     def retrieve(self, query, k):
        ...         return hits_of(sorted(self.texts)[:k])
        >>> class SortedContract(RetrieverContract):
        ...     def make(self, passages, k, encoder):
        ...         return Sorted(passages)
        >>> outcomes = run_contract(SortedContract)
        >>> outcomes["k_limits"], outcomes["ids_and_metadata_survive"][:5]
        ('pass', 'FAIL:')
    """
    names = dict.fromkeys(
        name for kind in reversed(contract.__mro__) for name in vars(kind) if name.startswith("test_")
    )
    return {name.removeprefix("test_"): _outcome(getattr(contract(), name)) for name in names}


def _outcome(check: Callable[[], object]) -> str:
    try:
        result = check()
        if isinstance(result, Coroutine):  # a check of the user's own
            awaited(lambda: result)
    except unittest.SkipTest as reason:
        return f"n/a: {reason}"
    except AssertionError as error:
        return f"FAIL: {error or type(error).__name__}"
    except Exception as error:  # noqa: BLE001 - whatever a component raises is its outcome
        return f"FAIL: {type(error).__name__}: {error}"
    except BaseException as error:
        kind = type(error).__name__
        if kind not in ("Skipped", "Failed"):  # pytest's own, which are no Exception
            raise
        return f"{'n/a' if kind == 'Skipped' else 'FAIL'}: {error}"
    return "pass"


# What pytest shows of a failure ends at the check, not in the helpers below: they hide themselves.


def not_applicable(reason: str) -> NoReturn:
    """Leave a check that says nothing about this component; pytest counts it as skipped."""
    __tracebackhide__ = True
    raise unittest.SkipTest(reason)


def needs(condition: object, reason: str) -> None:
    """Leave a check unless the component has what it is about."""
    __tracebackhide__ = True
    if not condition:
        not_applicable(reason)


def expect(condition: object, complaint: str) -> None:
    """Fail the check with `complaint` unless the condition holds."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(complaint)


def refused(call: Callable[[], object], what: str) -> Exception:
    """Return the error that `call` raises, or fail the check: `what` was let through."""
    __tracebackhide__ = True
    try:
        answer = call()
    except Exception as error:  # noqa: BLE001 - any error is a refusal
        return error
    raise AssertionError(f"{what} was let through: {answer!r:.80}")


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what a traceback shows that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of a call, or fail the check if it takes longer; its thread is left behind then."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="contract")
    thread.start()
    thread.join(seconds)
    expect(not thread.is_alive(), f"no answer within {seconds:g} s")
    if failed:
        raise failed[0]
    return done[0]


def awaited(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return the result of an async call, on an event loop of its own; a call that hangs fails the check."""
    return within(PATIENCE, lambda: asyncio.run(call()))


async def ticks_during(call: Awaitable[T]) -> tuple[T, int]:
    """Return a call's result, and how often another task on the event loop ran meanwhile (200 times a second)."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(_TICK)
            count += 1

    task = asyncio.create_task(tick())
    try:
        return await call, count
    finally:
        task.cancel()


async def cancelled(call: Coroutine[Any, Any, object], after: float) -> None:
    """Cancel a call `after` seconds and wait until it has ended; one that ended before is left alone."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait([task])


def in_threads(call: Callable[[int], T], threads: int = 16) -> list[T]:
    """Return what `call` returns for 0, 1, 2, …, each on a thread of its own, all at once; one that hangs fails."""
    gate = threading.Barrier(threads)
    done: dict[int, Future[T]] = {number: Future() for number in range(threads)}

    def run(number: int) -> None:
        gate.wait()
        try:
            done[number].set_result(call(number))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            done[number].set_exception(error)

    for number in done:  # daemons, unlike a pool's: one that hangs keeps no interpreter alive
        threading.Thread(target=run, args=(number,), daemon=True, name="contract").start()
    _, late = wait(done.values(), PATIENCE)
    expect(not late, f"no answer within {PATIENCE:g} s on {len(late)} of {threads} threads")
    return [future.result() for future in done.values()]


def ids(answers: Sequence[Answer]) -> list[str | None]:
    """Return the ids of answers, in their order."""
    return [answer.id for answer in answers]
