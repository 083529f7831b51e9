"""A Chroma collection: vectors in, records out.

Knows no encoder: `ChromaIndex` and the two frameworks' vector stores stand on it, so that a collection written
by one is read by the others. Stands between its users and what Chroma does silently: merged metadata, ignored
settings and batch limits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count, check_texts
from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, warn_caller
from retrieve_rerank.indexes.client import translated
from retrieve_rerank.indexes.filters import Where, chroma_filters
from retrieve_rerank.indexes.nearest import (
    READ_CHUNK,
    TEXTS,
    Asked,
    AtOnce,
    Found,
    Vectors,
    in_chunks,
    nearest,
    records_of,
)
from retrieve_rerank.indexes.opened import AT_SERVER, OpenedCollection
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.server import at_once
from retrieve_rerank.types import AddReport, Metric

_MOST = 2**31 - 1  # results; Chroma counts them in 32 bits
_SIZE_SECONDS = 30.0  # a count takes longer the more there is
_WRITE_CHUNK = 1_000  # passages encoded and written in one go: enough to sort by length, little to lose


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upsert of some records has to do.

    Attributes:
        records: Those that need a vector: they are new, or their text is.
        relabelled: Those of which only the metadata changes.
        report: What will have become of all.
    """

    records: Sequence[Record]
    relabelled: Sequence[Record]
    report: AddReport


class ChromaCollection(OpenedCollection):
    """One collection, new or existing: vectors in, records out. See `OpenedCollection` for what opens it."""

    def batch_size(self, size: int | None = None) -> int:
        """Return how many records are written at once: `size`, or fewer where Chroma takes fewer. May ask a server."""
        return min(_WRITE_CHUNK if size is None else check_count(size, "batch_size"), self.max_batch)

    def batches(self, records: Iterable[Record], size: int | None = None) -> Iterator[list[Record]]:
        """As `batches_of`, in batches that Chroma takes."""
        return batches_of(records, self.batch_size(size))

    def plan(self, records: Sequence[Record]) -> Plan:
        """Compare records (distinct ids, one batch) with what is stored, as whoever is about to write.

        Raises:
            IndexLockedError: If another process writes the directory.
        """
        self.hold()
        stored = {record.id: record for record in self.read([record.id for record in records])}
        changed, relabelled, added = [], [], 0
        for record in records:
            old = stored.get(record.id)
            if old is None or record.text != old.text:
                added += old is None
                changed.append(record)
            elif not record.equals(old):
                relabelled.append(record)
        updated = len(changed) - added + len(relabelled)
        return Plan(changed, relabelled, AddReport(added, updated, len(records) - added - updated))

    def write(self, records: Sequence[Record], vectors: npt.ArrayLike) -> None:
        """Store records (distinct ids, one batch) with their vectors (n, dimension)."""
        if not records:
            return
        ids = [record.id for record in records]
        array = self._checked(vectors, len(records), ids)
        with self.writing():
            self._counted = None
            texts, metadatas = [record.text for record in records], _metadatas(records, self._stored(records))
            self.handle.upsert(ids=ids, embeddings=array, documents=texts, metadatas=metadatas)

    def relabel(self, records: Sequence[Record]) -> None:
        """Store the metadata of records (distinct ids, one batch) that are there with the same text and vector.

        A vector that is written again where dozens are equal can fall out of Chroma's index: no search finds it then.
        A record that another thread has deleted, or given another text, since this was planned stays as that left it.
        """
        if not records:
            return
        with self.writing():
            old = self._stored(records)
            same = [record for record in records if record.id in old and old[record.id].text == record.text]
            if same:
                self.handle.update(ids=[record.id for record in same], metadatas=_metadatas(same, old))

    def _stored(self, records: Sequence[Record]) -> dict[str, Record]:
        # Read now and not when the write was planned, as another thread may have written since.
        return {record.id: record for record in self.read([record.id for record in records])}

    def read(
        self,
        ids: Sequence[str] | None = None,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[Record]:
        """Return records by id, in the order asked for and missing ones left out, or by filter, or all."""
        with self.reading():
            return at_once(self._read(AtOnce(self.handle), ids, where, where_document, limit, offset))

    async def aread(
        self, ids: Sequence[str], *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Record]:
        """As `read`, without blocking the event loop; a server is asked side by side with other calls."""
        if not self.at_server:
            return await self.worker.arun(partial(self.read, ids, where=where, where_document=where_document))
        with translated(f"collection {self.name!r}"):
            return await self._read(self.async_handle, ids, where, where_document, None, None)

    async def _read(
        self,
        live: Any,
        ids: Sequence[str] | None,
        where: Where | None,
        where_document: Where | None,
        limit: int | None,
        offset: int | None,
    ) -> list[Record]:
        options = {**chroma_filters(where, where_document), "include": [*TEXTS]}
        rows: list[Record] = []
        if ids is None:
            while limit is None or len(rows) < limit:
                step = READ_CHUNK if limit is None else min(limit - len(rows), READ_CHUNK)
                page = records_of(await live.get(limit=step, offset=(offset or 0) + len(rows), **options))
                rows += page
                if len(page) < step:
                    break
            return rows
        wanted = list(dict.fromkeys(check_ids(ids)))
        rows = [record for part in await in_chunks(live, wanted, **options) for record in records_of(part)]
        place = {id_: position for position, id_ in enumerate(wanted)}
        rows.sort(key=lambda record: place[record.id])
        return rows[offset or 0 :][:limit]

    def vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return the stored vectors of `ids`, by id."""
        with self.reading():
            parts = at_once(in_chunks(AtOnce(self.handle), check_ids(ids), include=["embeddings"]))
        return {
            id_: np.asarray(row, np.float32)
            for part in parts
            for id_, row in zip(part["ids"], part["embeddings"], strict=True)
        }

    def holding(self, vectors: Mapping[str, Vectors]) -> set[str]:
        """Return the ids of those vectors, given by id, that are stored as they are."""
        with suppress(RetrieveRerankError):  # of a damaged index nothing is known
            stored = self.vectors(list(vectors))
            return {id_ for id_, vector in stored.items() if self._are_one(vector, vectors[id_])}
        return set()

    def _are_one(self, stored: Vectors, given: Vectors) -> bool:
        if stored.shape != given.shape:
            return False
        if self.metric == "cosine":  # of which Chroma may keep the direction only
            stored, given = stored / (np.linalg.norm(stored) or 1.0), given / (np.linalg.norm(given) or 1.0)
        return bool(np.allclose(stored, given, rtol=1e-5, atol=1e-6))

    def delete(self, ids: Sequence[str] | None = None, *, where: Where | None = None) -> None:
        """Delete by id and/or by filter; ids that are not stored are no error."""
        condition = chroma_filters(where, None)["where"]
        if ids is None:
            if condition:
                with self.writing():
                    self.handle.delete(where=condition)
            return
        wanted = list(dict.fromkeys(check_ids(ids)))
        step = min(self.max_batch, READ_CHUNK)
        for start in range(0, len(wanted), step):
            with self.writing():
                self.handle.delete(ids=wanted[start : start + step], where=condition)

    def clear(self) -> None:
        """Delete every record; the collection, its metric and its encoder stay."""
        self.hold()
        with self._lock:
            while ids := self.ids(limit=READ_CHUNK):
                self.delete(ids)

    def ids(self, *, where: Where | None = None, limit: int | None = None) -> list[str]:
        """Return the ids of the records that fit a filter, or all."""
        with self.reading():
            return list(self.handle.get(where=chroma_filters(where, None)["where"], limit=limit, include=[])["ids"])

    def count(self) -> int:
        """Return the number of records."""
        with self.reading():
            return int(self.handle.count())

    def query(
        self,
        vectors: npt.ArrayLike,
        k: int,
        *,
        rows: int | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
        ids: Sequence[str] | None = None,
        with_vectors: bool = False,
    ) -> list[list[Found]]:
        """Return the `k` nearest records to each query vector, nearest first.

        Args:
            vectors: (n, dimension).
            k: How many at most for each.
            rows: What n must be, where the caller knows.
            where: Chroma's filter on metadata.
            where_document: Chroma's filter on the text.
            ids: Records to search among; ids that are not stored are left out.
            with_vectors: Whether to return the stored vectors.
        """
        asked = self._asked(vectors, k, rows, where, where_document, ids, with_vectors=with_vectors)
        with self.reading() as state:
            live = AtOnce(self.handle)
            return at_once(self._nearest(live, asked, state))

    async def aquery(
        self,
        vectors: npt.ArrayLike,
        k: int,
        *,
        rows: int | None = None,
        where: Where | None = None,
        where_document: Where | None = None,
        ids: Sequence[str] | None = None,
        with_vectors: bool = False,
    ) -> list[list[Found]]:
        """As `query`, without blocking the event loop; a server is asked side by side with other calls."""
        if not self.at_server:
            options = {"where": where, "where_document": where_document, "ids": ids, "with_vectors": with_vectors}
            return await self.worker.arun(partial(self.query, vectors, k, rows=rows, **cast("Any", options)))
        asked = self._asked(vectors, k, rows, where, where_document, ids, with_vectors=with_vectors)
        with translated(f"collection {self.name!r}"):
            live = self.async_handle
            return await self._nearest(live, asked, AT_SERVER)

    def _asked(
        self,
        vectors: npt.ArrayLike,
        k: int,
        rows: int | None,
        where: Where | None,
        where_document: Where | None,
        ids: Sequence[str] | None,
        *,
        with_vectors: bool,
    ) -> Asked:
        array, limit = self._checked(vectors, rows), min(check_count(k, "k"), _MOST)
        return Asked(
            array,
            limit,
            chroma_filters(where, where_document),
            ids,
            self.search_breadth,
            ("embeddings",) if with_vectors else (),
            self.metric,
        )

    async def _nearest(self, live: Any, asked: Asked, state: object) -> list[list[Found]]:
        # For one vector the size says how broadly to search; for several, how many results Chroma can look up, too.
        counted = self._counted  # another thread, which writes, sets it to None
        if len(asked.vectors) > 1 or counted is None or counted[2] != state or time.monotonic() > counted[1]:
            self._counted = counted = int(await live.count()), time.monotonic() + _SIZE_SECONDS, state
        if counted[0] == 0 and self.beside:
            others, self.beside = ", ".join(map(repr, self.beside)), ()
            warn_caller(
                f"collection {self.name!r} was made just now and is empty, so that nothing is found. There are also: "
                f"{others}; to search one of these, open it by its name",
                UserWarning,
            )
        return await nearest(live, asked, counted[0])

    def similarity(self, distance: float) -> float:
        """Return a distance as similarity, larger is better; see `to_similarity`."""
        return to_similarity(distance, self.metric)

    def _checked(self, vectors: npt.ArrayLike, rows: int | None, ids: Sequence[str] | None = None) -> Vectors:
        try:
            array = np.asarray(vectors, dtype=np.float32)
        except (ValueError, TypeError) as error:
            array = np.zeros(0, np.float32)
            shape = f"something else: {error}"
        else:
            shape = str(array.shape)
        if array.ndim != 2 or (rows is not None and len(array) != rows):
            expected = "n" if rows is None else rows
            raise InvalidInputError(f"expected vectors of shape ({expected}, dimension), got {shape}")
        if not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
            which = f"vector {bad}" if ids is None else f"the vector of {ids[bad]!r}"
            raise InvalidInputError(f"{which} holds NaN or infinity, which cannot be searched; check the encoder")
        return array


def _metadatas(records: Sequence[Record], old: Mapping[str, Record]) -> Any:
    # Chroma merges metadata: a key goes only if it is set to None. A new record must not send None values, which Chroma
    # takes on known ids only.
    keys = {id_: record.metadata for id_, record in old.items()}
    return [{**dict.fromkeys(keys.get(record.id, ())), **record.metadata} or None for record in records]


def to_similarity(distance: float, metric: Metric) -> float:
    """Return a distance of Chroma's as similarity, larger is better.

    Cosine space: cosine similarity. Dot space: dot product. Euclidean space: 1 / (1 + distance), where Chroma gives the
    squared distance.
    """
    return 1.0 / (1.0 + math.sqrt(max(0.0, distance))) if metric == "euclidean" else 1.0 - distance


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return `ids` as a list, or raise InvalidInputError if one is not a non-empty string."""
    wanted = check_texts(ids, "ids")
    if "" in wanted:
        raise InvalidInputError(f"ids[{wanted.index('')}] is empty; an id must have at least one character")
    return wanted


def batches_of(records: Iterable[Record], limit: int) -> Iterator[list[Record]]:
    """Group records into batches of `limit`, without holding more than one; of equal ids in a batch the last wins."""
    batch: dict[str, Record] = {}
    for record in records:
        batch.pop(record.id, None)
        batch[record.id] = record
        if len(batch) == limit:
            yield list(batch.values())
            batch = {}
    if batch:
        yield list(batch.values())
