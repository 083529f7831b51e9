"""One search of a live collection: as broad as its size needs, for as many vectors at a time as Chroma takes.

And which of what it found are unlike one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count, number_of
from retrieve_rerank.errors import InvalidInputError, in_one_line, shown
from retrieve_rerank.indexes.client import EF_SEARCH
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb

Vectors = npt.NDArray[np.float32]

READ_CHUNK = 10_000  # ids in one read; SQLite takes no more than about 32,000 variables
TEXTS: Any = ["documents", "metadatas"]
# The share of all vectors that a search keeps on its way: enough to find 95 of the true top 100 among random unit
# vectors of 384 dimensions, which are harder than a model's (benchmarks/index_size.py).
_BREADTH = 0.075
_UNIT = 0.01  # how much a unit vector's length may be off
_COMPARED = 20_000  # vectors that are compared one by one at most
PREFETCH_FACTOR = 4  # how many times as many are fetched as are chosen


@dataclass(frozen=True, slots=True)
class Found:
    """A record that a query returned. `distance` is Chroma's, smaller is nearer; `vector` only where asked for."""

    record: Record
    distance: float
    vector: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for: the arguments of `ChromaCollection.query`, and of its collection.

    `breadth` is how many neighbours to keep on the way through the vectors; None chooses by the collection's size.
    """

    vectors: Vectors
    k: int
    filters: Mapping[str, Any]
    ids: Sequence[str] | None
    breadth: int | None
    metric: Metric
    with_vectors: bool = False

    def run(self, live: chromadb.Collection, size: int) -> list[list[Found]]:
        """Return the nearest records to each vector, nearest first.

        Args:
            live: The collection.
            size: How many records there are, about.
        """
        if len(self.vectors) == 0:
            return []
        options = dict(self.filters)
        expected = min(self.k, size)
        if self.ids is not None:
            # Chroma fails if one id is missing.
            options["ids"] = [id_ for rows in in_chunks(live, self.ids, include=[]) for id_ in rows["ids"]]
            expected = min(self.k, len(options["ids"]))
            if not expected:
                return [[] for _ in self.vectors]
        breadth = max(self.k, min(size, self.breadth or max(EF_SEARCH, int(_BREADTH * size))))
        # As many vectors at a time as Chroma can look the results of up: it reads all of them in one statement.
        step = max(1, READ_CHUNK // max(1, min(breadth, size)))
        found: list[list[Found]] = []
        for start in range(0, len(self.vectors), step):
            found += self._nearest(live, self.vectors[start : start + step], breadth, options)
        if any(len(items) < expected for items in found):
            return self._completed(live, options, found)
        return found

    @property
    def _extra(self) -> list[str]:
        return ["embeddings"] if self.with_vectors else []

    def _nearest(
        self, live: chromadb.Collection, vectors: Vectors, breadth: int, options: Mapping[str, Any]
    ) -> list[list[Found]]:
        query: Any = live.query
        if breadth <= min(max(self.k, EF_SEARCH), READ_CHUNK):
            include = [*TEXTS, "distances", *self._extra]
            answer = query(query_embeddings=vectors, n_results=self.k, include=include, **options)
            rows = [
                {name: None if answer[name] is None else answer[name][row] for name in ("ids", *TEXTS, "embeddings")}
                for row in range(len(answer["ids"]))
            ]
            return [
                [replace(item, distance=float(far)) for item, far in zip(_by_id(row).values(), distances, strict=True)]
                for row, distances in zip(rows, answer["distances"], strict=True)
            ]
        # The graph is searched as broadly as there are results asked for; of most, the distance is enough. And of more
        # than one statement takes, the texts are read afterwards; those that are gone since are left out.
        answer = query(query_embeddings=vectors, n_results=breadth, include=["distances"], **options)
        near = [
            list(zip(ids[: self.k], distances[: self.k], strict=True))
            for ids, distances in zip(answer["ids"], answer["distances"], strict=True)
        ]
        parts = in_chunks(live, [id_ for items in near for id_, _ in items], include=[*TEXTS, *self._extra])
        stored = {id_: item for part in parts for id_, item in _by_id(part).items()}
        return [[replace(stored[id_], distance=float(far)) for id_, far in items if id_ in stored] for items in near]

    def _completed(
        self, live: chromadb.Collection, options: Mapping[str, Any], found: list[list[Found]]
    ) -> list[list[Found]]:
        """Return what was found with what the graph of vectors does not lead to, though it passes the filters.

        Chroma loses the way to vectors of which dozens are equal, and under a filter to others. They are compared one
        by one, unless they are very many.
        """
        from chromadb.errors import ChromaError

        try:
            get: Any = live.get
            there = get(include=[], limit=_COMPARED + 1, **options)["ids"]
            if len(there) > _COMPARED or len(there) <= min(map(len, found)):
                return found
            rows = in_chunks(live, there, include=[*TEXTS, "embeddings"])
        except ChromaError:  # of a damaged index, what was found is all that can be had
            return found
        items = [item for part in rows for item in _by_id(part).values() if item.vector is not None]
        expected = min(self.k, len(items))
        if all(len(before) >= expected for before in found):
            return found
        stored = np.stack([cast(Vectors, item.vector) for item in items])
        completed = []
        for vector, before in zip(self.vectors, found, strict=True):
            if len(before) >= expected:  # it would find no more if it were asked alone
                completed.append(before)
                continue
            seen = {item.record.id for item in before}
            others = [
                replace(item, distance=float(far), vector=item.vector if self.with_vectors else None)
                for item, far in zip(items, _distances(stored, vector, self.metric), strict=True)
                if item.record.id not in seen
            ]
            completed.append(sorted([*before, *others], key=lambda item: item.distance)[: self.k])
        return completed


def to_similarity(distance: float, metric: Metric) -> float:
    """Return a distance of Chroma's as similarity, larger is better.

    Cosine space: cosine similarity. Dot space: dot product. Euclidean space: 1 / (1 + distance), where Chroma gives the
    squared distance.
    """
    return 1.0 / (1.0 + math.sqrt(max(0.0, distance))) if metric == "euclidean" else 1.0 - distance


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


def to_array(numbers: npt.ArrayLike, what: str) -> Vectors:
    """Return numbers as an array of float32, or raise InvalidInputError if they are none."""
    try:
        return np.asarray(numbers, dtype=np.float32)
    except Exception as error:  # whatever an object in it raises, when it is shown in numpy's own error, too
        raise InvalidInputError(f"{what} must be numbers: {in_one_line(error)}") from error


def check_vectors(vectors: npt.ArrayLike, rows: int | None, ids: Sequence[str] | None = None) -> Vectors:
    """Return vectors as an array (rows, dimension), or raise InvalidInputError, which names a bad one by its id."""
    try:
        array = to_array(vectors, "vectors")
        shape = str(array.shape)
    except InvalidInputError as error:
        array = np.zeros(0, np.float32)
        shape = f"something else: {error}"
    if array.ndim != 2 or (rows is not None and len(array) != rows):
        expected = "n" if rows is None else rows
        raise InvalidInputError(f"expected vectors of shape ({expected}, dimension), got {shape}")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        which = f"vector {bad}" if ids is None else f"the vector of {ids[bad]!r}"
        raise InvalidInputError(f"{which} holds NaN or infinity, which cannot be searched; check the encoder")
    return array


def same_vector(left: Vectors, right: Vectors, metric: Metric, tolerance: float = 1e-5) -> bool:
    """Whether two vectors are one, but for the precision that they were computed or stored in.

    Args:
        left: (dimension,).
        right: (dimension,).
        metric: The collection's: in cosine space, where a store may have scaled them, only directions are compared.
        tolerance: How long their difference may be, as a share of the length of `right`.
    """
    if left.shape != right.shape:
        return False
    norms = [float(np.linalg.norm(vector)) for vector in (left, right)]
    if 0.0 in norms:
        return norms == [0.0, 0.0]
    if metric == "cosine":
        left, right = left / norms[0], right / norms[1]
    return float(np.linalg.norm(left - right)) < tolerance * float(np.linalg.norm(right))


def is_unit(vector: Vectors) -> bool:
    """Whether a vector has the length 1; in half precision it may be off by a little."""
    return abs(float(np.linalg.norm(vector)) - 1.0) < _UNIT


def in_chunks(live: chromadb.Collection, ids: Iterable[str], **options: Any) -> list[Any]:
    """Return what Chroma has of `ids`, as its answers, each of as many rows as it reads in one go."""
    wanted = list(dict.fromkeys(ids))
    parts = (wanted[start : start + READ_CHUNK] for start in range(0, len(wanted), READ_CHUNK))
    return [live.get(ids=part, **options) for part in parts]


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


# Maximal marginal relevance: results that are near to the query and unlike one another


def diverse(
    found: Sequence[Found], k: int, diversity: float, metric: Metric, query: Vectors | None = None
) -> list[Found]:
    """Choose `k` of what a query found by maximal marginal relevance, in the order chosen.

    The first is the most relevant one. Each further one has the largest `diversity` * relevance - (1 - `diversity`) *
    similarity to the most similar of those chosen before. Of equals the first wins.

    Args:
        found: The candidates, with their vectors.
        k: How many to choose.
        diversity: In [0, 1]: 1 is the order of relevance.
        metric: What is similar, and what is relevant.
        query: The query's vector, (dimension,), where the metric is not the collection's; None takes the distances.
    """
    if not found:
        return []
    vectors = np.stack([cast(Vectors, item.vector) for item in found])
    if query is None:
        relevance = np.array([to_similarity(item.distance, metric) for item in found], np.float64)
    else:
        relevance = _similarity(vectors, query, metric).astype(np.float64)
    nearest = np.full(len(found), -math.inf)  # similarity to the most similar item chosen so far
    left = np.ones(len(found), bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(found)):
        gain = diversity * relevance - (1.0 - diversity) * nearest if chosen else relevance
        best = int(np.argmax(np.where(left, gain, -math.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, _similarity(vectors, vectors[best], metric))
    return [found[position] for position in chosen]


def check_mmr(mmr_lambda: float | None, mmr_pool: int | None, k: int) -> int:
    """Return how many of the nearest to fetch for `k` results.

    Raises:
        InvalidInputError: If the options cannot be used.
    """
    k = check_count(k, "k")
    if mmr_lambda is None:
        if mmr_pool is not None:
            raise InvalidInputError("mmr_pool is what mmr_lambda chooses from; give mmr_lambda, too, or neither")
        return k
    check_diversity(mmr_lambda, "mmr_lambda")
    pool = PREFETCH_FACTOR * k if mmr_pool is None else check_count(mmr_pool, "mmr_pool")
    if pool < k:
        raise InvalidInputError(f"mmr_pool must be at least k, {k}, of which the results are chosen; got {pool}")
    return pool


def wider_pool(pool: int, chosen: int, k: int) -> int:
    """Return what `k` results are chosen from, where `chosen` were to be chosen from `pool`.

    As many times as many, but at most five, as choosing takes as long as both numbers multiplied. Of the pool as it
    was, nothing could be left out once `k` reaches its size.
    """
    return max(pool, math.ceil(k * min(5.0, max(1.0, pool / chosen))))


def check_diversity(value: float, name: str) -> float:
    """Return `value` as a float in [0, 1], or raise InvalidInputError."""
    if not 0 <= number_of(value) <= 1:
        raise InvalidInputError(
            f"{name} must be a number from 0 (as diverse as can be) to 1 (by relevance alone), got {shown(value)}"
        )
    return float(value)


def _similarity(vectors: Vectors, vector: Vectors, metric: Metric) -> Vectors:
    """Return how alike vectors (n, dimension) are to one (dimension,), larger is more alike: (n,)."""
    if metric == "euclidean":
        alike = 1.0 / (1.0 + np.linalg.norm(vectors - vector, axis=1))
    elif metric == "dot":
        alike = vectors @ vector
    else:
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
        alike = vectors @ vector / np.maximum(norms, 1e-12)
    return cast(Vectors, alike)
