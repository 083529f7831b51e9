"""A Chroma collection as LlamaIndex's vector store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.adoption import adopt_at_opening, prove
from retrieve_rerank.indexes.client import connect
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.fingerprint import Identity, check_identity, needs_proof
from retrieve_rerank.indexes.mmr import diverse
from retrieve_rerank.indexes.nearest import Found
from retrieve_rerank.indexes.server import RETRY_SECONDS
from retrieve_rerank.llama_index._convert import (
    DOCUMENT_KEY,
    NO_DOCUMENT,
    check_nodes,
    node_to_record,
    record_to_node,
    vectors_of,
)
from retrieve_rerank.llama_index._filters import to_condition
from retrieve_rerank.llama_index._health import Healthy
from retrieve_rerank.llama_index._opening import check_collection
from retrieve_rerank.llama_index._query import Request, read_request, restriction
from retrieve_rerank.llama_index._travel import Travelling
from retrieve_rerank.llama_index.embeddings import BiEncoderEmbedding
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI


class ChromaVectorStore(BasePydanticVectorStore, Healthy, Travelling):
    """Nodes in a Chroma collection.

    Adding a node whose id is stored replaces it, text, vector and metadata. The async methods run on a thread of the
    collection's own. What is stored is LlamaIndex's standard layout: other stores of LlamaIndex read it, and
    `ChromaIndex` and the LangChain store of this package see the same ids, texts and user metadata.

    `query` returns similarities, larger is better: the cosine similarity, the dot product, or 1 / (1 + distance),
    by the collection's metric. Modes are DEFAULT and MMR. Keyword options of `query` (`vector_store_kwargs` of an
    index's retriever): `where` and `where_document`, Chroma's own filters, and for MMR `mmr_threshold`,
    `mmr_prefetch_factor`, `mmr_prefetch_k`.

    Filters: ==, !=, in, nin; >, >=, <, <= on numbers; contains, any and all on list-valued metadata; text_match,
    text_match_insensitive and contains on the key "#document", which is the node's text; and, or, not, nested. != and
    nin also find nodes that lack the key. is_empty, substrings of metadata and the negation of >, >=, <, <= are beyond
    Chroma and raise.

    Args:
        chroma_collection: A live collection, instead of the four below it.
        collection_name: Name of the collection; it is made if missing.
        persist_dir: Directory of a persistent store; it is made if missing. One process at a time may write it.
        client: A Chroma client: `chromadb.HttpClient`, `CloudClient`, or an awaited `AsyncHttpClient`. Any number of
            processes may write to a server. None of these: in memory, private to this object.
        metric: "cosine", "dot" or "euclidean"; None takes the embedding model's, else cosine, or that of a collection
            which is there, if both order its vectors alike. After opening it is the collection's.
        embed_model: The model that embeds the nodes. A `BiEncoderEmbedding` gives the metric, and the collection
            carries its fingerprint and refuses another; of other models nothing is known.
        assume_compatible: Open a collection that was made by another encoder or metric all the same.
        retry_seconds: For how long a request that a server does not answer is repeated, in every call; 0 asks once.
        lock_timeout: Seconds to wait, at the first write, while another process writes the directory.
        search_breadth: How many neighbours a search keeps on its way through the vectors; see `ChromaIndex`.

    Raises:
        InvalidInputError: If an argument cannot be used.
        IndexLockedError: If another process writes the directory: at the first write, which may be the making of the
            collection. The lock is held until `close`, or until the process ends. Reading needs none.
        IndexMismatchError: If the collection was made by another encoder or with another metric.
        RemoteError: If a server does not answer for `retry_seconds`, or refuses the credentials; so does every method.

    Example:
        >>> from llama_index.core import VectorStoreIndex
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaVectorStore
        >>> embed_model = BiEncoderEmbedding(bi_encoder_path)
        >>> store = ChromaVectorStore(embed_model=embed_model)
        >>> index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        >>> index.insert_nodes([TextNode(text="Paris is the capital of France."), TextNode(text="Bread is baked.")])
        >>> index.as_retriever(similarity_top_k=1).retrieve("capital of France")[0].text
        'Paris is the capital of France.'
    """

    stores_text: bool = Field(default=True, frozen=True, exclude=True)
    is_embedding_query: bool = Field(default=True, frozen=True, exclude=True)
    collection_name: str
    persist_dir: str | None = None
    metric: Metric = "cosine"
    assume_compatible: bool = False
    embed_model: BaseEmbedding | None = Field(default=None, exclude=True, repr=False)

    _collection: ChromaCollection = PrivateAttr()
    _metric_given: bool = PrivateAttr()

    def __init__(
        self,
        chroma_collection: chromadb.Collection | None = None,
        collection_name: str = "passages",
        *,
        persist_dir: str | os.PathLike[str] | None = None,
        client: ClientAPI | None = None,
        metric: Metric | None = None,
        embed_model: BaseEmbedding | None = None,
        assume_compatible: bool = False,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
    ) -> None:
        if chroma_collection is not None:
            check_collection(chroma_collection)
            if persist_dir is not None or client is not None:
                raise InvalidInputError("give either chroma_collection, or persist_dir or client, not both")
        if embed_model is not None and not isinstance(embed_model, BaseEmbedding):
            raise InvalidInputError(f"embed_model must be a LlamaIndex embedding, got {type(embed_model).__name__}")
        encoder = embed_model.encoder if isinstance(embed_model, BiEncoderEmbedding) else None
        collection = ChromaCollection(
            collection_name,
            path=persist_dir,
            client=client,
            metric=metric,
            encoder_metric=encoder.metric if encoder else None,
            fingerprint=encoder.fingerprint if encoder else None,
            assume_compatible=assume_compatible,
            handle=chroma_collection,
            retry_seconds=retry_seconds,
            lock_timeout=lock_timeout,
            search_breadth=search_breadth,
        )
        if encoder is not None:
            adopt_at_opening(collection, encoder)
        fields: dict[str, Any] = {
            "collection_name": collection.name,
            "persist_dir": None if persist_dir is None else os.fspath(persist_dir),
            "metric": collection.metric,
            "assume_compatible": assume_compatible,
            "embed_model": embed_model,
        }
        super().__init__(**fields)
        self._collection = collection
        self._metric_given = metric is not None

    @classmethod
    def class_name(cls) -> str:
        return "ChromaVectorStore"

    @classmethod
    def from_collection(cls, collection: chromadb.Collection) -> ChromaVectorStore:
        """Return a store on a live collection."""
        return cls(chroma_collection=collection)

    @classmethod
    def from_params(
        cls,
        collection_name: str = "passages",
        *,
        host: str | None = None,
        port: int | str | None = None,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        persist_dir: str | os.PathLike[str] | None = None,
    ) -> ChromaVectorStore:
        """Return a store in a directory or on a Chroma server.

        Raises:
            InvalidInputError: If neither is given, or both.
            RemoteError: If the server cannot be reached.
        """
        if (persist_dir is None) == (host is None or port is None):
            raise InvalidInputError("give either persist_dir, or host and port")
        if persist_dir is not None:
            return cls(collection_name=collection_name, persist_dir=persist_dir)
        return cls(collection_name=collection_name, client=connect(str(host), str(port), ssl=ssl, headers=headers))

    @property
    def client(self) -> chromadb.Collection:
        """The Chroma collection."""
        return self._collection.handle

    def check_embed_model(self, embed_model: BaseEmbedding) -> None:
        """Raise IndexMismatchError if `embed_model` is a `BiEncoderEmbedding` that does not fit the collection.

        A metric that was asked for when the store was opened is not compared with the model's.
        """
        if not isinstance(embed_model, BiEncoderEmbedding) or self.assume_compatible:
            return
        handle, encoder = self._collection.handle, embed_model.encoder
        found = Identity.read(handle.configuration_json, handle.metadata)
        check_identity(self._collection.name, found, None, encoder.fingerprint)
        if not self._metric_given:
            self._collection.check_suits(encoder.metric)
        if needs_proof(found.fingerprint, encoder.fingerprint):
            prove(self._collection, encoder)

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Store nodes with their embeddings; nodes whose ids are stored are replaced, of equal ids the last wins.

        Returns:
            The ids, one for each of `nodes`.

        Raises:
            InvalidInputError: If a node has no embedding or cannot be stored; nothing is written then.
            IndexMismatchError: If the embeddings are of another length than the collection's.
        """
        items = check_nodes(nodes)
        if items:
            self._write(items)
        return [node.node_id for node in items]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`, in a thread.

        Chroma holds Python's interpreter lock while it writes in this process, a fraction of a second for a thousand
        nodes: every thread waits then, and so does the event loop. A server takes it elsewhere.
        """
        return await self._collection.worker.arun(self.add, nodes)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a source document; that there are none is no error.

        A document that was stored whole, not split into nodes, is its own source.
        """
        if not isinstance(ref_doc_id, str) or not ref_doc_id or ref_doc_id == NO_DOCUMENT:
            raise InvalidInputError(
                f"ref_doc_id must be the id of a document, got {ref_doc_id!r} ({NO_DOCUMENT!r} marks nodes without one)"
            )
        self._collection.delete(where={DOCUMENT_KEY: ref_doc_id})
        self._collection.delete([ref_doc_id], where={DOCUMENT_KEY: NO_DOCUMENT})

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`, in a thread; see `async_add` for what blocks the event loop all the same."""
        await self._collection.worker.arun(self.delete, ref_doc_id)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by id and/or filter; both given, those that fit both. Ids that are not stored are no error.

        Raises:
            InvalidInputError: If neither is given; `clear` deletes everything.
        """
        condition = to_condition(filters)
        if node_ids is None and condition.where is None and condition.where_document is None:
            raise InvalidInputError("give node_ids or filters; to delete every node, use clear()")
        if condition.where_document is not None:
            found = self._collection.read(node_ids, where=condition.where, where_document=condition.where_document)
            self._collection.delete([record.id for record in found])
        else:
            self._collection.delete(node_ids, where=condition.where)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """As `delete_nodes`, in a thread; see `async_add` for what blocks the event loop all the same."""
        await self._collection.worker.arun(self.delete_nodes, node_ids, filters)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return nodes by id, in the order asked for, and/or by filter, or all; ids not stored are left out."""
        condition = to_condition(filters)
        found = self._collection.read(node_ids, where=condition.where, where_document=condition.where_document)
        return [record_to_node(record) for record in found]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, without blocking the event loop."""
        condition = to_condition(filters)
        if node_ids is None:
            return await self._collection.worker.arun(self.get_nodes, node_ids, filters)
        found = await self._collection.aread(node_ids, where=condition.where, where_document=condition.where_document)
        return [record_to_node(record) for record in found]

    def clear(self) -> None:
        """Delete every node; the collection, its metric and its encoder stay."""
        self._collection.clear()

    async def aclear(self) -> None:
        """As `clear`, in a thread; see `async_add` for what blocks the event loop all the same."""
        await self._collection.worker.arun(self.clear)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes nearest to an embedding; see the class for modes, filters and options.

        Raises:
            InvalidInputError: If there is no embedding, or the mode, a filter or an option cannot be used.
        """
        return self._search(read_request(query, kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, without blocking the event loop."""
        request = read_request(query, kwargs)
        return (await self._asearch_many(request, request.vector[np.newaxis]))[0]

    def query_many(
        self, embeddings: Sequence[Sequence[float]], query: VectorStoreQuery, **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """Find the nodes nearest to each embedding, all in one search; `query` says everything else, as in `query`."""
        vectors = [list(embedding) for embedding in embeddings]
        if not vectors:
            return []
        return self._search_many(read_request(replace(query, query_embedding=vectors[0]), kwargs), vectors)

    async def aquery_many(
        self, embeddings: Sequence[Sequence[float]], query: VectorStoreQuery, **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """As `query_many`, without blocking the event loop."""
        vectors = [list(embedding) for embedding in embeddings]
        if not vectors:
            return []
        return await self._asearch_many(read_request(replace(query, query_embedding=vectors[0]), kwargs), vectors)

    def close(self) -> None:
        """Release the collection. An in-memory one that this object made is gone."""
        self._collection.close()

    def __getstate__(self) -> dict[str, Any]:
        self._collection.__reduce__()  # raises where there is no directory; the base class would leave it out
        return super().__getstate__()

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` makes a store of.

        Raises:
            InvalidInputError: If there is no directory: what is read back would be another store, and empty.
        """
        self._collection.__reduce__()
        written: dict[str, Any] = super().to_dict(**kwargs)
        return written

    def _write(self, nodes: list[BaseNode]) -> None:
        distinct = list({node.node_id: node for node in nodes}.values())
        # Everything is checked before anything is written.
        vectors = vectors_of(distinct)
        records = [node_to_record(node) for node in distinct]
        row = {record.id: position for position, record in enumerate(records)}
        for batch in self._collection.batches(records):
            plan = self._collection.plan(batch)
            # Of a record whose text has not changed, the vector may have: it was made of the metadata, too.
            kept = {record.id for record in batch} - {record.id for record in plan.records}
            kept = self._collection.holding({id_: vectors[row[id_]] for id_ in kept})
            changed = [record for record in batch if record.id not in kept]
            self._collection.write(changed, vectors[[row[record.id] for record in changed]])
            self._collection.relabel([record for record in plan.relabelled if record.id in kept])

    def _search(self, request: Request) -> VectorStoreQueryResult:
        return self._search_many(request, request.vector[np.newaxis])[0]

    def _search_many(self, request: Request, vectors: npt.ArrayLike) -> list[VectorStoreQueryResult]:
        ids = restriction(self._collection, request.node_ids)
        return self._results(request, self._collection.query(vectors, request.fetch, ids=ids, **_options(request)))

    async def _asearch_many(self, request: Request, vectors: npt.ArrayLike) -> list[VectorStoreQueryResult]:
        arun = self._collection.worker.arun
        ids = None if request.node_ids is None else await arun(restriction, self._collection, request.node_ids)
        found = await self._collection.aquery(vectors, request.fetch, ids=ids, **_options(request))
        if request.diversity is None:
            return self._results(request, found)
        return await arun(self._results, request, found)

    def _results(self, request: Request, found: list[list[Found]]) -> list[VectorStoreQueryResult]:
        if request.diversity is not None:
            found = [diverse(self._collection, items, request.k, request.diversity) for items in found]
        return [
            VectorStoreQueryResult(
                nodes=[record_to_node(item.record) for item in items],
                similarities=[self._collection.similarity(item.distance) for item in items],
                ids=[item.record.id for item in items],
            )
            for items in found
        ]


def _options(request: Request) -> dict[str, Any]:
    return {
        "where": request.condition.where,
        "where_document": request.condition.where_document,
        "with_vectors": request.diversity is not None,
    }
