"""Rankings of nodes fused."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import NodeWithScore

from retrieve_rerank.llama_index.nodes import FusedNode
from retrieve_rerank.retrieval.fusion import Merge, fuse_by


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
