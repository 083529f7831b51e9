"""Reaching Chroma: open a store, find or make a collection, and turn Chroma's errors into ours.

Importing chromadb takes longer than importing a framework, so it happens at the first use.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RemoteError, RetrieveRerankError
from retrieve_rerank.indexes.fingerprint import SPACES, Fingerprint, to_metadata
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI

# Chroma searches this many neighbours. Its default of 100 finds 93 % of the true top 100; re-ranking wants them all.
EF_SEARCH = 200
_DROP_CHUNK = 1_000  # records deleted in one call


def open_client(path: str | os.PathLike[str] | None) -> ClientAPI:
    """Return a client on a directory, which is made if missing, or in memory.

    Raises:
        InvalidInputError: If the directory cannot be written.
    """
    import chromadb
    from chromadb.errors import ChromaError

    if path is None:
        return chromadb.EphemeralClient()
    # Chroma takes every spelling of a path for a store of its own, and two stores on one directory lose vectors.
    try:
        if not os.fspath(path):
            raise ValueError("the path is empty")
        folder = Path(path).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".retrieve-rerank-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
        return chromadb.PersistentClient(str(folder))
    except (OSError, ChromaError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"cannot open a Chroma index in {str(path)!r}: {error}. Give a directory that can be written"
        ) from error


def find_or_create(
    client: ClientAPI, name: str, metric: Metric, fingerprint: Fingerprint | None
) -> chromadb.Collection:
    """Return the collection of this name as it is, or a new one with this metric and fingerprint."""
    from chromadb.errors import ChromaError, NotFoundError

    def find() -> chromadb.Collection:
        # None, not the default: that would attach an ONNX model and download it.
        return client.get_collection(name, embedding_function=None)

    try:
        return find()
    except NotFoundError:
        settings: Any = {"hnsw": {"space": SPACES[metric], "ef_search": EF_SEARCH}}
        try:
            return client.create_collection(
                name, configuration=settings, metadata=to_metadata(fingerprint), embedding_function=None
            )
        except ChromaError as error:
            # Another process made it meanwhile, or we did and a server's answer was lost.
            try:
                return find()
            except NotFoundError:
                raise error from None


def drop_collection(client: ClientAPI, name: str, process: int) -> None:
    """Delete a collection and everything in it; one that is gone is no error.

    Args:
        client: Where it is.
        name: Its name.
        process: The process that opened the client; elsewhere, nothing is done.
    """
    if os.getpid() != process:  # in a forked child Chroma would wait for ever
        return
    from chromadb.errors import NotFoundError

    with suppress(NotFoundError, ValueError):  # gone already
        handle = client.get_collection(name, embedding_function=None)
        # Chroma leaves the list values of a deleted collection behind, for the next rows to find.
        while ids := handle.get(limit=_DROP_CHUNK, include=[])["ids"]:
            handle.delete(ids=ids)
        client.delete_collection(name)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn Chroma's errors into ours, with its own words kept."""
    import httpx  # which Chroma's client for servers is built on
    from chromadb.errors import ChromaError, InternalError, InvalidArgumentError, NotFoundError

    try:
        yield
    except RetrieveRerankError:
        raise
    except NotFoundError as error:
        raise RetrieveRerankError(f"{what} is gone, deleted by someone else: {error}. Open the index again") from error
    except InvalidArgumentError as error:
        if "dimension" in str(error):
            raise IndexMismatchError(
                f"{what} holds vectors of another length than the encoder makes: {error}. Open it with the encoder "
                "that made it, or use another collection name"
            ) from error
        raise InvalidInputError(f"{what}: {error}") from error
    except InternalError as error:
        raise RetrieveRerankError(f"{what}: Chroma failed: {error}") from error
    except httpx.HTTPError as error:
        raise RemoteError(f"{what}: the Chroma server cannot be reached or failed: {error}") from error
    except (ChromaError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{what}: {error}") from error
