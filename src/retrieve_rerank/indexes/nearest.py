"""One search of a live collection: as broad as its size needs, for as many vectors at a time as Chroma takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.indexes.client import EF_SEARCH
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb

Vectors = npt.NDArray[np.float32]

READ_CHUNK = 10_000  # ids in one read; SQLite takes no more than about 32,000 variables
TEXTS = ("documents", "metadatas")
# The share of all vectors that a search keeps on its way: enough to find 95 of the true top 100 among random unit
# vectors of 384 dimensions, which are harder than a model's (benchmarks/index_size.py).
_BREADTH = 0.075
_COMPARED = 20_000  # vectors that are compared one by one at most


@dataclass(frozen=True, slots=True)
class Found:
    """A record that a query returned. `distance` is Chroma's, smaller is nearer; `vector` only where asked for."""

    record: Record
    distance: float
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A search.

    Attributes:
        vectors: (n, dimension).
        k: How many results at most for each.
        filters: Chroma's.
        ids: Records to search among; ids that are not stored are left out.
        breadth: How many neighbours to keep on the way through the vectors; None chooses by the collection's size.
        extra: What to return besides texts and metadata.
        metric: What the collection compares by.
    """

    vectors: Vectors
    k: int
    filters: Mapping[str, Any]
    ids: Sequence[str] | None
    breadth: int | None
    extra: tuple[str, ...]
    metric: Metric


class AtOnce:
    """A live collection's calls as coroutines that do not wait: what `at_once` runs."""

    def __init__(self, handle: chromadb.Collection) -> None:
        self._handle = handle

    async def get(self, **options: Any) -> Any:
        return self._handle.get(**options)

    async def query(self, **options: Any) -> Any:
        return self._handle.query(**options)

    async def count(self) -> int:
        return self._handle.count()


async def nearest(live: Any, asked: Asked, size: int) -> list[list[Found]]:
    """Return the nearest records to each vector, nearest first.

    Args:
        live: A live collection's calls.
        asked: The search.
        size: How many records there are, about.
    """
    if len(asked.vectors) == 0:
        return []
    options = asked.filters
    if asked.ids is not None:
        # Chroma fails if one id is missing.
        stored = [id_ for rows in await in_chunks(live, asked.ids, include=[]) for id_ in rows["ids"]]
        if not stored:
            return [[] for _ in asked.vectors]
        options = {**options, "ids": stored}
    limit = asked.k
    breadth = max(limit, min(size, asked.breadth or breadth_for(size)))
    # As many vectors at a time as Chroma can look the results of up: it reads all of them in one statement.
    step = max(1, READ_CHUNK // max(1, min(breadth, size)))
    found: list[list[Found]] = []
    for start in range(0, len(asked.vectors), step):
        part = asked.vectors[start : start + step]
        if breadth <= min(max(limit, EF_SEARCH), READ_CHUNK):
            include = [*TEXTS, "distances", *asked.extra]
            found += _found(await live.query(query_embeddings=part, n_results=limit, include=include, **options))
        else:
            # The graph is searched as broadly as there are results asked for; of most, the distance is enough. And
            # of more than one statement takes, the texts are read afterwards.
            answer = await live.query(query_embeddings=part, n_results=breadth, include=["distances"], **options)
            found += await _with_texts(live, answer, limit, asked.extra)
    expected = min(limit, size if asked.ids is None else len(stored))
    if any(len(items) < expected for items in found):
        return await _completed(live, asked, options, found)
    return found


async def _completed(
    live: Any, asked: Asked, options: Mapping[str, Any], found: list[list[Found]]
) -> list[list[Found]]:
    """Return what was found with what the graph of vectors does not lead to, though it passes the filters.

    Chroma loses the way to vectors of which dozens are equal, and under a filter to others. They are compared one by
    one, unless they are very many.
    """
    from chromadb.errors import ChromaError

    try:
        there = (await live.get(include=[], limit=_COMPARED + 1, **options))["ids"]
        if len(there) > _COMPARED or len(there) <= min(map(len, found)):
            return found
        rows = await in_chunks(live, there, include=[*TEXTS, "embeddings"])
    except ChromaError:  # of a damaged index, what was found is all that can be had
        return found
    items = [item for part in rows for item in _by_id(part).values() if item.vector is not None]
    expected = min(asked.k, len(items))
    if all(len(before) >= expected for before in found):
        return found
    stored = np.stack([cast(Vectors, item.vector) for item in items])
    with_vectors = "embeddings" in asked.extra
    completed = []
    for vector, before in zip(asked.vectors, found, strict=True):
        if len(before) >= expected:  # it would find no more if it were asked alone
            completed.append(before)
            continue
        seen = {item.record.id for item in before}
        distances = _distances(stored, vector, asked.metric)
        others = [
            replace(item, distance=float(far), vector=item.vector if with_vectors else None)
            for item, far in zip(items, distances, strict=True)
            if item.record.id not in seen
        ]
        completed.append(sorted([*before, *others], key=lambda item: item.distance)[: asked.k])
    return completed


def _distances(stored: Vectors, vector: Vectors, metric: Metric) -> npt.NDArray[np.float64]:
    """Return Chroma's distances between stored vectors (n, dimension) and one."""
    rows, one = stored.astype(np.float64), vector.astype(np.float64)
    if metric == "euclidean":
        far: npt.NDArray[np.float64] = ((rows - one) ** 2).sum(axis=1)
        return far
    if metric == "cosine":
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        one = one / max(float(np.linalg.norm(one)), 1e-30)
    return 1.0 - rows @ one


async def _with_texts(live: Any, answer: Any, limit: int, extra: tuple[str, ...]) -> list[list[Found]]:
    """Return the first `limit` that were found for each vector, with their texts; those gone since are left out."""
    near = [(ids[:limit], far[:limit]) for ids, far in zip(answer["ids"], answer["distances"], strict=True)]
    wanted = [id_ for ids, _ in near for id_ in ids]
    parts = await in_chunks(live, wanted, include=[*TEXTS, *extra])
    rows = {id_: found for part in parts for id_, found in _by_id(part).items()}
    return [
        [replace(rows[id_], distance=float(far)) for id_, far in zip(ids, distances, strict=True) if id_ in rows]
        for ids, distances in near
    ]


async def in_chunks(live: Any, ids: Iterable[str], **options: Any) -> list[Any]:
    """Return what Chroma has of `ids`, as its answers, each of as many rows as it reads in one go."""
    wanted = list(dict.fromkeys(ids))
    parts = (wanted[start : start + READ_CHUNK] for start in range(0, len(wanted), READ_CHUNK))
    return [await live.get(ids=part, **options) for part in parts]


def breadth_for(size: int) -> int:
    """Return how many neighbours to search in a collection of `size`."""
    return max(EF_SEARCH, int(_BREADTH * size))


def _found(answer: Any) -> list[list[Found]]:
    names = ("ids", *TEXTS, "embeddings")
    rows = [
        {name: None if answer[name] is None else answer[name][row] for name in names}
        for row in range(len(answer["ids"]))
    ]
    return [
        [replace(found, distance=float(far)) for found, far in zip(_by_id(row).values(), distances, strict=True)]
        for row, distances in zip(rows, answer["distances"], strict=True)
    ]


def _by_id(rows: Mapping[str, Any]) -> dict[str, Found]:
    records = records_of(rows)
    vectors = [None] * len(records) if rows["embeddings"] is None else rows["embeddings"]
    return {
        record.id: Found(record, math.nan, None if vector is None else np.asarray(vector, np.float32))
        for record, vector in zip(records, vectors, strict=True)
    }


def records_of(rows: Mapping[str, Any]) -> list[Record]:
    """Return an answer's rows as records."""
    ids: list[str] = rows["ids"] or []
    texts = rows["documents"] or [None] * len(ids)
    metadatas = rows["metadatas"] or [None] * len(ids)
    return [Record(id_, text or "", dict(meta or {})) for id_, text, meta in zip(ids, texts, metadatas, strict=True)]
