"""What langchain-chroma's arguments mean to our store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retrieve_rerank.errors import InvalidInputError, warn_caller
from retrieve_rerank.indexes.client import connect
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.fingerprint import SPACES
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

DEFAULT_NAME = "passages"
_THEIR_DEFAULT_NAME = "langchain"


def client_for(
    client: ClientAPI | None,
    host: str | None,
    port: int | str | None,
    *,
    ssl: bool,
    headers: dict[str, str] | None,
    tenant: str | None,
    database: str | None,
    cloud_key: str | None,
) -> ClientAPI | None:
    """Return a client of the server that is named, or the one that was given.

    Raises:
        InvalidInputError: If more than one is named, or what Chroma Cloud needs is missing.
        RemoteError: If the server cannot be reached.
    """
    if host is None and cloud_key is None:
        if any(value is not None for value in (port, headers, tenant, database)) or ssl:
            raise InvalidInputError("port, ssl, headers, tenant and database are a server's: give host, too")
        return client
    if client is not None or (host is not None and cloud_key is not None):
        raise InvalidInputError("give one of client, host and chroma_cloud_api_key")
    if cloud_key is None:
        return connect(host or "", port or 8000, ssl=ssl, headers=headers, tenant=tenant, database=database)
    if not tenant or not database:
        raise InvalidInputError("chroma_cloud_api_key needs tenant and database, too")
    import chromadb

    return chromadb.CloudClient(tenant=tenant, database=database, api_key=cloud_key)


def asked_space(
    metadata: Mapping[str, Any] | None, configuration: Mapping[str, Any] | None
) -> tuple[Metric | None, list[str]]:
    """Return the metric that was asked for in Chroma's ways, and what else was."""
    hnsw = (configuration or {}).get("hnsw") or {}
    others = {
        "collection_metadata": [key for key in metadata or {} if key != "hnsw:space"],
        "collection_configuration": [key for key in configuration or {} if key != "hnsw"],
        "collection_configuration['hnsw']": [key for key in hnsw if key != "space"],
    }
    unused = [f"{name}[{key!r}]" for name, keys in others.items() for key in keys]
    space = hnsw.get("space") or (metadata or {}).get("hnsw:space")
    if space is None:
        return None, unused
    for metric, name in SPACES.items():
        if name == space:
            return metric, unused
    raise InvalidInputError(f"the space must be one of {', '.join(SPACES.values())}; got {space!r}")


def tell_what_was_made(collection: ChromaCollection, unused: list[str]) -> None:
    """Warn of a collection that was made, where langchain-chroma would have made or opened another.

    Args:
        collection: As it was opened.
        unused: What was asked for and is not taken over.
    """
    if unused and collection.made:
        warn_caller(
            f"collection {collection.name!r} was made without {', '.join(unused)}: of these arguments only the space "
            "is taken over. To have more, make the collection with Chroma's own client first; it is opened as it is",
            UserWarning,
        )
    if collection.name == DEFAULT_NAME and _THEIR_DEFAULT_NAME in collection.beside:
        warn_caller(
            f"a new, empty collection {DEFAULT_NAME!r} was made beside {_THEIR_DEFAULT_NAME!r}, which is the default "
            f"name of langchain-chroma: pass collection_name={_THEIR_DEFAULT_NAME!r} to go on with that one",
            UserWarning,
        )
