"""Chroma as a LangChain vector store, over the same collections as the rest of the package."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStoreRetriever

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.adoption import adopt_at_opening
from retrieve_rerank.indexes.collection import ChromaCollection, batches_of
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.health import check
from retrieve_rerank.indexes.repairing import repair
from retrieve_rerank.indexes.reports import IndexCheck, RepairReport
from retrieve_rerank.indexes.server import RETRY_SECONDS
from retrieve_rerank.langchain._search import ChromaSearch, refuse
from retrieve_rerank.langchain.compat import DEFAULT_NAME, asked_space, client_for, tell_what_was_made
from retrieve_rerank.langchain.convert import (
    EmbeddingsEncoder,
    aencode_documents,
    new_records,
    to_document,
    to_encoder,
)
from retrieve_rerank.models.cuts import told_once
from retrieve_rerank.models.threads import Worker
from retrieve_rerank.types import Encoder, Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI

_SEARCH_OPTIONS = ("k", "filter", "where_document", "fetch_k", "lambda_mult", "score_threshold")
_KEPT = ("documents", "metadatas")  # what `get` returns unless told


class ChromaVectorStore(ChromaSearch):
    """Documents in a Chroma collection.

    A new collection gets the metric of the embedding model (cosine where the embeddings do not say) and carries the
    model's fingerprint; an existing one is checked against both. Adding is an upsert: an id that is known gets the new
    text and exactly the new metadata; a document that is stored already, word for word, is not embedded again.

    Args:
        collection_name: Name of the collection.
        embedding_function: Any LangChain embeddings. None is enough to read, delete and search by vector.
        persist_directory: Directory of a persistent store; it is made if missing. One process at a time may write it.
        client: A Chroma client to use instead: `chromadb.HttpClient`, `CloudClient`, or an awaited `AsyncHttpClient`.
            Any number of processes may write to a server. Neither: in memory, private to this object.
        metric: "cosine", "dot" or "euclidean". None takes the model's, or that of a collection which is there, if both
            order its vectors alike.
        assume_compatible: Open a collection that was made by another model or metric all the same.
        host: A Chroma server's host, from which a client is made; a `client` of your own can do more.
        port: Its port; None is 8000.
        ssl: Whether it is asked over TLS.
        headers: Sent with every request, such as the server's token.
        tenant: At the server; None is Chroma's default.
        database: At the server; None is Chroma's default.
        chroma_cloud_api_key: The key to Chroma Cloud, instead of `host`; needs `tenant` and `database`.
        collection_metadata: The incumbent's way to give a metric, `{"hnsw:space": "cosine"}`. Nothing else is taken
            from it; where a collection is made, a warning says what.
        collection_configuration: The other one, `{"hnsw": {"space": "cosine"}}`; likewise.
        retry_seconds: For how long a request that a server does not answer is repeated, in every call; 0 asks once.
        lock_timeout: Seconds to wait, at the first write, while another process writes the directory.
        search_breadth: How many neighbours a search keeps on its way through the vectors; see `ChromaIndex`.

    Raises:
        InvalidInputError: If the directory or the name cannot be used.
        IndexLockedError: If another process writes the directory: at the first write, which may be the making of the
            collection. The lock is held until `close`, or until the process ends. Reading needs none.
        IndexMismatchError: If the collection was made by another model or with another metric.
        RemoteError: If a server does not answer for `retry_seconds`, or refuses the credentials; so does every method.

    Example:
        >>> from retrieve_rerank.langchain import BiEncoderEmbeddings, ChromaVectorStore
        >>> store = ChromaVectorStore(embedding_function=BiEncoderEmbeddings(model=str(bi_encoder_path)))
        >>> store.add_texts(["Paris is the capital of France.", "Bread is baked."], ids=["1", "2"])
        ['1', '2']
        >>> store.similarity_search("capital of France", k=1)[0].id
        '1'
    """

    def __init__(
        self,
        collection_name: str = DEFAULT_NAME,
        embedding_function: Embeddings | None = None,
        persist_directory: str | os.PathLike[str] | None = None,
        client: ClientAPI | None = None,
        *,
        metric: Metric | None = None,
        assume_compatible: bool = False,
        host: str | None = None,
        port: int | str | None = None,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        tenant: str | None = None,
        database: str | None = None,
        chroma_cloud_api_key: str | None = None,
        collection_metadata: Mapping[str, Any] | None = None,
        collection_configuration: Mapping[str, Any] | None = None,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
    ) -> None:
        space, unused = asked_space(collection_metadata, collection_configuration)
        metric = metric or space
        self._embeddings = embedding_function
        self._encoder: Encoder | None = None if embedding_function is None else to_encoder(embedding_function)
        # Embeddings that do not know their metric follow the collection's.
        knows = self._encoder is not None and not isinstance(self._encoder, EmbeddingsEncoder)
        self.collection = ChromaCollection(
            collection_name,
            path=persist_directory,
            client=client_for(
                client,
                host,
                port,
                ssl=ssl,
                headers=headers,
                tenant=tenant,
                database=database,
                cloud_key=chroma_cloud_api_key,
            ),
            metric=metric,
            encoder_metric=self._encoder.metric if self._encoder is not None and knows else None,
            fingerprint=None if self._encoder is None else self._encoder.fingerprint,
            assume_compatible=assume_compatible,
            retry_seconds=retry_seconds,
            lock_timeout=lock_timeout,
            search_breadth=search_breadth,
        )
        tell_what_was_made(self.collection, unused)
        if self._encoder is not None:
            adopt_at_opening(self.collection, self._encoder)

    @property
    def embeddings(self) -> Embeddings | None:
        """The embeddings."""
        return self._embeddings

    @property
    def _collection(self) -> chromadb.Collection:
        # The incumbent's name for it, which its users' code reaches for.
        return self.collection.handle

    # Writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Iterable[str | None] | None = None,
        *,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Store texts.

        Args:
            texts: Any iterable.
            metadatas: One a text.
            ids: One a text; a text without one gets a random one. Of equal ids the last wins.
            batch_size: Texts embedded and written in one go. What was written stays if a later batch fails.
            **kwargs: None is known; an unknown one raises.

        Returns:
            The ids, in the order of the texts.

        Raises:
            InvalidInputError: If a text or its metadata cannot be stored, or the lists differ in length.
        """
        refuse(kwargs)
        encoder = self._needed_encoder()
        made: list[str] = []
        with told_once():
            for batch in self.collection.batches(new_records(texts, metadatas, ids, made), batch_size):
                plan = self.collection.plan(batch)
                if plan.records:
                    vectors = encoder.encode_documents([record.text for record in plan.records])
                    self.collection.write(plan.records, vectors)
                self.collection.relabel(plan.relabelled)
        return made

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Iterable[str | None] | None = None,
        *,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, in a thread; embedding blocks neither the event loop nor searches.

        Chroma itself holds Python's interpreter lock while it writes in this process, a fraction of a second for a
        thousand texts: every thread waits then. A smaller `batch_size` makes that shorter; a server takes it elsewhere.
        """
        refuse(kwargs)
        encoder = self._needed_encoder()
        made: list[str] = []
        arun = self.collection.worker.arun
        with told_once():
            limit = await arun(self.collection.batch_size, batch_size)  # which a server is asked for
            for batch in batches_of(new_records(texts, metadatas, ids, made), limit):
                plan = await arun(self.collection.plan, batch)
                if plan.records:
                    changed = [record.text for record in plan.records]
                    await arun(self.collection.write, plan.records, await aencode_documents(encoder, changed))
                await arun(self.collection.relabel, plan.relabelled)
        return made

    def update_document(self, document_id: str, document: Document) -> None:
        """Replace one document."""
        self.update_documents([document_id], [document])

    def update_documents(self, ids: list[str], documents: list[Document]) -> None:
        """Replace documents."""
        self.add_texts((document.page_content for document in documents), [doc.metadata for doc in documents], ids)

    def delete(self, ids: list[str] | None = None, *, where: Where | None = None, **kwargs: Any) -> bool | None:
        """Delete by id and/or by metadata filter; ids that are not stored are no error.

        Raises:
            InvalidInputError: If neither is given; `reset_collection` deletes everything.
        """
        refuse(kwargs)
        if ids is None and not where:
            raise InvalidInputError("delete() needs ids or where; to delete everything call reset_collection()")
        self.collection.delete(ids, where=where)
        return True

    async def adelete(self, ids: list[str] | None = None, *, where: Where | None = None, **kwargs: Any) -> bool | None:
        """As `delete`, in a thread; see `aadd_texts` for what blocks the event loop all the same."""
        return await self.collection.worker.arun(partial(self.delete, ids, where=where, **kwargs))

    def reset_collection(self) -> None:
        """Delete every document; the collection, its metric and its model stay."""
        self.collection.clear()

    def delete_collection(self) -> None:
        """Delete the collection itself. This object cannot be used afterwards."""
        self.collection.drop()

    # Reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents by id, in the order asked for; ids that are not stored are left out."""
        return [to_document(record) for record in self.collection.read(ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`, without blocking the event loop."""
        return [to_document(record) for record in await self.collection.aread(ids)]

    def get(
        self,
        ids: str | list[str] | None = None,
        where: Where | None = None,
        limit: int | None = None,
        offset: int | None = None,
        where_document: Where | None = None,
        include: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Return documents by id or filter, or all, as lists.

        Args:
            ids: One or more; None for all that fit the filters.
            where: Chroma's filter on metadata.
            limit: How many at most.
            offset: How many to leave out first.
            where_document: Chroma's filter on the text.
            include: Of "documents", "metadatas" and "embeddings"; the first two unless given.

        Returns:
            `ids`, `documents`, `metadatas`, and `embeddings`, an array (n, dimension); None for what is not included.
        """
        included = _KEPT if include is None else include
        if isinstance(included, str) or not set(included) <= {*_KEPT, "embeddings"}:
            raise InvalidInputError(
                f"include must be a list of 'documents', 'metadatas' and 'embeddings', got {include!r}"
            )
        wanted = [ids] if isinstance(ids, str) else ids
        records = self.collection.read(wanted, where=where, where_document=where_document, limit=limit, offset=offset)
        vectors = None
        if "embeddings" in included:
            stored = self.collection.vectors([record.id for record in records])
            records = [record for record in records if record.id in stored]  # not what was deleted in between
            vectors = np.array([stored[record.id] for record in records], np.float32)
        passages = [record.passage for record in records]
        return {
            "ids": [passage.id for passage in passages],
            "documents": [passage.text for passage in passages] if "documents" in included else None,
            "metadatas": [dict(passage.metadata) for passage in passages] if "metadatas" in included else None,
            "embeddings": vectors,
        }

    def check(self, *, samples: int | None = 100, show_progress: bool = False) -> IndexCheck:
        """Compare the stored documents with what searches return; see `ChromaIndex.check`."""
        return check(self.collection, self._encoder, samples=samples, show_progress=show_progress)

    def repair(self, *, samples: int | None = 1000, show_progress: bool = False) -> RepairReport:
        """Make every stored document one that queries find, once; see `ChromaIndex.repair`."""
        return repair(self.collection, self._needed_encoder(), samples=samples, show_progress=show_progress)

    # Making

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """Return LangChain's retriever over this store.

        Args:
            **kwargs: Its fields, such as `search_type`, `search_kwargs` and `tags`; and options of a search, such as
                `k` and `filter`, which go into its `search_kwargs`.
        """
        options = {name: kwargs.pop(name) for name in set(kwargs) - set(VectorStoreRetriever.model_fields)}
        refuse({name: value for name, value in options.items() if name not in _SEARCH_OPTIONS})
        search_kwargs = {**(kwargs.pop("search_kwargs", None) or {}), **options}
        return super().as_retriever(search_kwargs=search_kwargs, **kwargs)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Iterable[str | None] | None = None,
        *,
        collection_name: str = DEFAULT_NAME,
        persist_directory: str | os.PathLike[str] | None = None,
        client: ClientAPI | None = None,
        metric: Metric | None = None,
        assume_compatible: bool = False,
        host: str | None = None,
        port: int | str | None = None,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        tenant: str | None = None,
        database: str | None = None,
        chroma_cloud_api_key: str | None = None,
        collection_metadata: Mapping[str, Any] | None = None,
        collection_configuration: Mapping[str, Any] | None = None,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> ChromaVectorStore:
        """Return a store with texts in it; see the class and `add_texts` for the arguments."""
        refuse(kwargs)
        store = cls(
            collection_name,
            embedding,
            persist_directory,
            client,
            metric=metric,
            assume_compatible=assume_compatible,
            host=host,
            port=port,
            ssl=ssl,
            headers=headers,
            tenant=tenant,
            database=database,
            chroma_cloud_api_key=chroma_cloud_api_key,
            collection_metadata=collection_metadata,
            collection_configuration=collection_configuration,
            retry_seconds=retry_seconds,
            lock_timeout=lock_timeout,
            search_breadth=search_breadth,
        )
        store.add_texts(texts, metadatas, ids, batch_size=batch_size)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **kwargs: Any,
    ) -> ChromaVectorStore:
        """As `from_texts`, in a thread; see `aadd_texts` for what blocks the event loop all the same."""
        worker = Worker("retrieve-rerank store being made")
        try:
            return await worker.arun(partial(cls.from_texts, texts, embedding, metadatas, ids=ids, **kwargs))
        finally:
            worker.close()

    def close(self) -> None:
        """Release the collection. An in-memory one is gone; the embeddings are the caller's and stay."""
        self.collection.close()

    def __repr__(self) -> str:
        return f"ChromaVectorStore({self.collection.name!r}, {self.metric}, embeddings={self._encoder!r})"
