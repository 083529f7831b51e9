"""What the vector store is given to open: a live collection, or where a server is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrieve_rerank.errors import InvalidInputError, RemoteError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI


def check_collection(collection: object) -> None:
    """Raise InvalidInputError if what was given is no live collection."""
    import chromadb  # takes longer to import than a framework

    if not isinstance(collection, chromadb.Collection):
        raise InvalidInputError(
            f"chroma_collection must be a chromadb.Collection, got {type(collection).__name__}; make one with "
            "client.get_or_create_collection(name), or give collection_name and persist_dir"
        )


def connect(host: str, port: str, *, ssl: bool, headers: dict[str, str] | None) -> ClientAPI:
    """Return a client of Chroma's server."""
    import chromadb
    from chromadb.errors import ChromaError

    try:
        return chromadb.HttpClient(host, int(port), ssl, headers)
    except (ChromaError, ValueError) as error:
        raise RemoteError(f"cannot reach a Chroma server at {host}:{port}: {error}") from error
