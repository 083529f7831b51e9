"""Chroma as a LangChain vector store, over the same collections as the rest of the package."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from typing_extensions import Never, Self, Unpack

from retrieve_rerank.checks import (
    check_choice,
    check_count,
    check_flag,
    check_mapping,
    check_queries,
    check_query,
    is_iterable,
)
from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, shown
from retrieve_rerank.indexes.chroma_server import RETRY_SECONDS
from retrieve_rerank.indexes.directory import one_spelling
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.health import adopt_at_opening, check, repair
from retrieve_rerank.indexes.nearest import Found, Vectors, check_diversity, check_vectors, diverse
from retrieve_rerank.indexes.reports import IndexCheck, RepairReport
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.langchain.compat import (
    DEFAULT_NAME,
    INSTEAD,
    StoreOptions,
    asked_space,
    client_for,
    refuse,
    tell_what_was_made,
)
from retrieve_rerank.langchain.convert import (
    EmbeddingsEncoder,
    checked_documents,
    new_records,
    to_document,
    to_encoder,
)
from retrieve_rerank.langchain.serialization import restorable
from retrieve_rerank.models.bi_encoder import one_truncation_warning
from retrieve_rerank.types import Encoder, Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI
    from chromadb.config import Settings

_SEARCH_OPTIONS = ("k", "filter", "where_document", "fetch_k", "lambda_mult", "score_threshold")
_KEPT = ("documents", "metadatas")  # what `get` returns unless told


@restorable
class ChromaVectorStore(VectorStore):
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
        client_settings: Of a client that is made for the directory, as if it were given as `client`.
        metric: "cosine", "dot" or "euclidean". None takes the model's, or that of a collection which is there, if both
            order its vectors alike.
        assume_compatible: Open a collection that was made by another model or metric all the same.
        create_collection_if_not_exists: Make the collection if there is none; False raises, as a name may be mistyped.
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
        relevance_score_fn: Makes a relevance in [0, 1] of Chroma's distance, for
            `similarity_search_with_relevance_scores` and what is built on it, instead of the metric's own.
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
        *,
        client: ClientAPI | None = None,
        client_settings: Settings | None = None,
        metric: Metric | None = None,
        assume_compatible: bool = False,
        create_collection_if_not_exists: bool = True,
        host: str | None = None,
        port: int | str | None = None,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        tenant: str | None = None,
        database: str | None = None,
        chroma_cloud_api_key: str | None = None,
        collection_metadata: Mapping[str, Any] | None = None,
        collection_configuration: Mapping[str, Any] | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
        **others: Never,
    ) -> None:
        refuse(others)
        space, unused = asked_space(collection_metadata, collection_configuration)
        self._embeddings = embedding_function
        self._relevance_score_fn = relevance_score_fn
        self._encoder: Encoder | None = None if embedding_function is None else to_encoder(embedding_function)
        # Embeddings that do not know their metric follow the collection's.
        knows = self._encoder is not None and not isinstance(self._encoder, EmbeddingsEncoder)
        may_make = check_flag(create_collection_if_not_exists, "create_collection_if_not_exists")
        if not may_make and persist_directory and not one_spelling(persist_directory).is_dir():
            raise InvalidInputError(f"there is no directory {os.fspath(persist_directory)!r}; check its spelling")
        server = client_for(
            client,
            host,
            port,
            ssl=ssl,
            headers=headers,
            tenant=tenant,
            database=database,
            cloud_key=chroma_cloud_api_key,
            settings=client_settings,
            folder=persist_directory,
        )
        self._is_deleted = False
        self.collection = ChromaCollection(
            collection_name,
            path=persist_directory if client_settings is None or server is None else None,
            client=server,
            metric=space if metric is None else metric,
            encoder_metric=self._encoder.metric if self._encoder is not None and knows else None,
            fingerprint=None if self._encoder is None else self._encoder.fingerprint,
            assume_compatible=assume_compatible,
            retry_seconds=retry_seconds,
            lock_timeout=lock_timeout,
            search_breadth=search_breadth,
        )
        if self.collection.made and not may_make:
            self.collection.drop()
            beside = ", ".join(map(repr, self.collection.beside)) or "none"
            raise InvalidInputError(
                f"collection {collection_name!r} does not exist, and create_collection_if_not_exists=False makes none; "
                f"there is {beside}"
            )
        tell_what_was_made(self.collection, unused)
        if self._encoder is not None:
            adopt_at_opening(self.collection, self._encoder)

    @property
    def embeddings(self) -> Embeddings | None:
        """The embeddings."""
        return self._embeddings

    @property
    def settings(self) -> dict[str, Any] | None:
        """The constructor's arguments that open this store again; None if it is in memory or a client's."""
        if self.collection.folder is None:
            return None
        return {
            "collection_name": self.collection.name,
            "persist_directory": self.collection.folder,
            "metric": self.metric,
            "assume_compatible": self.collection.assume_compatible,
            "search_breadth": self.collection.search_breadth,
            "lock_timeout": self.collection.lock_timeout,
            "embedding_function": self.embeddings,
        }

    def __getattr__(self, name: str) -> Any:
        instead = f": {INSTEAD[name]}" if name in INSTEAD else ""
        raise AttributeError(f"{type(self).__name__} has no {name!r}{instead}")

    @property
    def _collection(self) -> chromadb.Collection:
        # The incumbent's name for it, which its users' code reaches for; so is the next.
        if self._is_deleted:
            raise RetrieveRerankError("Chroma collection not initialized: it was deleted; make a new ChromaVectorStore")
        return self.collection.handle

    @property
    def _chroma_collection(self) -> chromadb.Collection | None:
        return None if self._is_deleted else self.collection.handle

    @property
    def _client(self) -> ClientAPI | None:
        return self.collection.client

    @property
    def metric(self) -> Metric:
        """What vectors are compared by."""
        return self.collection.metric

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the `k` documents nearest to a query, nearest first.

        Args:
            query: Not empty.
            k: How many at most.
            filter: Chroma's filter on metadata, such as `{"source": "atlas"}`. Numbers compare exactly. For a value
                from outside write `{"user": {"$eq": value}}`, which takes no operator.
            where_document: Chroma's filter on the text, such as `{"$contains": "France"}`.
            **kwargs: None is known; an unknown one raises.
        """
        return [
            document for document, _ in self.similarity_search_with_score(query, k, filter, where_document, **kwargs)
        ]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with Chroma's distance: smaller is nearer.

        For a similarity, larger is nearer, use `similarity_search_with_relevance_scores` or `ChromaRetriever`.
        """
        refuse(kwargs)
        return _with_distance(self._found(self._embed(query), k, filter, where_document), self.metric)

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return the `k` documents nearest to a vector, nearest first."""
        return [
            document
            for document, _ in self.similarity_search_by_vector_with_relevance_scores(
                embedding, k, filter, where_document, **kwargs
            )
        ]

    def similarity_search_by_vector_with_relevance_scores(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, for a vector: what langchain-chroma calls so returns distances, too."""
        refuse(kwargs)
        return _with_distance(self._found([embedding], k, filter, where_document), self.metric)

    def similarity_search_with_vectors(
        self,
        query: str,
        k: int = 4,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, Vectors]]:
        """As `similarity_search`, each document with its stored vector, an array (dimension,)."""
        refuse(kwargs)
        found = self._found(self._embed(query), k, filter, where_document, with_vectors=True)
        return [(to_document(item.record), cast(Vectors, item.vector)) for item in found]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Return documents that are near to a query and unlike one another, in the order in which they were chosen.

        Args:
            query: Not empty.
            k: How many at most.
            fetch_k: How many nearest documents to choose from.
            lambda_mult: 1 looks at nearness only, 0 at diversity only. Both are by the cosine, as in LangChain.
            filter: Chroma's filter on metadata.
            where_document: Chroma's filter on the text.
            **kwargs: None is known; an unknown one raises.
        """
        vector = self._embed(query)[0].tolist()
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter, where_document, **kwargs
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where | None = None,
        where_document: Where | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        refuse(kwargs)
        k = check_count(k, "k")
        check_diversity(lambda_mult, "lambda_mult")
        vector = check_vectors([embedding], 1)
        found = self._found(vector, fetch_k, filter, where_document, with_vectors=True)
        # By the cosine, whatever the collection's metric: what LangChain's stores do.
        return [to_document(item.record) for item in diverse(found, k, lambda_mult, "cosine", vector[0])]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._relevance_score_fn is not None:
            return self._relevance_score_fn

        def relevance(distance: float) -> float:
            similarity = self.collection.similarity(distance)
            if self.metric == "dot":  # unbounded: squeezed, in order, around one half
                return (1.0 + similarity / (1.0 + abs(similarity))) / 2.0
            return min(1.0, max(0.0, similarity))

        return relevance

    def _needed_encoder(self) -> Encoder:
        if self._encoder is None:
            raise InvalidInputError(
                "this store has no embeddings, and the call needs them; make it with embedding_function=, such as "
                "BiEncoderEmbeddings()"
            )
        return self._encoder

    def embed_queries(self, queries: Sequence[str]) -> Vectors:
        """Return an array (len(queries), dimension)."""
        return self._needed_encoder().encode_queries(check_queries(queries))

    async def aembed_queries(self, queries: Sequence[str]) -> Vectors:
        """As `embed_queries`, without blocking the event loop."""
        aencode = getattr(self._needed_encoder(), "aencode_queries", None)
        if aencode is None:
            return await self.collection.worker.arun(self.embed_queries, queries)
        vectors: Vectors = await aencode(check_queries(queries))
        return vectors

    def _embed(self, query: str) -> Vectors:
        return self.embed_queries([check_query(query)])

    def _found(
        self,
        vectors: Vectors | list[list[float]],
        k: int,
        where: Where | None,
        where_document: Where | None,
        *,
        with_vectors: bool = False,
    ) -> list[Found]:
        found = self.collection.query(vectors, k, where=where, where_document=where_document, with_vectors=with_vectors)
        return found[0]

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
        with one_truncation_warning():
            for batch in self.collection.batches(new_records(texts, metadatas, ids, made), batch_size):
                self.collection.upsert(batch, encoder.encode_documents)
        return made

    def update_document(self, document_id: str, document: Document) -> None:
        """Replace one document."""
        self.update_documents([document_id], [document])

    def update_documents(self, ids: list[str], documents: list[Document]) -> None:
        """Replace documents."""
        checked = checked_documents(documents)
        self.add_texts([document.page_content for document in checked], [each.metadata for each in checked], ids)

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

    def reset_collection(self) -> None:
        """Delete every document; the collection, its metric and its model stay."""
        self.collection.clear()

    def delete_collection(self) -> None:
        """Delete the collection itself. This object cannot be used afterwards."""
        self.collection.drop()
        self._is_deleted = True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return documents by id, in the order asked for; ids that are not stored are left out."""
        return [to_document(record) for record in self.collection.read(ids)]

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
        known = (*_KEPT, "embeddings")
        if (
            not is_iterable(included)
            or isinstance(included, str)
            or not all(isinstance(one, str) and one in known for one in included)
        ):
            raise InvalidInputError(
                f"include must be a list of 'documents', 'metadatas' and 'embeddings', got {shown(include)}"
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

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """Return LangChain's retriever over this store.

        Args:
            **kwargs: Its fields, such as `search_type`, `search_kwargs` and `tags`; and options of a search, such as
                `k` and `filter`, which go into its `search_kwargs`.
        """
        options = {name: kwargs.pop(name) for name in set(kwargs) - set(VectorStoreRetriever.model_fields)}
        refuse({name: value for name, value in options.items() if name not in _SEARCH_OPTIONS})
        check_choice(kwargs.get("search_type", "similarity"), VectorStoreRetriever.allowed_search_types, "search_type")
        search_kwargs = {**check_mapping(kwargs.pop("search_kwargs", None), "search_kwargs"), **options}
        return super().as_retriever(search_kwargs=search_kwargs, **kwargs)

    @classmethod
    def from_texts(  # type: ignore[override]
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Iterable[str | None] | None = None,
        *,
        batch_size: int | None = None,
        **options: Unpack[StoreOptions],
    ) -> Self:
        """Return a store with texts in it; see the class and `add_texts` for the arguments."""
        store = cls(embedding_function=embedding, **options)
        store.add_texts(texts, metadatas, ids, batch_size=batch_size)
        return store

    def close(self) -> None:
        """Release the collection. An in-memory one is gone; the embeddings are the caller's and stay."""
        self.collection.close()

    def __repr__(self) -> str:
        return f"ChromaVectorStore({self.collection.name!r}, {self.metric}, embeddings={self._encoder!r})"


def _with_distance(found: list[Found], metric: Metric) -> list[tuple[Document, float]]:
    # Chroma's rounding makes some a little less than nothing; a dot product may be anything.
    least = -math.inf if metric == "dot" else 0.0
    return [(to_document(item.record), max(least, item.distance)) for item in found]
