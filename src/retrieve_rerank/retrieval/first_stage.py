"""A retriever asked in whatever way it can be: one query or many, sync or async."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from retrieve_rerank.checks import check_queries
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.retrieval.fusion import fuse, merge_of
from retrieve_rerank.types import Hit, Retriever

Options: TypeAlias = Mapping[str, object]


class Source:
    """A first stage: what it finds is at most `k` hits a query.

    Args:
        retriever: Anything with `retrieve(query, k)`; its `aretrieve`, `retrieve_many` and `aretrieve_many` are used
            where it has them.
        arun: Runs a call on a thread and awaits it, for a retriever that is not async.
    """

    def __init__(self, retriever: Retriever, arun: Callable[..., Awaitable[Any]]) -> None:
        self.retriever = retriever
        self._arun = arun

    @property
    def takes_many(self) -> bool:
        """Whether it finds for many queries together."""
        return callable(getattr(self.retriever, "retrieve_many", None))

    def check(self, options: Options) -> None:
        """Raise InvalidInputError if the retriever does not take an option: a misspelt one is no fault of its code."""
        if not options:
            return
        try:
            parameters = inspect.signature(self.retriever.retrieve).parameters
        except ValueError:  # not written in Python
            return
        own = list(parameters)[:2]  # query and k, whatever they are called
        wrong = set(options) & {*own, "query", "k"}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            wrong |= set(options) - set(parameters)
        if wrong:
            takes = ", ".join(name for name in parameters if name not in own) or "none"
            depth = "; how many candidates it finds is fetch_k of the pipeline" if "k" in wrong else ""
            raise InvalidInputError(
                f"{type(self.retriever).__name__} has no option {', '.join(map(repr, sorted(wrong)))} in a search; it "
                f"takes: {takes}{depth}"
            )

    def retrieve(self, query: str, k: int, options: Options) -> list[Hit]:
        """Find candidates for one query."""
        self.check(options)
        return self.retriever.retrieve(query, k, **options)[:k]

    async def aretrieve(self, query: str, k: int, options: Options) -> list[Hit]:
        """As `retrieve`, without blocking the event loop."""
        self.check(options)
        aretrieve = getattr(self.retriever, "aretrieve", None)
        if aretrieve is None:
            aretrieve = partial(self._arun, self.retriever.retrieve)
        found: list[Hit] = await aretrieve(query, k, **options)
        return found[:k]

    def retrieve_many(self, queries: Sequence[str], k: int, options: Options) -> list[list[Hit]]:
        """Find candidates for each query, together where the retriever can."""
        if not self.takes_many:
            return [self.retrieve(query, k, options) for query in queries]
        self.check(options)
        many: Callable[..., list[list[Hit]]] = getattr(self.retriever, "retrieve_many")  # noqa: B009 - not in the protocol
        return self._one_each(queries, many(queries, k, **options), k)

    async def aretrieve_many(self, queries: Sequence[str], k: int, options: Options) -> list[list[Hit]]:
        """As `retrieve_many`, without blocking the event loop."""
        amany = getattr(self.retriever, "aretrieve_many", None)
        if amany is None and not self.takes_many:
            return [await self.aretrieve(query, k, options) for query in queries]
        self.check(options)
        if amany is None:
            return await self._arun(self.retrieve_many, queries, k, options)  # type: ignore[no-any-return]
        return self._one_each(queries, await amany(queries, k, **options), k)

    def retrieve_fused(self, query: str, rewrites: Sequence[str], k: int, options: Options) -> list[Hit]:
        """Find candidates for a query, given in other words, too: the fusion of what each of them finds."""
        queries = check_queries(rewrites, "rewrites")
        if not queries:
            return self.retrieve(query, k, options)
        return fuse(self.retrieve_many([query, *queries], k, options), k=k, merge=merge_of(self.retriever))

    async def aretrieve_fused(self, query: str, rewrites: Sequence[str], k: int, options: Options) -> list[Hit]:
        """As `retrieve_fused`, without blocking the event loop."""
        queries = check_queries(rewrites, "rewrites")
        if not queries:
            return await self.aretrieve(query, k, options)
        found = await self.aretrieve_many([query, *queries], k, options)
        return fuse(found, k=k, merge=merge_of(self.retriever))

    def _one_each(self, queries: Sequence[str], found: Sequence[list[Hit]], k: int) -> list[list[Hit]]:
        if len(found) != len(queries):
            raise InvalidInputError(
                f"{type(self.retriever).__name__}.retrieve_many was given {len(queries)} queries and returned "
                f"{len(found)} lists; expected one a query"
            )
        return [hits[:k] for hits in found]
