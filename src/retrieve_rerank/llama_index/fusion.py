"""Rankings of nodes fused, and a query in several wordings searched as one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from retrieve_rerank.llama_index.chroma_retriever import ChromaRetriever
from retrieve_rerank.llama_index.first_stage import aask, ask
from retrieve_rerank.llama_index.nodes import FusedNode
from retrieve_rerank.retrieval.fusion import Merge, fuse_by, merge_of


def fuse_nodes(
    rankings: Sequence[Sequence[NodeWithScore]], *, weights: Sequence[float], rrf_k: float, k: int, merge: Merge
) -> list[NodeWithScore]:
    """Return new objects around the best nodes of several rankings, with the fused score and all ranks."""

    def key(found: NodeWithScore) -> str:
        return found.node.node_id if merge == "id" else found.node.get_content()

    return [
        FusedNode(node=fused.item.node, score=fused.score, retrieval_rank=rank, retrieval_ranks=fused.ranks)
        for rank, fused in enumerate(fuse_by(rankings, key, weights=weights, rrf_k=rrf_k, k=k), start=1)
    ]


def find(first: BaseRetriever, bundle: QueryBundle, rewrites: Sequence[str], k: int) -> list[NodeWithScore]:
    """Return the candidates for a query; given in other words, too, the fusion of what each of them finds."""
    if not rewrites:
        return ask(first, bundle, k)
    if isinstance(first, ChromaRetriever) and _plain(bundle):
        return _fused(first.retrieve_many([bundle.query_str, *rewrites]), k, first)
    return _fused([ask(first, each, k) for each in [bundle, *map(QueryBundle, rewrites)]], k, first)


async def afind(
    first: BaseRetriever,
    bundle: QueryBundle,
    rewrites: Sequence[str],
    k: int,
    arun: Callable[..., Awaitable[Any]],
) -> list[NodeWithScore]:
    """As `find`, without blocking the event loop; see `aask`."""
    if not rewrites:
        return await aask(first, bundle, k, arun)
    if isinstance(first, ChromaRetriever) and _plain(bundle):
        return _fused(await first.aretrieve_many([bundle.query_str, *rewrites]), k, first)
    return _fused([await aask(first, each, k, arun) for each in [bundle, *map(QueryBundle, rewrites)]], k, first)


def _plain(bundle: QueryBundle) -> bool:
    return bundle.embedding is None and not bundle.custom_embedding_strs


def _fused(rankings: Sequence[Sequence[NodeWithScore]], k: int, first: BaseRetriever) -> list[NodeWithScore]:
    return fuse_nodes(rankings, weights=[1.0] * len(rankings), rrf_k=60, k=k, merge=merge_of(first))
