"""The dense first stage, and the two stages in a row, as LlamaIndex retrievers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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

from retrieve_rerank.checks import check_count, check_queries, check_query, check_seconds, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.nearest import check_diversity
from retrieve_rerank.llama_index.embeddings import BiEncoderEmbedding
from retrieve_rerank.llama_index.filters import to_condition
from retrieve_rerank.llama_index.first_stage import FirstStage, Index, check_filters, check_retriever, first_stage
from retrieve_rerank.llama_index.postprocessor import CrossEncoderRerank
from retrieve_rerank.llama_index.vector_store import ChromaVectorStore
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.retrieval.first_stage import run_on_thread, warn_of_few
from retrieve_rerank.retrieval.rerank import OnError, check_on_error
from retrieve_rerank.types import Scorer


class ChromaRetriever(BaseRetriever):
    """The dense first stage: the nodes of a `ChromaVectorStore` that are nearest to a query.

    Needs no index and no LLM. An empty query is one for the nodes that pass the filters, in no order.

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
        vector, texts = query_bundle.embedding, self._texts_of(query_bundle)
        if texts:
            vector = self.embed_model.get_agg_embedding_from_queries(texts)
        return _scored(self.vector_store.query(self._query(vector, query_bundle.query_str), **self._options()))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if isinstance(query_bundle, _Answered):
            return query_bundle.nodes
        vector, texts = query_bundle.embedding, self._texts_of(query_bundle)
        if texts:
            vector = await self.embed_model.aget_agg_embedding_from_queries(texts)
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

    def _texts_of(self, bundle: QueryBundle) -> list[str]:
        """Return what is to be embedded: nothing where there is a vector, or only filters."""
        if bundle.embedding is not None or (bundle.query_str == "" and self.filters is not None):
            return []
        return [check_query(text) for text in bundle.embedding_strs or [bundle.query_str]]

    def _options(self) -> dict[str, int]:
        return {} if self.mmr_prefetch_k is None else {"mmr_prefetch_k": self.mmr_prefetch_k}


class RetrieveRerankRetriever(BaseRetriever):
    """Retrieve candidates with any retriever, order them with a cross-encoder, keep the best.

    What is given is asked, never modified: the first stage's number of nodes is set on a copy.

    Args:
        retriever: Any LlamaIndex retriever, or an index. Retrievers in it, such as those of a QueryFusionRetriever, are
            followed. One that does not say how many nodes it returns (it has no `similarity_top_k`) is asked as it
            is, and a warning says so once where fewer than `fetch_k` came.
        reranker: A `CrossEncoderRerank`, or a model for one.
        fetch_k: How many candidates the first stage is asked for.
        top_n: How many nodes to return at most; None takes the re-ranker's own.
        filters: What the nodes must pass, beside the filters that the first stage has already. They are set on all
            retrievers in it; where it cannot be shown that they arrive, the call is refused.
        score_threshold: Nodes whose relevance score is below are left out; None takes the re-ranker's own.
        time_budget: Seconds that the whole search may take: what the first stage leaves is the re-ranker's, whose own
            budget is not used then. The first stage is never cut off. None takes the re-ranker's own, for the
            re-ranking alone.
        on_error: What happens when the re-ranking fails, as in `CrossEncoderRerank`; None takes the re-ranker's own. A
            first stage that fails raises in any case.
        rerank_weight: How much the cross-encoder counts in the order, as in `CrossEncoderRerank`; None takes the
            re-ranker's own.
        rewrites: Gives the query in other words, a list of texts. The first stage looks for each of them, too, and what
            they find is fused (see `retrieve_rerank.fuse`); the re-ranking is by the query. None looks for the query.
        callback_manager: LlamaIndex's callbacks.
        verbose: Whether LlamaIndex prints which objects of index nodes it enters.

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaRetriever, ChromaVectorStore
        >>> from retrieve_rerank.llama_index import CrossEncoderRerank, RetrieveRerankRetriever
        >>> embed_model = BiEncoderEmbedding(bi_encoder_path)
        >>> store = ChromaVectorStore(embed_model=embed_model)
        >>> texts = ["Paris is the capital of France.", "Rome is in Italy.", "Bread is baked."]
        >>> ids = store.add(embed_model([TextNode(text=text) for text in texts]))
        >>> reranker = CrossEncoderRerank(model=cross_encoder_path)
        >>> retriever = RetrieveRerankRetriever(ChromaRetriever(store), reranker, top_n=1)
        >>> found = retriever.retrieve("What is the capital of France?")
        >>> [(node.text, node.rerank_rank) for node in found]
        [('Paris is the capital of France.', 1)]
    """

    def __init__(
        self,
        retriever: BaseRetriever | Index,
        reranker: CrossEncoderRerank | str | os.PathLike[str] | Scorer,
        *,
        fetch_k: int = 100,
        top_n: int | None = None,
        filters: MetadataFilters | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError | None = None,
        rerank_weight: float | None = None,
        rewrites: Callable[[str], Sequence[str]] | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        check_retriever(retriever, "retriever")
        self.retriever = retriever
        self.reranker = reranker if isinstance(reranker, CrossEncoderRerank) else CrossEncoderRerank(reranker)
        self.fetch_k = check_count(fetch_k, "fetch_k")
        self.top_n = None if top_n is None else check_count(top_n, "top_n")
        self.filters = check_filters(filters)
        self.score_threshold = check_threshold(score_threshold)
        self.time_budget = check_seconds(time_budget, "time_budget")
        self.on_error = None if on_error is None else check_on_error(on_error)
        self.rerank_weight = None if rerank_weight is None else check_weight(rerank_weight)
        if rewrites is not None and not callable(rewrites):
            raise InvalidInputError(
                f"rewrites must be a function from the query to a list of texts, got {type(rewrites).__name__}"
            )
        self.rewrites = rewrites
        self._told_of: set[str] = set()
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query, start = check_query(query_bundle.query_str), time.perf_counter()
        first = first_stage(self.retriever, self.fetch_k, self.filters)
        candidates = self._told(first, first.find(query_bundle, self._in_other_words(query)))
        return self._second_stage(start).postprocess_nodes(candidates, query_bundle=query_bundle)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query, start = check_query(query_bundle.query_str), time.perf_counter()
        first = first_stage(self.retriever, self.fetch_k, self.filters)
        # Whoever rewrites may ask a server for it.
        rewrites = await run_on_thread("retrieve-rerank rewrites", self._in_other_words, query) if self.rewrites else []
        candidates = self._told(first, await first.afind(query_bundle, rewrites))
        return await self._second_stage(start).apostprocess_nodes(candidates, query_bundle=query_bundle)

    def _in_other_words(self, query: str) -> list[str]:
        return [] if self.rewrites is None else check_queries(self.rewrites(query), "rewrites")

    def _told(self, first: FirstStage, candidates: list[NodeWithScore]) -> list[NodeWithScore]:
        """Return the candidates; warn once where there may have been more."""
        if first.unreached and len(candidates) < self.fetch_k:
            name = type(self.retriever).__name__
            warn_of_few(name, len(candidates), self.fetch_k, self._told_of, unset=first.unreached)
        return candidates

    def _second_stage(self, start: float) -> CrossEncoderRerank:
        # A copy for one call shares the model and nothing else.
        options = ("top_n", "score_threshold", "on_error", "time_budget", "rerank_weight")
        given = {name: getattr(self, name) for name in options}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not self.reranker.callback_manager.handlers:
            changed["callback_manager"] = self.callback_manager
        if self.time_budget is None:
            return self.reranker.model_copy(update=changed)
        return self.reranker.model_copy(update=changed).after(time.perf_counter() - start)


@dataclass
class _Answered(QueryBundle):
    """A query whose nodes are known: `retrieve` reports them and enters their objects as ever."""

    nodes: list[NodeWithScore] = field(default_factory=list)


def _answered(query: str, result: VectorStoreQueryResult) -> _Answered:
    return _Answered(query, nodes=_scored(result))


def _scored(result: VectorStoreQueryResult) -> list[NodeWithScore]:
    nodes = result.nodes or []
    scores = [None] * len(nodes) if result.similarities is None else result.similarities
    return [NodeWithScore(node=node, score=score) for node, score in zip(nodes, scores, strict=True)]
