"""What the retrievers and the re-ranker return beside the plain node with its score."""

from __future__ import annotations

from llama_index.core.schema import NodeWithScore


class RerankedNode(NodeWithScore):
    """A node with its relevance score and how it got there.

    The facts are fields beside the node, not metadata in it: the node, its hash and the text that reaches the LLM are
    those of the node that was retrieved.

    Attributes:
        node: The very node that was retrieved.
        score: Relevance in [0, 1], made of `logit` by the calibration. None where the cross-encoder did not score the
            node: the first stage's score is on another scale.
        logit: The cross-encoder's raw output, which `rerank_rank` is by without a `combined_score`. None where it did
            not score the node.
        retrieval_score: The first stage's score, if it gave one. Re-ranking again keeps the first stage's.
        retrieval_rank: 1-based rank in the first stage.
        rerank_rank: 1-based rank after re-ranking.
        retrieval_ranks: Where several retrievers were fused: as in `FusedNode`. Else empty.
        window: Character span of the scored text that won, where it was scored in windows. The scored text is what the
            re-ranker's `metadata_mode` makes of the node.
        truncated: Whether part of that text was not read.
        degraded: Why the call that this node comes from did not score every node; None if it did.
        combined_score: What `rerank_rank` is by where both stages voted, with a `rerank_weight` below 1. Else None.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import RerankedNode
        >>> found = RerankedNode(node=TextNode(text="Paris."), score=0.9, retrieval_rank=7, rerank_rank=1)
        >>> found.text, found.retrieval_rank, found.rerank_rank
        ('Paris.', 7, 1)
    """

    logit: float | None = None
    retrieval_score: float | None = None
    retrieval_rank: int | None = None
    rerank_rank: int | None = None
    retrieval_ranks: tuple[int | None, ...] = ()
    window: tuple[int, int] | None = None
    truncated: bool = False
    degraded: str | None = None
    combined_score: float | None = None

    @classmethod
    def class_name(cls) -> str:
        return "RerankedNode"


class FusedNode(NodeWithScore):
    """A node that `HybridRetriever` returns: the very node that was found, and its rank in every list.

    Attributes:
        node: As the first retriever that found it returned it.
        score: The fused score, which `retrieval_rank` is by.
        retrieval_rank: 1-based rank in the fused list.
        retrieval_ranks: 1-based rank in each retriever's list, in their order; None where it did not find the node.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from retrieve_rerank.llama_index import FusedNode
        >>> found = FusedNode(node=TextNode(text="Paris."), score=0.03, retrieval_rank=1, retrieval_ranks=(2, None))
        >>> found.text, found.retrieval_ranks
        ('Paris.', (2, None))
    """

    retrieval_rank: int | None = None
    retrieval_ranks: tuple[int | None, ...] = ()

    @classmethod
    def class_name(cls) -> str:
        return "FusedNode"
