"""A Chroma collection: opened and identified, vectors in, records out.

Knows no encoder: `ChromaIndex` and the two frameworks' vector stores stand on it, so that a collection written
by one is read by the others. Stands between its users and what Chroma does silently: the default embedding function and
metric, ignored settings, two spellings of one directory, merged metadata, batch limits.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count, check_texts
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError, warn_caller
from retrieve_rerank.indexes.access import Share, Threads
from retrieve_rerank.indexes.chroma_server import RETRY_SECONDS, Patient, check_patience, is_server, with_patience
from retrieve_rerank.indexes.client import (
    directory_of,
    drop_collection,
    drop_private,
    find_or_create,
    open_client,
    other_collections,
    translated,
    without_stored_functions,
)
from retrieve_rerank.indexes.directory import check_wait, one_spelling
from retrieve_rerank.indexes.filters import Where, chroma_filters
from retrieve_rerank.indexes.identity import (
    SPACES,
    Fingerprint,
    Identity,
    check_format,
    check_identity,
    needs_proof,
    to_metadata,
)
from retrieve_rerank.indexes.nearest import (
    READ_CHUNK,
    TEXTS,
    Found,
    Search,
    Vectors,
    in_chunks,
    is_unit,
    records_of,
    same_vector,
    to_similarity,
)
from retrieve_rerank.indexes.records import Record
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
_IN_MEMORY = Threads()  # of Chroma's store in memory, which is one for the whole process


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upsert of some records has to do.

    Attributes:
        records: Those that need a vector: they are new, or their text is.
        relabelled: Those of which only the metadata changes.
        report: What will have become of all.
        stored: What is stored of them, by id.
        state: Of the store then; see `ChromaCollection.reading`.
    """

    records: Sequence[Record]
    relabelled: Sequence[Record]
    report: AddReport
    stored: Mapping[str, Record]
    state: object


class ChromaCollection:
    """One collection, new or existing.

    Args:
        name: The collection's name.
        path: Directory of a persistent store; it is made if missing.
        client: A Chroma client to use instead. Neither: in memory, private to this object.
        metric: What vectors are compared by; None takes the collection's, if the encoder's orders alike.
        encoder_metric: What the encoder's vectors are made for, and a new collection compares by; None is cosine.
        fingerprint: The encoder's; None skips the check and records nothing.
        assume_compatible: Open a collection of another encoder or metric all the same.
        handle: A live collection to use instead of all of the above but `metric` and `fingerprint`.
        retry_seconds: For how long a request that a server does not answer is repeated; 0 asks once.
        lock_timeout: Seconds to wait while another process writes the directory, at the first write.
        search_breadth: How many neighbours a search keeps while it walks through the vectors; None chooses by their
            number.

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
            if one is not None and one not in SPACES:
                raise InvalidInputError(f"metric must be one of {', '.join(SPACES)}; got {one!r}")
        if handle is None and not (
            isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]", name)
        ):
            raise InvalidInputError(
                "a collection's name is 3 to 512 letters, digits, dots, dashes or underscores, with a letter or digit "
                f"at both ends; got {name!r}"
            )
        check_patience(retry_seconds)
        self.lock_timeout = check_wait(lock_timeout)
        self.search_breadth = None if search_breadth is None else check_count(search_breadth, "search_breadth")
        self.name = name if handle is None else handle.name
        self.assume_compatible = assume_compatible
        self.worker = Worker(f"retrieve-rerank collection {self.name}")
        self.made = False  # whether this made the collection
        # The directory's other collections, where this one was made here: a name may have been mistaken.
        self.beside: tuple[str, ...] = ()
        self._fingerprint = fingerprint
        self._process = os.getpid()
        self._live = handle
        self._is_private = handle is None and path is None and client is None
        self._is_ours = handle is None and client is None
        self._is_closed = False
        # Records, until when that is taken as true, and of which state of what is stored.
        self._counted: tuple[int, float, object] | None = None
        self._drop_private: Callable[[], object] | None = None
        with translated(f"collection {self.name!r}"):
            self._open(path, client, handle, metric or encoder_metric or "cosine", retry_seconds)
        self.folder: str | None = None if path is None else str(one_spelling(path))
        try:
            self._identify(metric, encoder_metric)
        except IndexMismatchError:
            self.close()
            raise

    def _open(
        self,
        path: str | os.PathLike[str] | None,
        client: ClientAPI | None,
        handle: chromadb.Collection | None,
        metric: Metric,
        retry_seconds: float,
    ) -> None:
        if handle is not None:
            # A live collection has no public way to its client, which knows the batch limit.
            self.client: ClientAPI = cast("ClientAPI", handle._client)  # noqa: SLF001
        else:
            self.client = open_client(path) if client is None else with_patience(client, retry_seconds)
        self.at_server = is_server(self.client)
        shared = directory_of(self.client)
        self._turns: Share | Threads = _IN_MEMORY
        if self.at_server:
            self._turns = Threads(knows=False)
        elif shared is not None:
            self._turns = Share(self, *shared, self.lock_timeout)
        if handle is not None:
            plain = without_stored_functions(handle)
            self._chroma: Any = Patient(plain, retry_seconds) if self.at_server else plain
            return
        # Chroma's in-memory store is one for the whole process: two indexes must not meet in it.
        stored_name = f"{self.name[:400]}-{uuid.uuid4().hex}" if self._is_private else self.name
        self._chroma, self.made = find_or_create(
            self.client, stored_name, metric, self._fingerprint, self._turns.writing
        )
        if self._is_private:  # nobody else can reach it: it goes with this object
            finalizer = weakref.finalize(self, drop_private, self.client, stored_name, os.getpid())
            finalizer.atexit = False
            self._drop_private = finalizer
            _PRIVATE.add(self)
        elif self.made and not self.at_server:  # a server has those of many
            self.beside = other_collections(self.client, stored_name)

    def _identify(self, metric: Metric | None, encoder_metric: Metric | None) -> None:
        found = self.identity
        self.metric = found.metric
        self.recorded = found.fingerprint is not None
        self.verified = self._fingerprint is None or (
            self.recorded and not needs_proof(found.fingerprint, self._fingerprint)
        )
        check_format(self.name, found)
        if self.assume_compatible:
            self.verified = True
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
    def mending(self) -> Iterator[Path]:
        """Change Chroma's own file in its directory, which is given, while nobody else writes."""
        with self._translated(), self._turns.writing():
            if self.directory is None:
                raise InvalidInputError(f"collection {self.name!r} is in no directory: its file cannot be changed")
            yield self.directory

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
        raise IndexMismatchError(
            f"collection {self.name!r} compares vectors by {self.metric!r}, and this encoder's are made for "
            f"{metric!r}. The two give one order for vectors of length 1 only; these are not, or there are none yet. A "
            f"collection's metric cannot change: pass metric={self.metric!r} to keep it, or use another collection "
            "name and add the passages again"
        )

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
        """Write down which encoder makes this collection's vectors."""
        kept = {key: value for key, value in (self.handle.metadata or {}).items() if not key.startswith("hnsw:")}
        asked = self.chroma.like(self.handle) if isinstance(self.chroma, Patient) else self.handle
        with self.writing():
            asked.modify(metadata={**kept, **to_metadata(fingerprint)})
        self.verified = True

    def note_encoder(self, fingerprint: Fingerprint) -> None:
        """As `record_encoder`, for who only reads: where the writers' lock is not to be had, nothing is written down.

        The lock is given back, if it was taken for this alone.
        """
        if self._turns.try_hold(partial(self.record_encoder, fingerprint)) is False:
            self.verified = True

    def close(self) -> None:
        """End the worker, drop a private in-memory collection, and let go of a store that was opened here."""
        if os.getpid() != self._process:
            return  # a forked child has nothing of its own to let go of, and Chroma would not answer
        self.worker.close()
        if self._drop_private is not None:
            self._drop_private()
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

    def batch_size(self, size: int | None = None) -> int:
        """Return how many records are written at once: `size`, or fewer where Chroma takes fewer. May ask a server."""
        return min(_WRITE_CHUNK if size is None else check_count(size, "batch_size"), self.max_batch)

    def batches(self, records: Iterable[Record], size: int | None = None) -> Iterator[list[Record]]:
        """As `batches_of`, in batches that Chroma takes."""
        return batches_of(records, self.batch_size(size))

    def upsert(self, records: Sequence[Record], encode: Callable[[list[str]], npt.ArrayLike]) -> AddReport:
        """Store records (distinct ids, one batch); vectors are made only of texts that are not stored already.

        Args:
            records: What to store.
            encode: Turns n texts into vectors (n, dimension).

        Raises:
            IndexLockedError: If another process writes the directory.
        """
        plan = self.plan(records)
        if plan.records:
            self.write(plan.records, encode([record.text for record in plan.records]), plan)
        self.relabel(plan.relabelled, plan)
        return plan.report

    def upsert_vectors(self, records: Sequence[Record], vectors: npt.ArrayLike) -> None:
        """Store records (distinct ids, one batch) with vectors (n, dimension), made of the texts or of more.

        A vector that is stored already is not written again: see `relabel`.
        """
        plan, array = self.plan(records), self._checked(vectors, len(records), [record.id for record in records])
        row = {record.id: position for position, record in enumerate(records)}
        kept = {record.id for record in records} - {record.id for record in plan.records}
        with suppress(RetrieveRerankError):  # of a damaged index nothing is known
            stored = self.vectors(list(kept))
            kept = {id_ for id_ in stored if same_vector(stored[id_], array[row[id_]], self.metric)}
        changed = [record for record in records if record.id not in kept]
        self.write(changed, array[[row[record.id] for record in changed]], plan)
        self.relabel([record for record in plan.relabelled if record.id in kept], plan)

    def plan(self, records: Sequence[Record]) -> Plan:
        """Compare records (distinct ids, one batch) with what is stored, as whoever is about to write.

        Raises:
            IndexLockedError: If another process writes the directory.
        """
        self.become_writer()
        with self.reading() as state:
            stored = self._stored(records)
        changed, relabelled, added = [], [], 0
        for record in records:
            old = stored.get(record.id)
            if old is None or record.text != old.text:
                added += old is None
                changed.append(record)
            elif not record.equals(old):
                relabelled.append(record)
        updated = len(changed) - added + len(relabelled)
        report = AddReport(added, updated, len(records) - added - updated)
        return Plan(changed, relabelled, report, stored, state)

    def write(self, records: Sequence[Record], vectors: npt.ArrayLike, plan: Plan | None = None) -> None:
        """Store records (distinct ids, one batch) with their vectors (n, dimension)."""
        if not records:
            return
        ids = [record.id for record in records]
        array = self._checked(vectors, len(records), ids)
        with self.writing() as state:
            self._counted = None
            old = self._stored_since(records, plan, state)
            texts, metadatas = [record.text for record in records], _metadatas(records, old)
            self.chroma.upsert(ids=ids, embeddings=array, documents=texts, metadatas=metadatas)

    def relabel(self, records: Sequence[Record], plan: Plan | None = None) -> None:
        """Store the metadata of records (distinct ids, one batch) that are there with the same text and vector.

        A vector that is written again where dozens are equal can fall out of Chroma's index: no search finds it then.
        A record that another thread has deleted, or given another text, since this was planned stays as that left it.
        """
        if not records:
            return
        with self.writing() as state:
            old = self._stored_since(records, plan, state)
            same = [record for record in records if record.id in old and old[record.id].text == record.text]
            if same:
                self.chroma.update(ids=[record.id for record in same], metadatas=_metadatas(same, old))

    def _stored_since(self, records: Sequence[Record], plan: Plan | None, state: object) -> Mapping[str, Record]:
        # Read again only where another thread may have written since, or this one.
        return plan.stored if plan is not None and state is not None and plan.state == state else self._stored(records)

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
        rows: list[Record] = []
        with self.reading():
            if ids is None:
                while limit is None or len(rows) < limit:
                    step = READ_CHUNK if limit is None else min(limit - len(rows), READ_CHUNK)
                    page = records_of(self.chroma.get(limit=step, offset=(offset or 0) + len(rows), **options))
                    rows += page
                    if len(page) < step:
                        break
                return rows
            wanted = list(dict.fromkeys(check_ids(ids)))
            rows = [record for part in in_chunks(self.chroma, wanted, **options) for record in records_of(part)]
        place = {id_: position for position, id_ in enumerate(wanted)}
        rows.sort(key=lambda record: place[record.id])
        return rows[offset or 0 :][:limit]

    async def aread(
        self, ids: Sequence[str], *, where: Where | None = None, where_document: Where | None = None
    ) -> list[Record]:
        """As `read`, without blocking the event loop; a server is asked side by side with other calls."""
        return await self.arun(self.read, ids, where=where, where_document=where_document)

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
        array, limit = self._checked(vectors, rows), min(check_count(k, "k"), _MOST)
        filters = chroma_filters(where, where_document)
        search = Search(array, limit, filters, ids, self.search_breadth, self.metric, with_vectors)
        with self.reading() as state:
            return search.run(self.chroma, self._size(state, again=len(array) > 1))

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
        options: Any = {"where": where, "where_document": where_document, "ids": ids, "with_vectors": with_vectors}
        return await self.arun(self.query, vectors, k, rows=rows, **options)

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
        if self in _PRIVATE and any(other.holds_more_than(self) for other in list(_PRIVATE)):
            _PRIVATE.discard(self)  # said once
            warn_caller(
                f"collection {self.name!r} is empty, so that nothing is found. Another object of this process has one "
                "of this name in memory, which is private to it: search through that object, or give both one client: "
                "client=chromadb.EphemeralClient()",
                UserWarning,
            )

    def holds_more_than(self, empty: ChromaCollection) -> bool:
        """Whether this is another object's collection of the same name, with something in it."""
        return self is not empty and self.name == empty.name and not self._is_closed and bool(self._chroma.count())

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


_PRIVATE: weakref.WeakSet[ChromaCollection] = weakref.WeakSet()


def _metadatas(records: Sequence[Record], old: Mapping[str, Record]) -> Any:
    # Chroma merges metadata: a key goes only if it is set to None. A new record must not send None values, which Chroma
    # takes on known ids only.
    keys = {id_: record.metadata for id_, record in old.items()}
    return [{**dict.fromkeys(keys.get(record.id, ())), **record.metadata} or None for record in records]


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
