"""Reaching Chroma: open a store, find, make or delete a collection, and turn Chroma's errors into ours.

Importing chromadb takes longer than importing a framework, so it happens at the first use.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from retrieve_rerank.checks import check_flag, check_mapping
from retrieve_rerank.errors import (
    IndexLockedError,
    IndexMismatchError,
    InvalidInputError,
    RemoteError,
    RetrieveRerankError,
    in_one_line,
    shown,
    warn_caller,
)
from retrieve_rerank.indexes.access import Share, Threads
from retrieve_rerank.indexes.chroma_server import Patient, is_server
from retrieve_rerank.indexes.directory import (
    DATABASE,
    READER_SECONDS,
    Directory,
    directory,
    drop_snapshot,
    one_spelling,
    snapshot,
)
from retrieve_rerank.indexes.identity import SPACES, Fingerprint, to_metadata
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI

# Chroma searches this many neighbours. Its default of 100 finds 93 % of the true top 100; re-ranking wants them all.
EF_SEARCH = 200
# What two writers can leave behind: every call fails.
_UNREADABLE = (
    ". Its vectors cannot be read any more; the texts are all there: ChromaIndex.recover(encoder, collection, path=…) "
    "encodes them again"
)
_STUCK = (
    ". A record in its log has more metadata than Chroma can apply, so that every call fails; repair() of the index "
    "puts it right, and keeps the metadata"
)
_REBUILDING = ("rebuilding-", "rebuilt-", "replaced-")
_SHOWN = 10  # names of collections
_DROP_CHUNK = 1_000  # records deleted in one call
_LITTLE_ROOM = 2**20  # bytes free on a disk that is said to be full

_started: int | None = None  # the process that Chroma's stores and threads belong to
_THREADS = Threads()  # that write to Chroma's store in memory, which is one for the whole process
# Two threads that open Chroma's first store in memory find half a one; the last who closes it ends it.
_IN_MEMORY = threading.RLock()


def open_client(path: str | os.PathLike[str] | None) -> ClientAPI:
    """Return a client on a directory, which is made if missing, or in memory.

    A directory that is there and cannot be opened, as Chroma writes even to read, is opened as a copy: on a medium that
    cannot be written, or while another process is stopped in the middle of a write. A warning says so.

    Raises:
        InvalidInputError: If the directory cannot be opened.
        RetrieveRerankError: In a forked child of a process that used Chroma.
    """
    import chromadb
    from chromadb.errors import ChromaError

    check_not_forked()
    if path is None:
        with _IN_MEMORY, no_panic("a Chroma index in memory", "ephemeral"):
            return chromadb.EphemeralClient()
    # Chroma takes every spelling of a path for a store of its own, and two stores on one directory lose vectors.
    folder = one_spelling(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shared = directory(folder)
        with shared.alone(READER_SECONDS), no_panic(f"the Chroma index in {str(folder)!r}", str(folder)):
            shared.mend()
            return chromadb.PersistentClient(str(folder))
    except (OSError, ChromaError, ValueError, TypeError, IndexLockedError) as error:
        if "with different settings" in str(error):
            raise InvalidInputError(
                f"the Chroma index in {str(folder)!r} is open in this process through a Chroma client with other "
                "settings, and Chroma opens a directory once: give that client (client=…), or close it first"
            ) from error
        if isinstance(error, (ValueError, TypeError)) or not (folder / DATABASE).is_file():
            raise InvalidInputError(
                f"cannot open a Chroma index in {str(folder)!r}: {error}. Give a directory that can be written"
            ) from error
        return _open_snapshot(folder, error)


def _open_snapshot(folder: Path, error: Exception) -> ClientAPI:
    import chromadb

    reason = in_one_line(error) + of_disk(folder)
    try:
        place = snapshot(folder, reason)
    except (OSError, sqlite3.Error) as failed:
        raise InvalidInputError(
            f"cannot open a Chroma index in {str(folder)!r}: {reason}; nor can it be copied, to be searched as it is: "
            f"{failed}"
        ) from error
    warn_caller(
        f"{str(folder)!r} cannot be written now, and Chroma writes even to read ({reason}); a copy of it is searched, "
        "and what others write from now on is not found",
        UserWarning,
    )
    client = chromadb.PersistentClient(str(place))
    weakref.finalize(client, drop_snapshot, place, os.getpid())
    return client


def connect(
    host: str,
    port: int | str,
    *,
    ssl: bool = False,
    headers: dict[str, str] | None = None,
    tenant: str | None = None,
    database: str | None = None,
) -> ClientAPI:
    """Return a client of Chroma's server.

    Raises:
        RemoteError: If it cannot be reached.
    """
    import chromadb
    from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT
    from chromadb.errors import ChromaError

    headers = check_mapping(headers, "headers")
    if not isinstance(host, str) or not isinstance(port, (int, str)):
        raise InvalidInputError(f"a server has a host and a port, such as localhost and 8000; got {shown(host)}")
    place: Any = {"tenant": tenant or DEFAULT_TENANT, "database": database or DEFAULT_DATABASE}
    try:
        return chromadb.HttpClient(host, int(port), check_flag(ssl, "ssl"), headers, **place)
    except (ChromaError, ValueError) as error:
        raise RemoteError(f"cannot reach a Chroma server at {host}:{port}: {error}") from error


def without_stored_functions(handle: chromadb.Collection) -> chromadb.Collection:
    """Return a collection's handle that knows nothing of the embedding functions which are stored with it.

    Chroma builds them when something is written, whatever they are: a stranger's may run the code of a checkpoint.
    """
    import chromadb

    model = handle.get_model().model_copy()
    model.serialized_schema = None
    kept = {key: value for key, value in model.configuration_json.items() if key != "embedding_function"}
    model.configuration_json = kept
    return chromadb.Collection(client=handle._client, model=model, embedding_function=None)  # noqa: SLF001


def get_collection(client: ClientAPI, name: str) -> chromadb.Collection:
    """Return a collection that is there, with no embedding function: neither Chroma's default nor a stored one.

    Raises:
        chromadb.errors.NotFoundError: If there is none.
    """
    return _of(client, client.get_collection(name, embedding_function=None))


def _of(client: ClientAPI, handle: chromadb.Collection) -> chromadb.Collection:
    plain = without_stored_functions(handle)
    return cast("chromadb.Collection", client.like(plain)) if isinstance(client, Patient) else plain


Writing = Callable[[], AbstractContextManager[object]]  # what a single write holds


def find_or_create(
    client: ClientAPI,
    name: str,
    metric: Metric,
    fingerprint: Fingerprint | None,
    writing: Writing = nullcontext,
) -> tuple[chromadb.Collection, bool]:
    """Return the collection of this name as it is, or a new one with this metric and fingerprint.

    Args:
        client: Where it is.
        name: Its name.
        metric: Of a new one.
        fingerprint: Of a new one.
        writing: What to hold while a new one is made.

    Returns:
        The collection, and whether it was made.
    """
    from chromadb.errors import ChromaError, NotFoundError

    try:
        return get_collection(client, name), False
    except NotFoundError:
        if (finished := finish_rebuilding(client, name, writing)) is not None:
            return finished, False
        settings: Any = {"hnsw": {"space": SPACES[metric], "ef_search": EF_SEARCH}}
        try:
            with writing():
                made = client.create_collection(
                    name, configuration=settings, metadata=to_metadata(fingerprint), embedding_function=None
                )
                return _of(client, made), True
        except ChromaError as error:
            # Another process made it meanwhile, or we did and a server's answer was lost.
            try:
                return get_collection(client, name), False
            except NotFoundError:
                raise error from None


def turns_of(client: ClientAPI, lock_timeout: float) -> Share | Threads:
    """Return whose turn it is to write to a client, which waits `lock_timeout` seconds for another process."""
    shared = directory_of(client)
    if is_server(client):
        return Threads(knows=False)
    return _THREADS if shared is None else Share(*shared, lock_timeout)


def other_collections(client: ClientAPI, name: str) -> tuple[str, ...]:
    """Return the names of some other collections of a client; of a server, which has those of many, none."""
    if is_server(client):
        return ()
    named = (collection.name for collection in client.list_collections(limit=_SHOWN))
    return tuple(other for other in named if other != name and not other.startswith(_REBUILDING))


def rebuilding_names(name: str) -> tuple[str, str, str]:
    """Return the names of a collection's successor, being filled and complete, and of the collection once replaced."""
    mark = hashlib.sha256(name.encode()).hexdigest()[:40]
    filling, complete, replaced = (f"{beginning}{mark}" for beginning in _REBUILDING)
    return filling, complete, replaced


def finish_rebuilding(client: ClientAPI, name: str, writing: Writing = nullcontext) -> chromadb.Collection | None:
    """Give a collection's complete successor its name, where the collection is gone and the process that made it, too.

    Args:
        client: Where they are.
        name: The collection's name.
        writing: What to hold while the name is given.

    Returns:
        The collection; None if there is no successor.
    """
    from chromadb.errors import NotFoundError

    try:
        successor = get_collection(client, rebuilding_names(name)[1])
        with writing():
            successor.modify(name=name)
    except (NotFoundError, ValueError):  # ValueError: some versions'
        return None
    return successor


def drop_collection(client: ClientAPI, name: str, process: int, writing: Writing = nullcontext) -> None:
    """Delete a collection and everything in it; one that is gone is no error.

    Args:
        client: Where it is.
        name: Its name.
        process: The process that opened the client; elsewhere, nothing is done.
        writing: What to hold for each write.
    """
    if os.getpid() != process:  # in a forked child Chroma would wait for ever
        return
    from chromadb.errors import InternalError, NotFoundError

    with suppress(NotFoundError, ValueError):  # gone already
        handle = get_collection(client, name)
        # A damaged index may refuse, and goes all the same.
        with suppress(InternalError, RetrieveRerankError, ValueError):
            # Chroma leaves the list values of a deleted collection behind, for the next rows to find. No other row is
            # deleted by itself: after a thousand of them Chroma rewrites its vector files, and those of a damaged index
            # may fill the disk then.
            listed = _with_lists(handle)
            for start in range(0, len(listed), _DROP_CHUNK):
                with writing():
                    handle.delete(ids=listed[start : start + _DROP_CHUNK])
        with writing():
            client.delete_collection(name)


def drop_private(client: ClientAPI, name: str, process: int) -> None:
    """Delete a collection of Chroma's store in memory, and the store with the last one: it keeps deleted vectors."""
    with _IN_MEMORY:
        drop_collection(client, name, process)
        if os.getpid() == process:
            cast("Any", client).close()


def _with_lists(handle: chromadb.Collection) -> list[str]:
    """Return the ids of the rows that have a list among their values."""
    found: list[str] = []
    offset = 0
    while ids := (rows := handle.get(limit=_DROP_CHUNK, offset=offset, include=["metadatas"]))["ids"]:
        values = rows["metadatas"] or []
        found += [
            id_ for id_, row in zip(ids, values, strict=True) if any(isinstance(v, list) for v in (row or {}).values())
        ]
        offset += len(ids)
    return found


def directory_of(client: object) -> tuple[Directory, Any] | None:
    """Return the directory that a client, or what a collection calls its client, stores in, and Chroma's store.

    None for a client of a server or of memory.

    Raises:
        RetrieveRerankError: In a forked child of a process that used Chroma.
    """
    store: Any = getattr(client, "_server", client)  # there is no public way to it
    if not callable(getattr(store, "get_settings", None)):
        raise InvalidInputError(f"client must be a Chroma client, such as chromadb.HttpClient(), got {shown(client)}")
    settings = store.get_settings()
    if is_server(client):
        return None
    check_not_forked()
    if not settings.is_persistent:
        return None
    return directory(Path(settings.persist_directory).expanduser()), store


def check_not_forked() -> None:
    """Raise RetrieveRerankError in a forked child of a process that used Chroma in memory or in a directory.

    Chroma shares its stores and its threads in a process, and in the child it waits for threads that are not there.
    """
    global _started
    if _started not in (None, os.getpid()):
        raise RetrieveRerankError(
            f"this process was forked from one that had opened a Chroma index, {_started}, and Chroma would wait for "
            "ever here. Open indexes after the fork only, or start processes with "
            "multiprocessing.get_context('spawn')"
        )
    _started = os.getpid()


@contextmanager
def no_panic(what: str, opening: str | None = None) -> Iterator[None]:
    """Turn a panic of Chroma's Rust into an error of ours: Python's handlers of exceptions would not see it.

    Args:
        what: What failed, for messages.
        opening: Chroma's name of a store that is being opened: half a one would be found by the next who opens it.
    """
    from chromadb.api.shared_system_client import SharedSystemClient

    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        if opening is not None:
            SharedSystemClient._identifier_to_system.pop(opening, None)  # noqa: SLF001 - there is no public way
        said = in_one_line(error)
        cure = ""
        if "Too many open files" in said or "os error 24" in said:
            cure = ". This process may open no more files: close some, or raise the limit (ulimit -n)"
        raise RetrieveRerankError(f"{what}: Chroma failed: {said}{cure}") from error


def of_disk(folder: Path | None) -> str:
    """Return what to say of a folder's disk, if it is full."""
    with suppress(OSError):
        if folder is not None and shutil.disk_usage(folder).free < _LITTLE_ROOM:
            return f" (the disk of {str(folder)!r} is full)"
    return ""


@contextmanager
def translated(what: str, folder: Path | None = None) -> Iterator[None]:
    """Turn Chroma's errors into ours, with its own words kept.

    Args:
        what: The collection, for messages.
        folder: Where it is stored: a full disk is named.
    """
    import httpx  # which Chroma's client for servers is built on
    from chromadb.errors import ChromaError, InternalError, InvalidArgumentError, NotFoundError

    try:
        with no_panic(what):
            yield
    except RetrieveRerankError:
        raise
    except NotFoundError as error:
        raise RetrieveRerankError(f"{what} is gone, deleted by someone else: {error}. Open the index again") from error
    except (InvalidArgumentError, InternalError) as error:
        raise _told(what, error, folder) from error
    except httpx.HTTPError as error:
        raise RemoteError(f"{what}: the Chroma server cannot be reached or failed: {error}") from error
    except (ChromaError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{what}: {error}") from error


def _told(what: str, error: Exception, folder: Path | None) -> RetrieveRerankError:
    """Return our error for one of Chroma's that says in words only what it is about."""
    from chromadb.errors import InvalidArgumentError

    said = str(error)
    if "too many SQL variables" in said:
        return InvalidInputError(
            f"{what}: the filter has more values than Chroma takes in one search, some 32,000: {error}. Ask with "
            "parts of the list, or store what it stands for under a key of its own"
        )
    if "apply logs to the metadata segment" in said or "pull logs" in said:
        return RetrieveRerankError(f"{what}: Chroma failed: {error}{of_disk(folder) or _STUCK}")
    if isinstance(error, InvalidArgumentError):
        if "dimension" not in said:
            return InvalidInputError(f"{what}: {error}")
        return IndexMismatchError(
            f"{what} holds vectors of another length than the encoder makes: {error}. Open it with the encoder that "
            "made it, or use another collection name"
        )
    hint = of_disk(folder) or (_UNREADABLE if "hnsw segment" in said else "")
    return RetrieveRerankError(f"{what}: Chroma failed: {error}{hint}")
