"""Passages straight into a store: a Chroma server, or any vector store of LangChain's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from retrieve_rerank.errors import InvalidInputError, RemoteError, in_one_line
from retrieve_rerank.indexes.chroma import ChromaIndex
from retrieve_rerank.ray.pool import Pool, encoder_of
from retrieve_rerank.ray.sources import Passages
from retrieve_rerank.ray.storing import store as store_all
from retrieve_rerank.retrying import pauses
from retrieve_rerank.types import AddReport, Encoder, Metric, Passage

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_BATCH = 1_000
_MAX_FAILED = 1_000


def index(
    passages: Passages,
    encoder: Encoder | Callable[[], Encoder],
    *,
    collection: str = "passages",
    host: str = "localhost",
    port: int = 8000,
    ssl: bool = False,
    headers: Mapping[str, str] | None = None,
    tenant: str = "default_tenant",
    database: str = "default_database",
    metric: Metric | None = None,
    assume_compatible: bool = False,
    batch_size: int = _BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    max_failed: int = _MAX_FAILED,
    show_progress: bool = False,
) -> AddReport:
    """Encode passages on many workers and store them in a collection of a Chroma server.

    The collection is the one that `ChromaIndex(encoder, collection, client=...).add(passages)` makes: the same ids,
    texts, metadata and vectors, metric and encoder's fingerprint. Passages that are stored already are not encoded
    again, so a run that was broken off is run again. A worker that is lost costs its batch, which another one repeats;
    passages that it had stored by then count as unchanged. While the server is away the workers wait for it, as
    `ChromaIndex` does.

    Args:
        passages: A Ray Dataset with the string columns `id` and `text` and, if there are any, `metadata` (a JSON
            object, a struct or a map; in a struct, null is a key that is not there), where further columns are
            ignored; or the path or URI of a `.jsonl`, `.jsonl.gz` or `.parquet` file with these fields, or of a folder
            of such; or any iterable of Passage, which is read once, into Ray's object store. Of equal ids the last
            wins; a Dataset that has such ids is read a second time.
        encoder: A `BiEncoder`, which each worker loads once; anything of its shape that can be pickled; or a function
            that makes one. A token or key that it was made with stays here, as in any pickle: set HF_TOKEN or
            RETRIEVE_RERANK_API_KEY on the nodes, or give a function.
        collection: Name of the collection; it is made if missing.
        host: The Chroma server, as every node of the cluster reaches it.
        port: Its port.
        ssl: Whether to speak HTTPS.
        headers: Sent with every request, such as a token.
        tenant: The server's tenant.
        database: The server's database.
        metric: "cosine", "dot" or "euclidean", instead of the encoder's.
        assume_compatible: Write into a collection of another encoder or metric all the same.
        batch_size: Passages encoded and written in one go.
        concurrency: How many workers at most, or at least and at most; they start as there is work. None takes as many
            as there is room for when one CPU is kept to read the passages with.
        num_cpus: CPUs of each worker, which are also the threads that it computes on; None is one, or none where the
            cluster has only one.
        num_gpus: GPUs of each worker; 0.5 puts two on one.
        max_failed: It stops when more passages than this have failed.
        show_progress: Show a bar on stderr.

    Returns:
        What became of the passages.

    Raises:
        PassagesFailedError: If passages could not be stored; all others were.
        IndexMismatchError: If the collection was made by another encoder or with another metric.
        RemoteError: If the server cannot be reached.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import BiEncoder, Passage
        >>> from retrieve_rerank.ray import index
        >>> passages = [Passage("1", "Paris is the capital of France."), Passage("2", "Bread is baked.")]
        >>> index(passages, BiEncoder(bi_encoder_path), host="127.0.0.1", port=chroma_port, concurrency=1)
        AddReport(added=2, updated=0, unchanged=0)
    """
    server = Server(host, port, ssl, dict(headers or {}), tenant, database)
    make = partial(Collection, encoder, collection, server, metric, assume_compatible)
    return store_all(
        passages,
        lambda: make,
        Pool(concurrency, num_cpus, num_gpus),
        batch_size=batch_size,
        max_failed=max_failed,
        show_progress=show_progress,
        trial=partial(make, tries=_FIRST_TRIES),
    )


def index_store(
    passages: Passages,
    store: Callable[[], TextStore],
    *,
    batch_size: int = _BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    max_failed: int = _MAX_FAILED,
    show_progress: bool = False,
) -> AddReport:
    """Store passages, on many workers, in a vector store of LangChain's, which encodes them itself.

    Each worker makes the store once and calls its `add_texts` with ids, so the store must be one that several
    processes may write, and that replaces what has an id, as LangChain's interface says. A store that has
    `get_by_ids` is asked first, and passages that it returns as they are, text and metadata, are not encoded again.
    With any other store all passages are, at every run, and count as added.

    Args:
        passages: As for `index`.
        store: Makes the store in a worker, with its embeddings.
        batch_size: Passages given to the store in one go.
        concurrency: As for `index`.
        num_cpus: As for `index`.
        num_gpus: As for `index`.
        max_failed: As for `index`.
        show_progress: Show a bar on stderr.

    Returns:
        What became of the passages.

    Raises:
        PassagesFailedError: If passages could not be stored; all others were.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> import chromadb
        >>> from retrieve_rerank import Passage
        >>> from retrieve_rerank.langchain import ChromaVectorStore
        >>> from retrieve_rerank.ray import index_store
        >>> from retrieve_rerank.testing import EncoderEmbeddings, LetterEncoder
        >>> def store():  # any vector store, with any embeddings
        ...     client = chromadb.HttpClient(host="127.0.0.1", port=chroma_port)
        ...     return ChromaVectorStore("texts", EncoderEmbeddings(LetterEncoder()), client=client)
        >>> index_store([Passage("1", "Paris is the capital of France.")], store, concurrency=1)
        AddReport(added=1, updated=0, unchanged=0)
    """
    if not callable(store):
        raise InvalidInputError(
            f"store must be a function that makes the store in a worker, got {type(store).__name__}"
        )
    make = partial(Texts, store)
    return store_all(
        passages,
        lambda: make,
        Pool(concurrency, num_cpus, num_gpus),
        batch_size=batch_size,
        max_failed=max_failed,
        show_progress=show_progress,
    )


# A worker may come, or come back, while the server is being started again: it waits half a minute, or up to twice that.
_TRIES = 12
_FIRST_TRIES = 3  # before there are workers


@dataclass(frozen=True, slots=True)
class Server:
    """Where a Chroma server is. Its headers may hold a secret, which no repr shows."""

    host: str
    port: int
    ssl: bool
    headers: Mapping[str, str] = field(repr=False)
    tenant: str
    database: str

    def client(self, tries: int = 1) -> ClientAPI:
        """Return a client of its own.

        Raises:
            RemoteError: If the server does not answer.
        """
        import chromadb  # slow to import

        waits = pauses(tries)
        while True:
            try:
                return chromadb.HttpClient(
                    self.host, self.port, self.ssl, dict(self.headers), tenant=self.tenant, database=self.database
                )
            except Exception as error:  # of many libraries, and what is wrong with the server is in their words
                pause = next(waits, None)
                if pause is None:
                    raise RemoteError(
                        f"cannot open the Chroma server at {self.host}:{self.port}: {in_one_line(error)}. Check that "
                        "it runs and that the nodes of the cluster can reach it under this name"
                    ) from error
            time.sleep(pause)


class Collection:
    """A sink: a collection of a Chroma server."""

    def __init__(
        self,
        encoder: Encoder | Callable[[], Encoder],
        collection: str,
        server: Server,
        metric: Metric | None,
        assume_compatible: bool,  # noqa: FBT001 - made by `partial` only
        tries: int = _TRIES,
    ) -> None:
        self._index = ChromaIndex(
            encoder_of(encoder),
            collection,
            client=server.client(tries),
            metric=metric,
            assume_compatible=assume_compatible,
        )

    def store(self, passages: list[Passage]) -> AddReport:
        """Store passages."""
        return self._index.add(passages, batch_size=max(1, len(passages)))


class TextStore(Protocol):
    """What is asked of a vector store of LangChain's."""

    def add_texts(self, texts: Any, metadatas: Any = None, *, ids: Any = None) -> list[str]:
        """Store texts under ids."""


class Texts:
    """A sink: a vector store of LangChain's."""

    def __init__(self, make: Callable[[], TextStore]) -> None:
        self._store = make()

    def store(self, passages: list[Passage]) -> AddReport:
        """Store the passages that the store does not have as they are."""
        stored = self._stored([passage.id for passage in passages])
        changed = [p for p in passages if stored.get(p.id) != _content(p.text, p.metadata)]
        if changed:
            self._store.add_texts(
                [passage.text for passage in changed],
                [dict(passage.metadata) for passage in changed],
                ids=[passage.id for passage in changed],
            )
        updated = sum(passage.id in stored for passage in changed)
        return AddReport(len(changed) - updated, updated, len(passages) - len(changed))

    def _stored(self, ids: list[str]) -> dict[str, tuple[str, str]]:
        try:
            found: list[Any] = getattr(self._store, "get_by_ids", lambda _: [])(ids) if ids else []
        except NotImplementedError:  # as LangChain's own base class
            found = []
        return {document.id: _content(document.page_content, document.metadata or {}) for document in found}


def _content(text: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
    # As JSON: 1 == True, and NaN equals nothing.
    return text, json.dumps(dict(metadata), sort_keys=True, default=repr)
