"""First stages asked in whatever way they can be: for one query or many, sync or async, one or several side by side."""

from __future__ import annotations

import asyncio
import dis
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Sized
from concurrent.futures import ALL_COMPLETED, FIRST_EXCEPTION, Future, wait
from functools import lru_cache, partial
from types import CodeType
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

from retrieve_rerank.checks import check_choice, check_queries, is_iterable
from retrieve_rerank.errors import (
    DegradedWarning,
    InvalidInputError,
    RetrieveRerankError,
    in_one_line,
    shown,
    warn_caller,
)
from retrieve_rerank.models.threads import run_beside
from retrieve_rerank.retrieval.fusion import fuse, merge_of
from retrieve_rerank.types import Hit, Retriever

Options: TypeAlias = Mapping[str, object]
OnRetrieverError = Literal["raise", "skip"]
T = TypeVar("T")


def check_retriever(retriever: object, what: str) -> None:
    """Raise InvalidInputError, which calls it `what`, unless this is a first stage."""
    if not callable(getattr(retriever, "retrieve", None)):
        raise InvalidInputError(
            f"{what} must have retrieve(query, k), as ChromaIndex has; got {type(retriever).__name__}"
        )


def check_retrievers(
    given: object,
    check: Callable[[object, str], None] = check_retriever,
    read: Callable[[list[Any]], list[Any]] = list,
) -> list[Any]:
    """Return retrievers that are to be fused, or raise InvalidInputError.

    Args:
        given: What the caller gave.
        check: Raises it where one of them, which it is told the name of, is none.
        read: Makes retrievers of a list that was written down.
    """
    if isinstance(given, str) or not is_iterable(given):
        raise InvalidInputError(f"retrievers must be a list of retrievers, got {type(given).__name__}")
    retrievers = read(list(cast("Iterable[Any]", given)))
    if not retrievers:
        raise InvalidInputError("retrievers is empty; give at least one")
    for position, retriever in enumerate(retrievers):
        check(retriever, f"retrievers[{position}]")
    return retrievers


# What a search takes or is made with, where somebody would look for it among the first stage's options.
_ELSEWHERE = {
    "k": "how many hits a search returns is top_n, how many candidates it finds is fetch_k of the pipeline",
    "fetch_k": "it is set where the pipeline is made",
}


class FirstStage:
    """A retriever that is asked for candidates, at most `k` a query.

    Args:
        retriever: Anything with `retrieve(query, k)`; its `aretrieve`, `retrieve_many` and `aretrieve_many` are used
            where it has them.
        thread: What the thread is called on which a retriever that is not async is awaited.
    """

    def __init__(self, retriever: Retriever, thread: str = "retrieve-rerank first stage") -> None:
        self.retriever = retriever
        self._thread = thread
        self._told: set[str] = set()

    @property
    def takes_many(self) -> bool:
        """Whether it finds for many queries together."""
        return callable(getattr(self.retriever, "retrieve_many", None))

    def retrieve(self, query: str, k: int, options: Options, rewrites: Sequence[str] = ()) -> list[Hit]:
        """Find candidates for a query; given in other words, too, the fusion of what each of them finds.

        Raises:
            InvalidInputError: If the retriever does not take an option, or a rewrite cannot be used.
        """
        if queries := check_queries(rewrites, "rewrites"):
            return self._fused(self.retrieve_many([query, *queries], k, options), k)
        method = self.retriever.retrieve
        return self._first(self._checked(method, options)(query, k, **options), k, method)

    async def aretrieve(self, query: str, k: int, options: Options, rewrites: Sequence[str] = ()) -> list[Hit]:
        """As `retrieve`, without blocking the event loop."""
        if queries := check_queries(rewrites, "rewrites"):
            return self._fused(await self.aretrieve_many([query, *queries], k, options), k)
        call, method = self._awaitable("aretrieve", "retrieve", options)
        return self._first(await call(query, k, **options), k, method)

    def retrieve_many(self, queries: Sequence[str], k: int, options: Options) -> list[list[Hit]]:
        """Find candidates for each query, together where the retriever can."""
        if len(queries) == 1 or not self.takes_many:
            return [self.retrieve(query, k, options) for query in queries]
        many: Callable[..., list[list[Hit]]] = getattr(self.retriever, "retrieve_many")  # noqa: B009 - not in the protocol
        return self._one_each(queries, self._checked(many, options)(queries, k, **options), k, many)

    async def aretrieve_many(self, queries: Sequence[str], k: int, options: Options) -> list[list[Hit]]:
        """As `retrieve_many`, without blocking the event loop."""
        if len(queries) == 1 or not (self.takes_many or hasattr(self.retriever, "aretrieve_many")):
            return [await self.aretrieve(query, k, options) for query in queries]
        call, method = self._awaitable("aretrieve_many", "retrieve_many", options)
        return self._one_each(queries, await call(queries, k, **options), k, method)

    def _awaitable(
        self, name: str, blocking: str, options: Options
    ) -> tuple[Callable[..., Awaitable[Any]], Callable[..., Any]]:
        """Return the retriever's async method, or the blocking one on a thread, and which of its methods that is."""
        if (method := getattr(self.retriever, name, None)) is not None:
            return self._checked(method, options), method
        method = getattr(self.retriever, blocking)
        return partial(run_on_thread, self._thread, self._checked(method, options)), method

    def _checked(self, method: Callable[..., T], options: Options) -> Callable[..., T]:
        """Return `method`, or raise InvalidInputError where it does not take an option: no fault of its code."""
        try:
            parameters = inspect.signature(method).parameters if options else {}
        except ValueError:  # not written in Python
            return method
        first = list(parameters)[:2]  # query and k, whatever they are called
        wrong = set(options) & {*first, "query", "k"}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            wrong |= set(options) - set(parameters)
        if wrong:
            takes = ", ".join(name for name in parameters if name not in first) or "none"
            hints = "".join(f"; {hint}" for name, hint in _ELSEWHERE.items() if name in wrong)
            raise InvalidInputError(
                f"{type(self.retriever).__name__} has no option {', '.join(map(repr, sorted(wrong)))} in a search; it "
                f"takes: {takes}{hints}"
            )
        return method

    def _fused(self, found: Sequence[list[Hit]], k: int) -> list[Hit]:
        return fuse(found, k=k, merge=merge_of(self.retriever))

    def _one_each(
        self, queries: Sequence[str], found: Sequence[list[Hit]], k: int, method: Callable[..., Any]
    ) -> list[list[Hit]]:
        if not isinstance(found, Sized) or len(found) != len(queries):
            raise InvalidInputError(
                f"{type(self.retriever).__name__}.retrieve_many was given {len(queries)} queries and returned "
                f"{f'{len(found)} lists' if isinstance(found, Sized) else shown(found)}; expected one a query"
            )
        return [self._first(hits, k, method) for hits in found]

    def _first(self, found: Sequence[Hit], k: int, method: Callable[..., Any]) -> list[Hit]:
        """Return the first `k` of what a method of the retriever found, and warn if it never looks at `k`.

        Raises:
            InvalidInputError: If that is no list of hits.
        """
        if isinstance(found, (list, tuple)):
            hits = list(found[:k])
            if all(isinstance(hit, Hit) for hit in hits):
                if len(hits) < k and not _looks_at_depth(method):
                    name = type(self.retriever).__name__
                    warn_of_few(name, len(hits), k, self._told, unset=[name])
                return hits
        raise InvalidInputError(f"{type(self.retriever).__name__} must find a list of Hit, and found {shown(found)}")


def warn_of_few(name: str, found: int, fetch_k: int, told: set[str], *, unset: Sequence[str]) -> None:
    """Warn once that a first stage found less than was looked for, and what to do.

    Args:
        name: Of the first stage.
        found: How many documents it found.
        fetch_k: How many were looked for.
        told: The names of those of which was warned before.
        unset: What cannot be told how many to find; none where something within found `fetch_k`, and a later step left
            some of them out.
    """
    if name in told:
        return
    told.add(name)
    if unset:
        why = f"how many {' and '.join(dict.fromkeys(unset))} finds cannot be set from here"
        cure = "set its own depth where it is made"
    else:
        why = f"a retriever in it found {fetch_k}, of which a later step left out the others"
        cure = "let that step keep more, such as by its top_n"
    warn_caller(
        f"{name} found {found} documents of the {fetch_k} that are looked for, and {why}: the best may be missing. "
        f"To change that, {cure}; where {found} are enough, set fetch_k={max(1, found)}",
        UserWarning,
    )


def loads(function: Callable[..., Any], name: str) -> bool:
    """Whether a function's code looks at a parameter, a global or an attribute of this name; True if it has no code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is None or name in _loaded(code)


@lru_cache(maxsize=1024)
def _loaded(code: CodeType) -> frozenset[str]:
    steps = [step.argval for step in dis.get_instructions(code) if "LOAD" in step.opname]
    names = (name for value in steps for name in (value if isinstance(value, tuple) else (value,)))
    return frozenset(name for name in names if isinstance(name, str))


def _looks_at_depth(method: Callable[..., Any]) -> bool:
    """Whether the code of a retriever's method looks at its second argument; True where that cannot be seen."""
    code = getattr(method, "__func__", method)
    try:
        names = list(inspect.signature(method).parameters.values())
    except ValueError:  # not written in Python
        return True
    return len(names) < 2 or names[1].kind is not names[1].POSITIONAL_OR_KEYWORD or loads(code, names[1].name)


def ask_all(
    names: Sequence[str], calls: Sequence[Callable[[], T]], on_error: OnRetrieverError, *, with_options: bool = False
) -> list[T | None]:
    """Return what each call returns; None for one that failed and is skipped.

    Each call runs on a thread of its own in the caller's context, so that none waits for another. A thread ends with
    its call; one that hangs is left alone: it takes no other call's place and, as a daemon, keeps no interpreter alive.

    Args:
        names: Of the calls, for the warning.
        calls: What to run.
        on_error: "raise" raises the first failure at once and lets the other calls end by themselves; "skip" warns
            and goes on without those that failed. What the caller did wrong is never skipped.
        with_options: Whether the calls hand options on, so that a TypeError means that one was not understood.

    Raises:
        RetrieveRerankError: If all calls failed and would be skipped.
    """
    futures = [run_beside("retrieve-rerank hybrid", call) for call in calls]
    wait(futures, return_when=FIRST_EXCEPTION if on_error == "raise" else ALL_COMPLETED)
    return _answers(names, futures, on_error, with_options=with_options)


async def aask_all(
    names: Sequence[str],
    calls: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    on_error: OnRetrieverError,
    *,
    with_options: bool = False,
) -> list[T | None]:
    """As `ask_all`, for coroutine functions, without blocking the event loop; calls not waited for are cancelled."""
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=FIRST_EXCEPTION if on_error == "raise" else ALL_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(_failure)  # looked at, or asyncio would log it as never retrieved
    return _answers(names, tasks, on_error, with_options=with_options)


def run_on_thread(name: str, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Awaitable[T]:
    """Run a call that blocks on a thread of that name, to be awaited. A cancelled call goes on by itself."""
    return asyncio.wrap_future(run_beside(name, partial(call, *args, **kwargs)))


def named(parts: Iterable[object]) -> list[str]:
    """Return a name for each retriever: its number and its class."""
    return [f"retriever {number} ({type(part).__name__})" for number, part in enumerate(parts, start=1)]


def check_on_retriever_error(on_error: OnRetrieverError) -> OnRetrieverError:
    """Return `on_error`, or raise InvalidInputError."""
    return cast(OnRetrieverError, check_choice(on_error, get_args(OnRetrieverError), "on_error"))


def _failure(done: Future[T] | asyncio.Future[T]) -> BaseException | None:
    """Return why a call failed; None if it did not, or has not ended."""
    return None if done.cancelled() or not done.done() else done.exception()


def _answers(
    names: Sequence[str],
    calls: Sequence[Future[T] | asyncio.Task[T]],
    on_error: OnRetrieverError,
    *,
    with_options: bool,
) -> list[T | None]:
    never_skipped = (InvalidInputError, TypeError) if with_options else InvalidInputError
    failures = [_failure(call) for call in calls]
    failed = [(name, failure) for name, failure in zip(names, failures, strict=True) if failure is not None]
    for _, failure in failed:
        if on_error == "raise" or isinstance(failure, never_skipped) or not isinstance(failure, Exception):
            raise failure
    if failed:
        said = "; ".join(f"{name}: {in_one_line(failure)}" for name, failure in failed)
        if len(failed) == len(names):
            raise RetrieveRerankError(f"every retriever failed: {said}") from failed[0][1]
        warn_caller(f"the result lacks what these would have found: {said}", DegradedWarning)
    return [None if failure else call.result() for call, failure in zip(calls, failures, strict=True)]
