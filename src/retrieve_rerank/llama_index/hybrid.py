"""Several first stages as one LlamaIndex retriever."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from retrieve_rerank.checks import check_count, check_query
from retrieve_rerank.llama_index.first_stage import Index, check_filters, check_retriever, first_stage, fuse_nodes
from retrieve_rerank.retrieval.first_stage import (
    OnRetrieverError,
    aask_all,
    ask_all,
    check_on_retriever_error,
    check_retrievers,
    named,
)
from retrieve_rerank.retrieval.fusion import Merge, check_merge, check_rrf_k, check_weights, warn_of_twins


class HybridRetriever(BaseRetriever):
    """Ask several retrievers at once and fuse their rankings by weighted reciprocal rank fusion. Needs no LLM.

    A node's score is the sum of weight / (rrf_k + rank) over the retrievers that found it; see `retrieve_rerank.fuse`.
    The result holds new `FusedNode` objects around the nodes found; what the retrievers return is not modified.

    Args:
        retrievers: Any LlamaIndex retrievers or indexes. Each is asked for `similarity_top_k` nodes where it has such a
            number, and is never modified.
        weights: One a retriever, 0 or more and not all 0; None weighs all alike.
        rrf_k: How flat the shares of the ranks are. The larger, the less the first ranks stand out.
        similarity_top_k: How many nodes to return at most.
        filters: What the nodes must pass, beside the filters that the retrievers have already; see
            `RetrieveRerankRetriever`.
        merge: What makes two nodes one: the same "id" (`node_id`), or the same "text". It warns where the
            retrievers give equal texts ids of their own, which "id" keeps apart.
        on_error: "raise" raises what a retriever raises; "skip" fuses what the others found and warns with one
            `DegradedWarning` a call. What the caller did wrong and the failure of all retrievers raise in any case.
            Inside a search only the warning tells: the mark of a degraded search is about its re-ranking.
        callback_manager: LlamaIndex's callbacks.
        verbose: Whether LlamaIndex prints which objects of index nodes it enters.

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import BiEncoderEmbedding, ChromaRetriever, ChromaVectorStore
        >>> from retrieve_rerank.llama_index import HybridRetriever
        >>> embed_model = BiEncoderEmbedding(bi_encoder_path)
        >>> news, atlas = ChromaVectorStore(embed_model=embed_model), ChromaVectorStore(embed_model=embed_model)
        >>> ids = news.add(embed_model([TextNode(text="Bread is dearer.")]))
        >>> ids = atlas.add(embed_model([TextNode(text="Rome is in Italy."), TextNode(text="Paris is in France.")]))
        >>> hybrid = HybridRetriever([ChromaRetriever(news), ChromaRetriever(atlas)], weights=[0.5, 1.0])
        >>> best = hybrid.retrieve("a city in France")[0]
        >>> best.text, best.retrieval_ranks
        ('Paris is in France.', (None, 1))
    """

    def __init__(
        self,
        retrievers: Sequence[BaseRetriever | Index],
        *,
        weights: Sequence[float] | None = None,
        rrf_k: float = 60,
        similarity_top_k: int = 100,
        filters: MetadataFilters | None = None,
        merge: Merge = "id",
        on_error: OnRetrieverError = "raise",
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        self.retrievers: tuple[BaseRetriever | Index, ...] = tuple(check_retrievers(retrievers, check_retriever))
        self.weights = check_weights(weights, len(self.retrievers))
        self.rrf_k = check_rrf_k(rrf_k)
        self.similarity_top_k = check_count(similarity_top_k, "similarity_top_k")
        self.filters = check_filters(filters)
        self.merge = check_merge(merge)
        self.on_error = check_on_retriever_error(on_error)
        self._names = named(self.retrievers)
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        check_query(query_bundle.query_str)
        calls = [partial(self._ask, retriever, query_bundle) for retriever in self.retrievers]
        return self._fused(ask_all(self._names, calls, self.on_error))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        check_query(query_bundle.query_str)
        calls = [partial(self._aask, retriever, query_bundle) for retriever in self.retrievers]
        return self._fused(await aask_all(self._names, calls, self.on_error))

    def _ask(self, retriever: BaseRetriever | Index, bundle: QueryBundle) -> list[NodeWithScore]:
        return first_stage(retriever, self.similarity_top_k, self.filters).find(bundle)

    async def _aask(self, retriever: BaseRetriever | Index, bundle: QueryBundle) -> list[NodeWithScore]:
        return await first_stage(retriever, self.similarity_top_k, self.filters).afind(bundle)

    def _fused(self, found: Sequence[list[NodeWithScore] | None]) -> list[NodeWithScore]:
        rankings = [ranking or [] for ranking in found]
        if self.merge == "id":
            warn_of_twins(
                [rankings],
                lambda found: found.node.node_id,
                lambda found: found.node.get_content(),
                weights=self.weights,
            )
        return fuse_nodes(rankings, weights=self.weights, rrf_k=self.rrf_k, k=self.similarity_top_k, merge=self.merge)
