"""One dense search, and the same search for many queries at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from langchain_core.runnables import RunnableConfig

from retrieve_rerank.checks import check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.mmr import check_mmr, diverse
from retrieve_rerank.indexes.nearest import Found
from retrieve_rerank.langchain._search import ChromaSearch


@dataclass(frozen=True, slots=True)
class DenseSearch:
    """What is looked for in a store, whatever the query.

    Attributes:
        store: Where the documents are.
        k: How many to return at most.
        where: Chroma's filter on metadata.
        where_document: Chroma's filter on the text.
        lambda_mult: Weight of nearness against novelty in [0, 1]; None looks at nearness only.
        fetch_k: How many nearest to choose from, where novelty counts; None is 4 * `k`.
    """

    store: ChromaSearch
    k: int
    where: Where | None = None
    where_document: Where | None = None
    lambda_mult: float | None = None
    fetch_k: int | None = None

    def run(self, queries: Sequence[str], at_once: int | None = None) -> list[list[Found]]:
        """Embed the queries, at most `at_once` in one go, search for all in one go, and return what each found."""
        vectors = np.concatenate([self.store.embed_queries(part) for part in _parts(queries, at_once)])
        return self._chosen(self.store.collection.query(vectors, self._fetch(), **self._options()))

    async def arun(self, queries: Sequence[str], at_once: int | None = None) -> list[list[Found]]:
        """As `run`, without blocking the event loop."""
        vectors = np.concatenate([await self.store.aembed_queries(part) for part in _parts(queries, at_once)])
        collection = self.store.collection
        found = await collection.aquery(vectors, self._fetch(), **self._options())
        return found if self.lambda_mult is None else await collection.worker.arun(self._chosen, found)

    def _fetch(self) -> int:
        # As in LangChain, a fetch_k below k is no error, and means nothing without lambda_mult.
        given = None if self.fetch_k is None or self.lambda_mult is None else max(self.fetch_k, self.k)
        return check_mmr(self.lambda_mult, given, self.k)

    def _options(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "where_document": self.where_document,
            "with_vectors": self.lambda_mult is not None,
        }

    def _chosen(self, found: list[list[Found]]) -> list[list[Found]]:
        if self.lambda_mult is None:
            return found
        return [diverse(self.store.collection, items, self.k, self.lambda_mult) for items in found]


class Together:
    """The queries of one batch: all are searched when the first of them is asked for.

    Args:
        search: Makes the search; what it raises is raised for every query.
        queries: Those that cannot be used are left out here, and raise when they are asked for.
        config: LangChain's; its `max_concurrency` is how many queries are embedded in one go.
    """

    def __init__(
        self,
        search: Callable[[], DenseSearch],
        queries: Sequence[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
    ) -> None:
        self._search = search
        first = config[:1] if isinstance(config, list) else [config or {}]  # of several, LangChain looks at the first
        self._at_once = first[0].get("max_concurrency") if first else None
        self._queries = [query for query in dict.fromkeys(filter(_is_text, queries)) if _usable(query)]
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._found: dict[str, list[Found]] | Exception | None = None
        self._task: asyncio.Task[dict[str, list[Found]]] | None = None

    @property
    def share(self) -> float:
        """A query's part of the seconds that the search took."""
        return self._seconds / max(1, len(self._queries))

    def found(self, query: str) -> list[Found]:
        """Return what one of the queries found."""
        check_query(query)
        with self._lock:  # the others of the batch wait here for the first
            if self._found is None:
                start = time.perf_counter()
                try:
                    self._found = dict(
                        zip(self._queries, self._search().run(self._queries, self._at_once), strict=True)
                    )
                except Exception as error:  # noqa: BLE001 - raised for every query of the batch
                    self._found = error
                self._seconds = time.perf_counter() - start
        if isinstance(self._found, Exception):
            raise self._found
        return self._found[query]

    async def afound(self, query: str) -> list[Found]:
        """As `found`, without blocking the event loop."""
        check_query(query)
        if self._task is None:
            self._task = asyncio.ensure_future(self._afound_all())
        # One query of the batch that is cancelled does not cancel the search of the others.
        return (await asyncio.shield(self._task))[query]

    async def _afound_all(self) -> dict[str, list[Found]]:
        start = time.perf_counter()
        found = await self._search().arun(self._queries, self._at_once)
        self._seconds = time.perf_counter() - start
        return dict(zip(self._queries, found, strict=True))


def _parts(queries: Sequence[str], size: int | None) -> list[Sequence[str]]:
    if size is None:
        return [queries]
    return [queries[start : start + size] for start in range(0, len(queries) or 1, size)]


def _is_text(query: object) -> bool:
    return isinstance(query, str)


def _usable(query: str) -> bool:
    try:
        check_query(query)
    except InvalidInputError:
        return False
    return True
