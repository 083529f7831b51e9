"""The dense first stage as a LlamaIndex retriever."""

from __future__ import annotations

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery, VectorStoreQueryResult

from retrieve_rerank.checks import check_count, check_query
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.llama_index._filters import to_condition
from retrieve_rerank.llama_index.vector_store import ChromaVectorStore


class ChromaRetriever(BaseRetriever):
    """The dense first stage: the nodes of a `ChromaVectorStore` that are nearest to a query.

    Needs no index and no LLM.

    Args:
        vector_store: Where the nodes are.
        embed_model: Embeds the query; None takes the store's.
        similarity_top_k: How many nodes at most.
        filters: What the nodes must pass; see `ChromaVectorStore`.
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
        super().__init__(callback_manager=callback_manager, objects=objects, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None:
            vector = self.embed_model.get_agg_embedding_from_queries(_texts_of(query_bundle))
        return _scored(self.vector_store.query(self._query(query_bundle, vector)))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None:
            vector = await self.embed_model.aget_agg_embedding_from_queries(_texts_of(query_bundle))
        return _scored(await self.vector_store.aquery(self._query(query_bundle, vector)))

    def _query(self, bundle: QueryBundle, vector: list[float]) -> VectorStoreQuery:
        return VectorStoreQuery(
            query_embedding=vector,
            similarity_top_k=self.similarity_top_k,
            query_str=bundle.query_str,
            filters=self.filters,
        )


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
