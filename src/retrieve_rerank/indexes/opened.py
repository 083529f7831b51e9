"""A Chroma collection, opened and identified: which directory or client, whose vectors, and who closes it.

Stands between its users and what Chroma does silently at opening: the default embedding function, the default metric,
ignored settings, and two spellings of one directory.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError
from retrieve_rerank.indexes.client import (
    directory_of,
    drop_collection,
    find_or_create,
    open_client,
    other_collections,
    translated,
)
from retrieve_rerank.indexes.directory import Directory, View, check_wait
from retrieve_rerank.indexes.fingerprint import (
    SPACES,
    Fingerprint,
    Identity,
    check_format,
    check_identity,
    needs_proof,
    to_metadata,
)
from retrieve_rerank.indexes.server import (
    RETRY_SECONDS,
    async_collection,
    check_patience,
    collection_with_patience,
    is_server,
    with_patience,
)
from retrieve_rerank.models.threads import Worker
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI
    from chromadb.api.models.AsyncCollection import AsyncCollection
    from typing_extensions import Self


AT_SERVER = "a server's"  # of whose state nothing is known
_LOOKED_AT = 20  # vectors whose length is looked at
UNIT = 0.01  # a unit vector's length may be off by so much, for half precision


class _Memory:
    """Chroma's store in memory, which is one for the whole process, as are its writers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.writes = 0  # that have ended: what is read during one is neither the old state nor the new

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write, and nobody else."""
        with self._lock:
            try:
                yield
            finally:
                self.writes += 1


_IN_MEMORY = _Memory()


class OpenedCollection:
    """One collection, new or existing, as it was opened; `ChromaCollection` reads and writes it.

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
        self.name = name
        self._process = os.getpid()
        self._lock = threading.RLock()
        self.worker = Worker(f"retrieve-rerank collection {name}")
        # What opens it again, for pickling and for configurations that are written down.
        self.folder: str | None = None
        self.assume_compatible = assume_compatible
        self._fingerprint = fingerprint
        self._is_live = handle is not None
        private = handle is None and path is None and client is None
        self._opened = handle is None and client is None
        self._closed = False
        self._async_handle: AsyncCollection | None = None
        # Records, until when that is taken as true, and of which state of what is stored.
        self._counted: tuple[int, float, object] | None = None
        self.search_breadth = None if search_breadth is None else check_count(search_breadth, "search_breadth")
        self.made = False  # whether this made the collection
        # The directory's other collections, where this one was made here: a name may have been mistaken.
        self.beside: tuple[str, ...] = ()
        self._drop_private: Callable[[], object] | None = None
        check_patience(retry_seconds)
        self.lock_timeout = check_wait(lock_timeout)
        self._shared: tuple[Directory, Any] | None = None
        self._owner, self._epoch = uuid.uuid4().hex, -1
        if handle is not None:
            # A live collection has no public way to its client, which knows the batch limit.
            self.at_server = is_server(handle._client)  # noqa: SLF001
            self.name = handle.name
            self._handle = collection_with_patience(handle, retry_seconds) if self.at_server else handle
            self.client: ClientAPI = cast("ClientAPI", self._handle._client)  # noqa: SLF001
            self._share()
            self._check(metric, encoder_metric, fingerprint, assume_compatible=assume_compatible)
            return
        with translated(f"collection {name!r}"):
            self.client = open_client(path) if client is None else with_patience(client, retry_seconds)
        self.at_server = client is not None and is_server(self.client)
        if path is not None:
            self.folder = str(Path(path).expanduser().resolve())
        # Chroma's in-memory store is one for the whole process: two indexes must not meet in it.
        stored_name = f"{name[:400]}-{uuid.uuid4().hex}" if private else name
        with translated(f"collection {name!r}"):
            self._share()
            wanted = metric or encoder_metric or "cosine"
            self._handle, self.made = find_or_create(self.client, stored_name, wanted, fingerprint, self._alone)
            if self.made and not private and not self.at_server:  # a server has those of many
                self.beside = other_collections(self.client, stored_name)
        if private:  # nobody else can reach it: it goes with this object
            finalizer = weakref.finalize(self, drop_collection, self.client, stored_name, os.getpid())
            finalizer.atexit = False
            self._drop_private = finalizer
        try:
            self._check(metric, encoder_metric, fingerprint, assume_compatible=assume_compatible)
        except IndexMismatchError:
            self.close()
            raise

    def _share(self) -> None:
        """Take part in what the processes that use the directory agree upon."""
        self._shared = directory_of(self.client)
        if self._shared is not None:
            self._shared[0].current(self._shared[1])
            weakref.finalize(self, self._shared[0].let_go, self._owner, os.getpid())

    def _alone(self) -> AbstractContextManager[object]:
        """What a single write of Chroma's needs to hold, where it is not a server's."""
        if self._shared is None:
            return nullcontext() if self.at_server else _IN_MEMORY.writing()
        shared, store = self._shared
        return shared.writing(store, self._owner, self.lock_timeout)

    @contextmanager
    def reading(self) -> Iterator[object]:
        """Read what is there now, whoever wrote it; gives what is equal as long as nobody is known to have written."""
        with translated(f"collection {self.name!r}"):
            handle = self.handle
            if self._shared is None:
                yield AT_SERVER if self.at_server else _IN_MEMORY.writes
                return
            view = self._shared[0].current(self._shared[1])
            self._look(self._shared[0], view, handle)
            yield view.generation, view.writes

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Do one write of Chroma's, and nothing else, while no one else does.

        Raises:
            IndexLockedError: If another process writes the directory for longer than `lock_timeout`.
            InvalidInputError: If the directory cannot be written.
        """
        with self._lock, translated(f"collection {self.name!r}"):
            handle = self.handle
            with self._alone() as view:
                if self._shared is not None:
                    self._look(self._shared[0], cast("View", view), handle)
                yield

    def hold(self) -> None:
        """Become the writer of the directory, before anything is made for it; see `writing` for what it raises."""
        if self._shared is not None:
            _ = self.handle
            self._shared[0].hold(self._owner, self.lock_timeout)

    def _look(self, shared: Directory, view: View, handle: chromadb.Collection) -> None:
        # Chroma brings a collection up to date at the first look at it, and may write then.
        if self._epoch != view.epoch:
            begin = time.monotonic()
            with shared.alone():
                handle.count()
                self._epoch = view.epoch
            view.opened_again(time.monotonic() - begin)

    def _check(
        self,
        metric: Metric | None,
        encoder_metric: Metric | None,
        fingerprint: Fingerprint | None,
        *,
        assume_compatible: bool,
    ) -> None:
        found = Identity.read(self.handle.configuration_json, self.handle.metadata)
        self.metric = found.metric
        self.recorded = found.fingerprint is not None
        self.verified = fingerprint is None or (self.recorded and not needs_proof(found.fingerprint, fingerprint))
        check_format(self.name, found)
        if not assume_compatible:
            check_identity(self.name, found, metric, fingerprint)
            if metric is None and encoder_metric is not None:
                self.check_suits(encoder_metric)
        else:
            self.verified = True

    def check_suits(self, metric: Metric) -> None:
        """Raise IndexMismatchError if the collection orders passages otherwise than the metric of an encoder does.

        Of vectors of length 1, as Chroma's own default of squared L2 often holds them, all metrics make one order.
        """
        if metric == self.metric:
            return
        with suppress(RetrieveRerankError), self.reading():  # of a damaged index nothing is known
            some = self.handle.get(limit=_LOOKED_AT, include=["embeddings"])["embeddings"]
            if some is not None and len(some) and np.allclose(np.linalg.norm(some, axis=1), 1.0, atol=UNIT):
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
        if os.getpid() != self._process:
            raise RetrieveRerankError(
                f"collection {self.name!r} was opened in process {self._process} and cannot be used in its forked "
                f"child {os.getpid()}, where Chroma would wait for ever. Open indexes after the fork only, or start "
                "processes with multiprocessing.get_context('spawn')"
            )
        if self._closed:
            raise RetrieveRerankError(f"collection {self.name!r} was closed; open the index again")
        return self._handle

    def replace_handle(self, handle: chromadb.Collection) -> None:
        """Go on with another collection, which has taken this one's name."""
        self._handle, self._async_handle, self._counted = handle, None, None

    def check_has_client(self, done: str) -> None:
        """Raise InvalidInputError for a live collection, through which collections can neither be made nor deleted."""
        if self._is_live:
            raise InvalidInputError(
                f"collection {self.name!r} was given as an object of Chroma's, through which it cannot be {done}: open "
                "it by its directory or with a Chroma client instead, and do it there"
            )

    @property
    def async_handle(self) -> AsyncCollection:
        """Chroma's own object for async code, where a server holds the collection."""
        handle = self.handle
        with self._lock:
            if self._async_handle is None:
                self._async_handle = async_collection(handle)
            return self._async_handle

    @property
    def max_batch(self) -> int:
        """How many records Chroma takes in one call."""
        return int(self.client.get_max_batch_size())

    def record_encoder(self, fingerprint: Fingerprint) -> None:
        """Write down which encoder makes this collection's vectors."""
        kept = {key: value for key, value in (self.handle.metadata or {}).items() if not key.startswith("hnsw:")}
        with self.writing():
            self.handle.modify(metadata={**kept, **to_metadata(fingerprint)})
        self.verified = True

    def note_encoder(self, fingerprint: Fingerprint) -> None:
        """As `record_encoder`, for who only reads: where the writers' lock is not to be had, nothing is written down.

        The lock is given back, if it was taken for this alone.
        """
        if self._shared is None:
            return self.record_encoder(fingerprint)
        shared = self._shared[0]
        held = shared.holds(self._owner)
        try:
            shared.hold(self._owner, 0.0)
        except RetrieveRerankError:
            self.verified = True
            return None
        try:
            return self.record_encoder(fingerprint)
        finally:
            if not held:
                shared.let_go(self._owner, self._process)

    def close(self) -> None:
        """End the worker, drop a private in-memory collection, and let go of a store that was opened here."""
        if os.getpid() != self._process:
            return  # a forked child has nothing of its own to let go of, and Chroma would not answer
        self.worker.close()
        self._async_handle = None  # its connections are closed by the event loops that they belong to
        if self._drop_private is not None:
            self._drop_private()
        elif self._opened and not self._closed:
            cast("Any", self.client).close()  # counted: the store itself closes with its last client
        self._closed = self._closed or self._opened
        if self._shared is not None:
            self._shared[0].let_go(self._owner, self._process)

    def drop(self) -> None:
        """Delete the collection itself."""
        self.check_has_client("deleted")
        with translated(f"collection {self.name!r}"):
            drop_collection(self.client, self.handle.name, os.getpid(), self._alone)
