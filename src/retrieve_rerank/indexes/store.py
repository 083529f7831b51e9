"""A Chroma collection: opened and identified, vectors in, records out.

Knows no encoder: `ChromaIndex` and the two frameworks' vector stores stand on it, so that a collection written
by one is read by the others. Stands between its users and what Chroma does silently: the default embedding function and
metric, ignored settings, two spellings of one directory, merged metadata, batch limits.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_choice, check_count, check_flag
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError, warn_caller
from retrieve_rerank.indexes.access import Share
from retrieve_rerank.indexes.chroma_server import RETRY_SECONDS, Patient, is_server, with_patience
from retrieve_rerank.indexes.client import (
    drop_collection,
    drop_private,
    find_or_create,
    open_client,
    other_collections,
    translated,
    turns_of,
    without_stored_functions,
)
from retrieve_rerank.indexes.directory import check_wait, one_spelling
from retrieve_rerank.indexes.filters import Where, chroma_filters
from retrieve_rerank.indexes.identity import (
    SPACES,
    Fingerprint,
    Identity,
    check_identity,
    check_name,
    check_suits,
    needs_proof,
    to_metadata,
)
from retrieve_rerank.indexes.nearest import (
    READ_CHUNK,
    TEXTS,
    Found,
    Search,
    Vectors,
    check_vectors,
    in_chunks,
    is_unit,
    records_of,
    same_vector,
    to_similarity,
)
from retrieve_rerank.indexes.records import Record, batches_of, check_ids, metadatas_over
from retrieve_rerank.models.threads import Worker, run_beside
from retrieve_rerank.types import AddReport, Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI
    from typing_extensions import Self

P = ParamSpec("P")
T = TypeVar("T")

_MOST = 2**31 - 1  # results; Chroma counts them in 32 bits
_SIZE_SECONDS = 30.0  # for which a count is taken as true; it takes longer the more there is
_WRITE_CHUNK = 1_000  # passages encoded and written in one go: enough to sort by length, little to lose
_LOOKED_AT = 20  # vectors whose length is looked at


class ChromaCollection:
    """One collection, new or existing.

    The arguments are those of `ChromaIndex`, but for these.

    Args:
        name: The collection's name.
        encoder_metric: What the encoder's vectors are made for, and a new collection compares by; None is cosine.
        fingerprint: The encoder's; None skips the check and records nothing.
        handle: A live collection to use instead of a name, a path or a client.

    Raises:
        InvalidInputError: If the directory cannot be used or the name is not valid.
        IndexLockedError: If the collection is new and another process writes the directory.
        IndexMismatchError: If the collection belongs to another encoder or metric.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str | os.PathLike[str] | None = None,
        client: ClientAPI | None = None,
        metric: Metric | None = None,
        encoder_metric: Metric | None = None,
        fingerprint: Fingerprint | None = None,
        assume_compatible: bool = False,
        handle: chromadb.Collection | None = None,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
    ) -> None:
        if path is not None and client is not None:
            raise InvalidInputError("give either a path or a client, not both: a client already knows where it stores")
        for one in (metric, encoder_metric):
            if one is not None:
                check_choice(one, SPACES, "metric")
        self.name = check_name(name) if handle is None else handle.name
        self._retry_seconds = check_wait(retry_seconds, "retry_seconds", "for which a server is asked again")
        self.lock_timeout = check_wait(lock_timeout, "lock_timeout", "to wait while another process writes")
        self.search_breadth = None if search_breadth is None else check_count(search_breadth, "search_breadth")
        self.assume_compatible = check_flag(assume_compatible, "assume_compatible")
        self.worker = Worker(f"retrieve-rerank collection {self.name}")
        self._fingerprint = fingerprint
        self._process = os.getpid()
        self._live = handle
        self._is_ours = handle is None and client is None
        self._is_closed = False
        # Records, until when that is taken as true, and of which state of what is stored.
        self._counted: tuple[int, float, object] | None = None
        self._drop_private: Callable[[], object] | None = None
        with translated(f"collection {self.name!r}"):
            self._open(path, client, metric or encoder_metric or "cosine")
        self.at_server = is_server(self.client)
        self.folder: str | None = None if path is None else str(one_spelling(path))
        weakref.finalize(self, self._turns.let_go)
        if self._is_ours and path is None:  # in memory; nobody else can reach it: it goes with this object
            finalizer = weakref.finalize(self, drop_private, self.client, self.handle.name, os.getpid())
            finalizer.atexit = False
            self._drop_private = finalizer
            _PRIVATE.add(self)
        try:
            self._identify(metric, encoder_metric)
        except IndexMismatchError:
            self.close()
            raise

    def _open(self, path: str | os.PathLike[str] | None, client: ClientAPI | None, metric: Metric) -> None:
        self.made = False
        self.beside: tuple[str, ...] = ()  # the other collections, where it was made: a name may have been mistaken
        if self._live is not None:
            self.client = cast("ClientAPI", self._live._client)  # noqa: SLF001 - there is no public way to it
            self._turns = turns_of(self.client, self.lock_timeout)
            plain = without_stored_functions(self._live)
            self._chroma: Any = Patient(plain, self._retry_seconds) if is_server(self.client) else plain
            return
        self.client = open_client(path) if client is None else with_patience(client, self._retry_seconds)
        self._turns = turns_of(self.client, self.lock_timeout)
        # Chroma's in-memory store is one for the whole process: two indexes must not meet in it.
        name = f"{self.name[:400]}-{uuid.uuid4().hex}" if path is None and client is None else self.name
        self._chroma, self.made = find_or_create(self.client, name, metric, self._fingerprint, self._turns.writing)
        if self.made and name == self.name:
            self.beside = other_collections(self.client, name)

    def _identify(self, metric: Metric | None, encoder_metric: Metric | None) -> None:
        found = self.identity
        self.metric = found.metric
        self.recorded = found.fingerprint is not None
        is_known = self.recorded and not needs_proof(found.fingerprint, self._fingerprint)
        self.verified = is_known or self.assume_compatible or self._fingerprint is None
        if self.assume_compatible:
            check_identity(self.name, found, None, None)
            return
        check_identity(self.name, found, metric, self._fingerprint)
        if metric is None and encoder_metric is not None:
            self.check_suits(encoder_metric)

    @property
    def identity(self) -> Identity:
        """What the collection says of itself."""
        return Identity.read(self.handle.configuration_json, self.handle.metadata)

    @contextmanager
    def reading(self) -> Iterator[object]:
        """Read what is there now, whoever wrote it; gives what is equal as long as nobody is known to have written."""
        with self._translated():
            chroma = self.chroma
            with self._turns.reading(chroma.count) as state:
                yield state

    @contextmanager
    def writing(self) -> Iterator[object]:
        """Do one write of Chroma's, and nothing else, while no one else does; gives the state before it.

        Raises:
            IndexLockedError: If another process writes the directory for longer than `lock_timeout`.
            InvalidInputError: If the directory cannot be written.
        """
        with self._translated():
            chroma = self.chroma
            with self._turns.writing(chroma.count) as state:
                yield state

    @property
    def directory(self) -> Path | None:
        """Where it is stored, if it is in a directory."""
        return self._turns.folder if isinstance(self._turns, Share) else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do several writes while no other thread and no other process that shares the directory does one."""
        _ = self.chroma
        with self._turns.alone():
            yield

    def become_writer(self) -> None:
        """Take the directory's writers' lock, before anything is made for a write; see `writing` for what it raises."""
        _ = self.chroma
        self._turns.hold()

    def _translated(self) -> Any:
        return translated(f"collection {self.name!r}", self.directory)

    def check_suits(self, metric: Metric) -> None:
        """Raise IndexMismatchError if the collection orders passages otherwise than the metric of an encoder does.

        Of vectors of length 1, as Chroma's own default of squared L2 often holds them, all metrics make one order.
        """
        if metric == self.metric:
            return
        with suppress(RetrieveRerankError), self.reading():  # of a damaged index nothing is known
            some = self.chroma.get(limit=_LOOKED_AT, include=["embeddings"])["embeddings"]
            if some is not None and len(some) and all(map(is_unit, some)):
                return
        check_suits(self.name, self.metric, metric)

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        if self.folder is None:
            raise InvalidInputError(
                f"collection {self.name!r} is in memory or a client's: it cannot be pickled or copied. Give it a "
                "directory"
            )
        made = partial(type(self), self.name, path=self.folder, metric=self.metric, search_breadth=self.search_breadth)
        made = partial(made, lock_timeout=self.lock_timeout)
        return partial(made, fingerprint=self._fingerprint, assume_compatible=self.assume_compatible), ()

    @property
    def handle(self) -> chromadb.Collection:
        """Chroma's own object."""
        chroma = self.chroma
        return self._live or cast("chromadb.Collection", chroma.plain if isinstance(chroma, Patient) else chroma)

    @property
    def chroma(self) -> Any:
        """Chroma's own object; of a server, with the patience that was asked for."""
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"collection {self.name!r} was opened in process {self._process} and cannot be used in its forked "
                f"child {os.getpid()}, where Chroma would wait for ever. Open indexes after the fork only, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        if self._is_closed:
            raise RetrieveRerankError(f"collection {self.name!r} was closed; open the index again")
        return self._chroma

    def replace_chroma(self, chroma: Any) -> None:
        """Go on with another collection of Chroma's, which has taken this one's name."""
        self._chroma, self._counted = chroma, None

    def check_has_client(self, done: str) -> None:
        """Raise InvalidInputError for a live collection, through which collections can neither be made nor deleted."""
        if self._live is not None:
            raise InvalidInputError(
                f"collection {self.name!r} was given as an object of Chroma's, through which it cannot be {done}: open "
                "it by its directory or with a Chroma client instead, and do it there"
            )

    def record_encoder(self, fingerprint: Fingerprint) -> None:
        """Write down which encoder makes this collection's vectors.

        The writers' lock is given back: whoever only reads, and finds this out, keeps nobody from writing.

        Raises:
            IndexLockedError: If another process writes the directory now; the rest of `writing`'s.
        """
        kept = {key: value for key, value in (self.handle.metadata or {}).items() if not key.startswith("hnsw:")}
        asked = self.chroma.like(self.handle) if isinstance(self.chroma, Patient) else self.handle
        self.verified = True
        self._turns.hold(0.0)
        try:
            with self.writing():
                asked.modify(metadata={**kept, **to_metadata(fingerprint)})
        finally:
            self._turns.let_go()

    def close(self) -> None:
        """End the worker, drop a private in-memory collection, and let go of a store that was opened here."""
        if os.getpid() != self._process:
            return  # a forked child has nothing of its own to let go of, and Chroma would not answer
        self.worker.close()
        if self._drop_private is not None:
            self._drop_private()
            _PRIVATE.discard(self)
        elif self._is_ours and not self._is_closed:
            cast("Any", self.client).close()  # counted: the store itself closes with its last client
        self._is_closed = self._is_closed or self._is_ours
        self._turns.let_go()

    def drop(self) -> None:
        """Delete the collection itself."""
        self.check_has_client("deleted")
        with self._translated():
            drop_collection(self.client, self.handle.name, os.getpid(), self._turns.writing)

    # Writing

    @property
    def max_batch(self) -> int:
        """How many records Chroma takes in one call."""
        return int(self.client.get_max_batch_size())

    def batches(self, records: Iterable[Record], size: int | None = None) -> Iterator[list[Record]]:
        """As `batches_of`, in batches of `size`, or fewer where Chroma takes fewer."""
        wanted = _WRITE_CHUNK if size is None else check_count(size, "batch_size")
        return batches_of(records, min(wanted, self.max_batch))

    def upsert(self, records: Sequence[Record], encode: Callable[[list[str]], npt.ArrayLike]) -> AddReport:
        """Store records (distinct ids, one batch); vectors are made only of texts that are not stored already.

        A vector that is stored stays, as one that is written again where dozens are equal can fall out of Chroma's
        index: no search finds it then.

        Args:
            records: What to store.
            encode: Turns n texts into vectors (n, dimension).

        Raises:
            IndexLockedError: If another process writes the directory.
        """
        with self._planning(records) as (stored, state):
            changed = [record for record in records if record.id not in stored or record.text != stored[record.id].text]
            unchanged = sum(record.id in stored and record.equals(stored[record.id]) for record in records)
            added = sum(record.id not in stored for record in records)
        if changed:
            self.write(changed, encode([record.text for record in changed]), (stored, state))
        self._relabel(records, changed, stored, state)
        return AddReport(added, len(records) - added - unchanged, unchanged)

    def upsert_vectors(self, records: Sequence[Record], vectors: npt.ArrayLike) -> None:
        """As `upsert`, with vectors (n, dimension) that may have been made of more than the texts."""
        array = check_vectors(vectors, len(records), [record.id for record in records])
        with self._planning(records) as (stored, state):
            same = [record.id for record in records if record.id in stored and record.text == stored[record.id].text]
            there: dict[str, Vectors] = {}
            with suppress(RetrieveRerankError):  # of a damaged index nothing is known
                there = self.vectors(same)
        rows = [
            row
            for row, record in enumerate(records)
            if record.id not in there or not same_vector(there[record.id], array[row], self.metric)
        ]
        changed = [records[row] for row in rows]
        self.write(changed, array[rows], (stored, state))
        self._relabel(records, changed, stored, state)

    @contextmanager
    def _planning(self, records: Sequence[Record]) -> Iterator[tuple[dict[str, Record], object]]:
        """Look at what is stored of records, as whoever is about to write; gives it by id, and the state then."""
        self.become_writer()
        with self.reading() as state:
            yield self._stored(records), state

    def write(
        self,
        records: Sequence[Record],
        vectors: npt.ArrayLike,
        seen: tuple[Mapping[str, Record], object] = ({}, None),
    ) -> None:
        """Store records (distinct ids, one batch) with their vectors (n, dimension).

        Args:
            records: What to store.
            vectors: Their vectors.
            seen: What was stored of them by id, and in which state: it is not read again if nobody has written since.
        """
        if not records:
            return
        ids = [record.id for record in records]
        array = check_vectors(vectors, len(records), ids)
        with self.writing() as state:
            self._counted = None
            old = seen[0] if state is not None and state == seen[1] else self._stored(records)
            texts, metadatas = [record.text for record in records], metadatas_over(records, old)
            self.chroma.upsert(ids=ids, embeddings=array, documents=texts, metadatas=metadatas)

    def _relabel(
        self, records: Sequence[Record], changed: Sequence[Record], stored: Mapping[str, Record], before: object
    ) -> None:
        """Store the metadata of those records that are there with the same text and vector.

        A record that another thread has deleted, or given another text, since this was planned stays as that left it.
        """
        written = {record.id for record in changed}
        others = [record for record in records if record.id not in written and not record.equals(stored[record.id])]
        if not others:
            return
        with self.writing() as state:
            old = stored if state is not None and state == before else self._stored(others)
            same = [record for record in others if record.id in old and old[record.id].text == record.text]
            if same:
                self.chroma.update(ids=[record.id for record in same], metadatas=metadatas_over(same, old))

    def _stored(self, records: Sequence[Record]) -> dict[str, Record]:
        return {record.id: record for record in self.read([record.id for record in records])}

    def delete(self, ids: Sequence[str] | None = None, *, where: Where | None = None) -> None:
        """Delete by id and/or by filter; ids that are not stored are no error."""
        condition = chroma_filters(where, None)["where"]
        if ids is None:
            if condition:
                with self.writing():
                    self.chroma.delete(where=condition)
            return
        wanted = list(dict.fromkeys(check_ids(ids)))
        step = min(self.max_batch, READ_CHUNK)
        for start in range(0, len(wanted), step):
            with self.writing():
                self.chroma.delete(ids=wanted[start : start + step], where=condition)

    def clear(self) -> None:
        """Delete every record; the collection, its metric and its encoder stay."""
        with self.alone():
            while ids := self.ids(limit=READ_CHUNK):
                self.delete(ids)

    # Reading

    async def arun(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call without blocking the event loop: a server is asked side by side, Chroma itself one by one."""
        if self.at_server:
            return await asyncio.wrap_future(run_beside(f"retrieve-rerank {self.name}", partial(call, *args, **kwargs)))
        return await self.worker.arun(call, *args, **kwargs)

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
        options = {**chroma_filters(where, where_document), "include": TEXTS}
        limit = None if limit is None else check_count(limit, "limit", least=0)
        offset = 0 if offset is None else check_count(offset, "offset", least=0)
        rows: list[Record] = []
        with self.reading():
            if ids is None:
                while limit is None or len(rows) < limit:
                    step = READ_CHUNK if limit is None else min(limit - len(rows), READ_CHUNK)
                    page = records_of(self.chroma.get(limit=step, offset=offset + len(rows), **options))
                    rows += page
                    if len(page) < step:
                        break
                return rows
            wanted = list(dict.fromkeys(check_ids(ids)))
            rows = [record for part in in_chunks(self.chroma, wanted, **options) for record in records_of(part)]
        place = {id_: position for position, id_ in enumerate(wanted)}
        rows.sort(key=lambda record: place[record.id])
        return rows[offset:][:limit]

    def vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return the stored vectors of `ids`, by id."""
        with self.reading():
            parts = in_chunks(self.chroma, check_ids(ids), include=["embeddings"])
        return {
            id_: np.asarray(row, np.float32)
            for part in parts
            for id_, row in zip(part["ids"], part["embeddings"], strict=True)
        }

    def ids(self, *, where: Where | None = None, limit: int | None = None) -> list[str]:
        """Return the ids of the records that fit a filter, or all."""
        with self.reading():
            return list(self.chroma.get(where=chroma_filters(where, None)["where"], limit=limit, include=[])["ids"])

    def count(self) -> int:
        """Return the number of records."""
        with self.reading():
            return int(self.chroma.count())

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
        array, limit = check_vectors(vectors, rows), min(check_count(k, "k"), _MOST)
        filters = chroma_filters(where, where_document)
        search = Search(array, limit, filters, ids, self.search_breadth, self.metric, with_vectors)
        with self.reading() as state:
            return search.run(self.chroma, self._size(state, again=len(array) > 1))

    def _size(self, state: object, *, again: bool) -> int:
        # For one vector the size says how broadly to search; for several, how many results Chroma can look up, too.
        counted = self._counted  # another thread, which writes, sets it to None
        if again or counted is None or counted[2] != state or time.monotonic() > counted[1]:
            self._counted = counted = int(self.chroma.count()), time.monotonic() + _SIZE_SECONDS, state
        if counted[0] == 0:
            self._warn_of_nothing()
        return counted[0]

    def _warn_of_nothing(self) -> None:
        if self.beside:
            names, self.beside = ", ".join(map(repr, self.beside)), ()
            warn_caller(
                f"collection {self.name!r} was made just now and is empty, so that nothing is found. There are also: "
                f"{names}; to search one of these, open it by its name",
                UserWarning,
            )

        def others_hold_something() -> bool:
            return any(one.count() for one in list(_PRIVATE) if one is not self and one.name == self.name)

        if self in _PRIVATE and others_hold_something():
            gc.collect()  # objects that nobody uses any more may be among them
            if not others_hold_something():
                return
            _PRIVATE.discard(self)  # said once
            warn_caller(
                f"collection {self.name!r} is empty, so that nothing is found. Another object of this process has one "
                "of this name in memory, which is private to it: search through that object, or give both one client: "
                "client=chromadb.EphemeralClient()",
                UserWarning,
            )

    def similarity(self, distance: float) -> float:
        """Return a distance as similarity, larger is better; see `to_similarity`."""
        return to_similarity(distance, self.metric)


_PRIVATE: weakref.WeakSet[ChromaCollection] = weakref.WeakSet()
