"""A Chroma collection as LlamaIndex's vector store."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, ImageNode, IndexNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from retrieve_rerank.checks import check_count, is_iterable, number_of
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.chroma_server import RETRY_SECONDS
from retrieve_rerank.indexes.client import connect
from retrieve_rerank.indexes.health import adopt_at_opening, check, prove, repair
from retrieve_rerank.indexes.identity import Identity, check_identity, needs_proof
from retrieve_rerank.indexes.nearest import PREFETCH_FACTOR, Found, check_diversity, diverse, to_array
from retrieve_rerank.indexes.records import check_ids
from retrieve_rerank.indexes.reports import IndexCheck, RepairReport
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.llama_index.compat import asked_metric
from retrieve_rerank.llama_index.convert import (
    DOCUMENT_KEY,
    NO_DOCUMENT,
    TYPE_KEY,
    check_document_id,
    check_nodes,
    node_to_record,
    record_to_node,
    vectors_of,
)
from retrieve_rerank.llama_index.embeddings import BiEncoderEmbedding
from retrieve_rerank.llama_index.filters import Condition, to_condition
from retrieve_rerank.llama_index.serialization import Restorable
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    import chromadb
    from chromadb.api import ClientAPI

T = TypeVar("T")

_KEPT_BY_INDEX: Any = {TYPE_KEY: {"$in": [ImageNode.class_name(), IndexNode.class_name()]}}
_OPTIONS = ("where", "where_document", "mmr_threshold", "mmr_prefetch_factor", "mmr_prefetch_k")


def _in_thread(method: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Return a method's async twin, which runs on the thread of the store's collection."""

    @wraps(method)
    async def twin(self: ChromaVectorStore, *args: Any, **kwargs: Any) -> T:
        return await self._collection.worker.arun(method, self, *args, **kwargs)

    twin.__doc__ = f"As `{method.__name__}`, in a thread."
    return twin


class ChromaVectorStore(BasePydanticVectorStore, Restorable):
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
        chroma_collection: A live collection, instead of what is below it.
        collection_name: Name of the collection; it is made if missing.
        persist_dir: Directory of a persistent store; it is made if missing. One process at a time may write it.
        host: Name of a Chroma server, instead of a `client`.
        port: Its port.
        ssl: Whether to speak HTTPS with it.
        headers: HTTP headers for it, such as those of its authentication. They are not kept beside the client.
        collection_kwargs: The incumbent's way to give a metric: `{"metadata": {"hnsw:space": "cosine"}}` or
            `{"configuration": {"hnsw": {"space": "cosine"}}}`. Nothing else is taken from it, which a warning says.
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
        host: str | None = None,
        port: int | str | None = None,
        ssl: bool = False,
        headers: dict[str, str] | None = None,
        collection_kwargs: Mapping[str, Any] | None = None,
        client: ClientAPI | None = None,
        metric: Metric | None = None,
        embed_model: BaseEmbedding | None = None,
        assume_compatible: bool = False,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
    ) -> None:
        if chroma_collection is not None:
            _check_collection(chroma_collection)
        if sum(given is not None for given in (chroma_collection, persist_dir, host, client)) > 1:
            raise InvalidInputError("give either chroma_collection, persist_dir, host or client, not several")
        if host is not None:
            client = connect(host, 8000 if port is None else port, ssl=ssl, headers=headers)
        elif port is not None or ssl or headers:
            raise InvalidInputError("port, ssl and headers are a server's: give host, too")
        metric = asked_metric(collection_kwargs, metric)
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
        collection_kwargs: Mapping[str, Any] | None = None,
    ) -> ChromaVectorStore:
        """Return a store in a directory or on a Chroma server.

        Raises:
            InvalidInputError: If neither is given, or both.
            RemoteError: If the server cannot be reached.
        """
        if (persist_dir is None) == (host is None or port is None):
            raise InvalidInputError("give either persist_dir, or host and port")
        return cls(
            collection_name=collection_name,
            persist_dir=persist_dir,
            host=host,
            port=port,
            ssl=ssl,
            headers=headers,
            collection_kwargs=collection_kwargs,
        )

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

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a source document; that there are none is no error.

        A document that was stored whole, not split into nodes, is its own source.
        """
        check_document_id(ref_doc_id)
        self._collection.delete(where={DOCUMENT_KEY: ref_doc_id})
        self._collection.delete([ref_doc_id], where={DOCUMENT_KEY: NO_DOCUMENT})

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

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return nodes by id, in the order asked for, and/or by filter, or all; ids not stored are left out."""
        condition = to_condition(filters)
        found = self._collection.read(node_ids, where=condition.where, where_document=condition.where_document)
        return [record_to_node(record) for record in found]

    def clear(self) -> None:
        """Delete every node; the collection, its metric and its encoder stay."""
        self._collection.clear()

    # Chroma holds Python's interpreter lock while it writes in this process, a fraction of a second for a thousand
    # nodes: every thread waits then, and so does the event loop. A server takes it elsewhere.
    async_add = _in_thread(add)
    adelete = _in_thread(delete)
    adelete_nodes = _in_thread(delete_nodes)
    aget_nodes = _in_thread(get_nodes)
    aclear = _in_thread(clear)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes nearest to an embedding; see the class for modes, filters and options.

        A query with filters and without an embedding finds nodes that pass them, in no order and without similarities.

        Raises:
            InvalidInputError: If there is neither an embedding nor a filter, or the mode, a filter or an option cannot
                be used.
        """
        return self._search(_read_request(query, kwargs))[0]

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, without blocking the event loop."""
        return (await self._asearch(_read_request(query, kwargs)))[0]

    def query_many(
        self, embeddings: Sequence[Sequence[float]], query: VectorStoreQuery, **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """Find the nodes nearest to each embedding, all in one search; `query` says everything else, as in `query`."""
        vectors = [list(embedding) for embedding in embeddings]
        return self._search(_read_request(query, kwargs, vectors)) if vectors else []

    async def aquery_many(
        self, embeddings: Sequence[Sequence[float]], query: VectorStoreQuery, **kwargs: Any
    ) -> list[VectorStoreQueryResult]:
        """As `query_many`, without blocking the event loop."""
        vectors = [list(embedding) for embedding in embeddings]
        return await self._asearch(_read_request(query, kwargs, vectors)) if vectors else []

    def check(
        self, embed_model: BaseEmbedding | None = None, *, samples: int | None = 100, show_progress: bool = False
    ) -> IndexCheck:
        """Compare the stored nodes with what queries return; see `ChromaIndex.check`.

        Args:
            embed_model: What embedded the nodes, instead of the store's own; without either, no samples are compared.
            samples: How many nodes, evenly spread, to embed again and compare with their stored vectors; None is all.
            show_progress: Show a bar on stderr.
        """
        model = embed_model or self.embed_model
        encoder = None if model is None else _Encoder(model)
        return check(self._collection, encoder, samples=samples, show_progress=show_progress)

    def repair(
        self, embed_model: BaseEmbedding | None = None, *, samples: int | None = 1000, show_progress: bool = False
    ) -> RepairReport:
        """Make every stored node one that queries find, once; see `ChromaIndex.repair`, and `check` for the arguments.

        Raises:
            InvalidInputError: If neither the store nor the call has an embedding model.
        """
        model = embed_model or self.embed_model
        if model is None:
            raise InvalidInputError("repair needs the embedding model that embedded the nodes: repair(embed_model)")
        return repair(self._collection, _Encoder(model), samples=samples, show_progress=show_progress)

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
            self._collection.upsert_vectors(batch, vectors[[row[record.id] for record in batch]])

    def _search(self, request: _Request) -> list[VectorStoreQueryResult]:
        ids = self._restriction(request.node_ids)
        if request.vectors is None:
            return [self._matching(request, ids)]
        found = self._collection.query(request.vectors, request.fetch, ids=ids, **request.options())
        return self._results(request, found)

    async def _asearch(self, request: _Request) -> list[VectorStoreQueryResult]:
        return await self._collection.arun(self._search, request)

    def _restriction(self, node_ids: Sequence[str] | None) -> Sequence[str] | None:
        """Return the ids that a query is restricted to.

        VectorStoreIndex sends the ids of the nodes that it keeps itself. With a store that keeps the text these are the
        image and index nodes only, and a restriction to them would lose all others. A list of all of them, and of no
        other node, is therefore taken as its list, not as a wish.
        """
        if node_ids is None:
            return None
        kept = set(self._collection.ids(where=_KEPT_BY_INDEX))
        if not kept or not kept <= set(node_ids):
            return node_ids
        # The index never forgets a node that was deleted: ids that are not stored say nothing.
        return node_ids if self._collection.read(sorted(set(node_ids) - kept)) else None

    def _matching(self, request: _Request, ids: Sequence[str] | None) -> VectorStoreQueryResult:
        condition = request.condition
        found = self._collection.read(
            ids, where=condition.where, where_document=condition.where_document, limit=None if ids else request.k
        )[: request.k]
        return VectorStoreQueryResult(nodes=list(map(record_to_node, found)), ids=[record.id for record in found])

    def _results(self, request: _Request, found: list[list[Found]]) -> list[VectorStoreQueryResult]:
        if request.diversity is not None:
            found = [diverse(items, request.k, request.diversity, self._collection.metric) for items in found]
        return [
            VectorStoreQueryResult(
                nodes=[record_to_node(item.record) for item in items],
                similarities=[self._collection.similarity(item.distance) for item in items],
                ids=[item.record.id for item in items],
            )
            for items in found
        ]


@dataclass(frozen=True, slots=True)
class _Request:
    """A checked query.

    Attributes:
        vectors: (queries, dimension); None finds what passes the condition.
        k: How many nodes to return.
        condition: What they must pass.
        node_ids: What they must be among; None is no restriction.
        fetch: How many to fetch: more than `k` where the most diverse of them are chosen.
        diversity: Weight of relevance against novelty in [0, 1]; None ranks by relevance alone.
    """

    vectors: npt.NDArray[np.float32] | None
    k: int
    condition: Condition
    node_ids: Sequence[str] | None
    fetch: int
    diversity: float | None

    def options(self) -> dict[str, Any]:
        """Return what a collection's query takes beside the vectors, their number and the ids."""
        return {
            "where": self.condition.where,
            "where_document": self.condition.where_document,
            "with_vectors": self.diversity is not None,
        }


def _read_request(
    query: VectorStoreQuery, options: Mapping[str, Any], embeddings: Sequence[Sequence[float]] | None = None
) -> _Request:
    """Check a query and the keyword options that came with it.

    Args:
        query: What is asked for.
        options: The keyword options.
        embeddings: What to ask it for, all at once, instead of the query's own embedding.

    Raises:
        InvalidInputError: If something is missing, unknown or cannot be done.
    """
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise InvalidInputError(f"unknown query option {', '.join(unknown)}; there are {', '.join(_OPTIONS)}")
    if not isinstance(query, VectorStoreQuery):
        raise InvalidInputError(f"query must be a VectorStoreQuery, got {shown(query)}")
    if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        raise InvalidInputError(
            f"this store cannot search in mode {shown(query.mode)}, only in 'default' and 'mmr': it holds one dense "
            "vector a node"
        )
    k = check_count(query.similarity_top_k, "similarity_top_k")
    condition = to_condition(query.filters).both(Condition(options.get("where"), options.get("where_document")))
    doc_ids = [] if query.doc_ids is None else check_ids(query.doc_ids)
    if doc_ids:
        condition = condition.both(Condition({DOCUMENT_KEY: {"$in": doc_ids}}))
    # VectorStoreIndex passes an empty list where it has no restriction.
    node_ids = (None if query.node_ids is None else check_ids(query.node_ids)) or None
    given = query.query_embedding
    if (
        embeddings is None
        and given is not None
        and not (isinstance(given, Sized) and is_iterable(given) and len(given) == 0)
    ):
        embeddings = [given]
    if embeddings is None and condition == Condition():
        raise InvalidInputError(
            "the query has no embedding and no filters: it is empty, or was not embedded; give "
            "VectorStoreQuery(query_embedding=…)"
        )
    vectors = None if embeddings is None else to_array(embeddings, "the numbers of the query's embedding")
    diversity, fetch = None, k
    if query.mode is VectorStoreQueryMode.MMR:
        threshold = options.get("mmr_threshold")
        threshold = query.mmr_threshold if threshold is None else threshold
        diversity = 0.5 if threshold is None else check_diversity(threshold, "mmr_threshold")
        fetch = _prefetch(k, options)
    return _Request(vectors, k, condition, node_ids, fetch, diversity)


def _prefetch(k: int, options: Mapping[str, Any]) -> int:
    factor, count = options.get("mmr_prefetch_factor"), options.get("mmr_prefetch_k")
    if factor is not None and count is not None:
        raise InvalidInputError("give mmr_prefetch_factor or mmr_prefetch_k, not both")
    if count is not None:
        return max(k, check_count(count, "mmr_prefetch_k"))
    if factor is None:
        factor = PREFETCH_FACTOR
    if not 1 <= number_of(factor) < math.inf:
        raise InvalidInputError(f"mmr_prefetch_factor must be a number >= 1, got {shown(factor)}")
    return min(int(k * number_of(factor)), sys.maxsize)


def _check_collection(collection: object) -> None:
    import chromadb  # takes longer to import than a framework

    if not isinstance(collection, chromadb.Collection):
        raise InvalidInputError(
            f"chroma_collection must be a chromadb.Collection, got {type(collection).__name__}; make one with "
            "client.get_or_create_collection(name), or give collection_name and persist_dir"
        )


class _Encoder:
    """An embedding model of LlamaIndex as what the core checks and repairs with."""

    def __init__(self, model: BaseEmbedding) -> None:
        self._model = model

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return an array (len(texts), dimension)."""
        return np.asarray(self._model.get_text_embedding_batch(list(texts)), np.float32)
