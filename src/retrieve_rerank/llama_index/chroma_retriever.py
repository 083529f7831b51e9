"""The dense first stage as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from retrieve_rerank.checks import check_count, check_queries, check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.mmr import check_diversity
from retrieve_rerank.llama_index._filters import to_condition
from retrieve_rerank.llama_index.embeddings import BiEncoderEmbedding
from retrieve_rerank.llama_index.vector_store import ChromaVectorStore


class ChromaRetriever(BaseRetriever):
    """The dense first stage: the nodes of a `ChromaVectorStore` that are nearest to a query.

    Needs no index and no LLM.

    Args:
        vector_store: Where the nodes are.
        embed_model: Embeds the query; None takes the store's.
        similarity_top_k: How many nodes at most.
        filters: What the nodes must pass; see `ChromaVectorStore`.
        mmr_threshold: Find nodes that are near to the query and unlike one another, by maximal marginal relevance: the
            weight of nearness against novelty in [0, 1]. The order is that in which they were chosen. None looks at
            nearness only.
        mmr_prefetch_k: How many of the nearest to choose from, where `mmr_threshold` is given; None is 4 *
            `similarity_top_k`.
        callback_manager: LlamaIndex's callbacks.
        objects: Index nodes whose objects are searched in turn when they are found.
        verbose: Whether LlamaIndex prints which of these it enters.

    Raises:
        InvalidInputError: If an argument cannot be used.
        IndexMismatchError: If `embed_model` is a `BiEncoderEmbedding` that does not fit the store.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaRetriever, ChromaVectorStore
        >>> embed_model = BiEncoderEmbedding(bi_encoder_path)
        >>> store = ChromaVectorStore(embed_model=embed_model)
        >>> nodes = embed_model([TextNode(text="Paris is the capital of France."), TextNode(text="Bread is baked.")])
        >>> ids = store.add(nodes)
        >>> retriever = ChromaRetriever(vector_store=store, similarity_top_k=1)
        >>> [node.text for node in retriever.retrieve("capital of France")]
        ['Paris is the capital of France.']
    """

    def __init__(
        self,
        vector_store: ChromaVectorStore,
        embed_model: BaseEmbedding | None = None,
        *,
        similarity_top_k: int = 100,
        filters: MetadataFilters | None = None,
        mmr_threshold: float | None = None,
        mmr_prefetch_k: int | None = None,
        callback_manager: CallbackManager | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        if not isinstance(vector_store, ChromaVectorStore):
            raise InvalidInputError(f"vector_store must be a ChromaVectorStore, got {type(vector_store).__name__}")
        chosen = embed_model if embed_model is not None else vector_store.embed_model
        if not isinstance(chosen, BaseEmbedding):
            raise InvalidInputError(
                f"the query needs an embedding model such as BiEncoderEmbedding, got {type(chosen).__name__}; give "
                "embed_model here or to the vector store"
            )
        vector_store.check_embed_model(chosen)
        to_condition(filters)  # a filter that cannot be used is known now, not at the first query
        self.vector_store = vector_store
        self.embed_model = chosen
        self.similarity_top_k = check_count(similarity_top_k, "similarity_top_k")
        self.filters = filters
        self.mmr_threshold = None if mmr_threshold is None else check_diversity(mmr_threshold, "mmr_threshold")
        self.mmr_prefetch_k = None if mmr_prefetch_k is None else check_count(mmr_prefetch_k, "mmr_prefetch_k")
        super().__init__(callback_manager=callback_manager, objects=objects, verbose=verbose)

    def retrieve_many(self, queries: Sequence[str]) -> list[list[NodeWithScore]]:
        """As `retrieve` for each query: one search for all, and one encoding where the model is a `BiEncoderEmbedding`.

        Raises:
            InvalidInputError: If a query cannot be used.
        """
        checked, model = check_queries(queries), self.embed_model
        if isinstance(model, BiEncoderEmbedding):
            vectors = model.get_query_embeddings(checked)
        else:
            vectors = [model.get_query_embedding(query) for query in checked]
        results = self.vector_store.query_many(vectors, self._query(None), **self._options())
        return [self.retrieve(_answered(query, result)) for query, result in zip(checked, results, strict=True)]

    async def aretrieve_many(self, queries: Sequence[str]) -> list[list[NodeWithScore]]:
        """As `retrieve_many`, without blocking the event loop."""
        checked, model = check_queries(queries), self.embed_model
        if isinstance(model, BiEncoderEmbedding):
            vectors = await model.aget_query_embeddings(checked)
        else:
            vectors = await asyncio.gather(*map(model.aget_query_embedding, checked))
        results = await self.vector_store.aquery_many(vectors, self._query(None), **self._options())
        return [await self.aretrieve(_answered(query, result)) for query, result in zip(checked, results, strict=True)]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if isinstance(query_bundle, _Answered):
            return query_bundle.nodes
        vector = query_bundle.embedding
        if vector is None:
            vector = self.embed_model.get_agg_embedding_from_queries(_texts_of(query_bundle))
        return _scored(self.vector_store.query(self._query(vector, query_bundle.query_str), **self._options()))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if isinstance(query_bundle, _Answered):
            return query_bundle.nodes
        vector = query_bundle.embedding
        if vector is None:
            vector = await self.embed_model.aget_agg_embedding_from_queries(_texts_of(query_bundle))
        return _scored(await self.vector_store.aquery(self._query(vector, query_bundle.query_str), **self._options()))

    def _query(self, vector: list[float] | None, text: str | None = None) -> VectorStoreQuery:
        return VectorStoreQuery(
            query_embedding=vector,
            similarity_top_k=self.similarity_top_k,
            query_str=text,
            filters=self.filters,
            mode=VectorStoreQueryMode.DEFAULT if self.mmr_threshold is None else VectorStoreQueryMode.MMR,
            mmr_threshold=self.mmr_threshold,
        )

    def _options(self) -> dict[str, int]:
        return {} if self.mmr_prefetch_k is None else {"mmr_prefetch_k": self.mmr_prefetch_k}


@dataclass
class _Answered(QueryBundle):
    """A query whose nodes are known: `retrieve` reports them and enters their objects as ever."""

    nodes: list[NodeWithScore] = field(default_factory=list)


def _answered(query: str, result: VectorStoreQueryResult) -> _Answered:
    return _Answered(query, nodes=_scored(result))


def _texts_of(bundle: QueryBundle) -> list[str]:
    texts = bundle.embedding_strs
    if not texts:
        check_query(bundle.query_str)
    return [check_query(text) for text in texts]


def _scored(result: VectorStoreQueryResult) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=node, score=score)
        for node, score in zip(result.nodes or [], result.similarities or [], strict=True)
    ]
