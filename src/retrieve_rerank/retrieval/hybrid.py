"""Several first stages as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from retrieve_rerank.checks import check_count, check_queries
from retrieve_rerank.retrieval.first_stage import (
    FirstStage,
    OnRetrieverError,
    aask_all,
    ask_all,
    check_on_retriever_error,
    check_retrievers,
    named,
)
from retrieve_rerank.retrieval.fusion import Merge, check_merge, check_rrf_k, check_weights, fuse, warn_of_twins
from retrieve_rerank.types import Closeable, Hit, Retriever


class HybridRetriever(Closeable):
    """Asks several retrievers at once and fuses their rankings by weighted reciprocal rank fusion; see `fuse`.

    Args:
        retrievers: Anything with `retrieve(query, k) -> list[Hit]`, such as a `ChromaIndex` and a `BM25Index`. Each is
            asked for as many hits as the fusion is to return.
        weights: One a retriever, 0 or more and not all 0; None weighs all alike.
        rrf_k: How flat the shares of the ranks are. The larger, the less the first ranks stand out.
        on_error: "raise" raises what a retriever raises; "skip" fuses what the others found and warns with one
            `DegradedWarning` a call. What the caller did wrong, such as an option that a retriever does not take, and
            the failure of all retrievers raise in any case. Inside a search
            only the warning tells: the mark of a degraded search is about its re-ranking.
        merge: What makes two hits one passage: the same "id", or the same "text". It warns where the
            retrievers give equal texts ids of their own, which "id" keeps apart.

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import BiEncoder, ChromaIndex, HybridRetriever, Passage
        >>> encoder = BiEncoder(bi_encoder_path)
        >>> news, atlas = ChromaIndex(encoder), ChromaIndex(encoder)
        >>> report = news.add([Passage("n1", "Bread is dearer.")])
        >>> report = atlas.add([Passage("a1", "Rome is in Italy."), Passage("a2", "Paris is the capital of France.")])
        >>> hybrid = HybridRetriever([news, atlas], weights=[0.5, 1.0])
        >>> [(hit.passage.id, hit.retrieval_ranks) for hit in hybrid.retrieve("capital of France", k=2)]
        [('a2', (None, 1)), ('a1', (None, 2))]
    """

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        *,
        weights: Sequence[float] | None = None,
        rrf_k: float = 60,
        on_error: OnRetrieverError = "raise",
        merge: Merge = "id",
    ) -> None:
        given = check_retrievers(retrievers)
        self.weights = check_weights(weights, len(given))
        self.rrf_k = check_rrf_k(rrf_k)
        self.on_error = check_on_retriever_error(on_error)
        self.merge = check_merge(merge)
        self._names = named(given)
        self._stages = [FirstStage(retriever, "retrieve-rerank hybrid") for retriever in given]

    @property
    def retrievers(self) -> tuple[Retriever, ...]:
        """What is asked, as it was given."""
        return tuple(stage.retriever for stage in self._stages)

    def retrieve(self, query: str, k: int = 100, **options: object) -> list[Hit]:
        """Find the passages that the retrievers together rank best.

        Args:
            query: Not empty.
            k: How many at most.
            **options: Handed to every retriever, such as `where=`; one that does not take an option raises.

        Returns:
            Hits, best first. `retrieval_score` is the fused score, `retrieval_ranks` the rank in each retriever's list.

        Raises:
            InvalidInputError: If the query or k cannot be used.
        """
        return self.retrieve_many([query], k, **options)[0]

    async def aretrieve(self, query: str, k: int = 100, **options: object) -> list[Hit]:
        """As `retrieve`, without blocking the event loop, by the retrievers' own `aretrieve` where they have one."""
        return (await self.aretrieve_many([query], k, **options))[0]

    def retrieve_many(self, queries: Sequence[str], k: int = 100, **options: object) -> list[list[Hit]]:
        """As `retrieve` for each query; each retriever is asked for all of them together, where it can be."""
        k = check_count(k, "k")
        checked = check_queries(queries)
        calls = [partial(stage.retrieve_many, checked, k, options) for stage in self._stages]
        found = ask_all(self._names, calls, self.on_error, with_options=bool(options)) if checked else []
        return self._fused(found, len(checked), k)

    async def aretrieve_many(self, queries: Sequence[str], k: int = 100, **options: object) -> list[list[Hit]]:
        """As `retrieve_many`, without blocking the event loop."""
        k = check_count(k, "k")
        checked = check_queries(queries)
        calls = [partial(stage.aretrieve_many, checked, k, options) for stage in self._stages]
        found = await aask_all(self._names, calls, self.on_error, with_options=bool(options)) if checked else []
        return self._fused(found, len(checked), k)

    def close(self) -> None:
        """End nothing: a call's threads end with it, and the retrievers are the caller's and stay open."""

    def __repr__(self) -> str:
        return (
            f"HybridRetriever({list(self.retrievers)!r}, weights={list(self.weights)}, rrf_k={self.rrf_k:g}, "
            f"on_error={self.on_error!r}, merge={self.merge!r})"
        )

    def _fused(self, found: Sequence[list[list[Hit]] | None], count: int, k: int) -> list[list[Hit]]:
        searches = [[[] if lists is None else lists[row] for lists in found] for row in range(count)]
        fused = [fuse(rankings, weights=self.weights, rrf_k=self.rrf_k, k=k, merge=self.merge) for rankings in searches]
        if self.merge == "id":
            warn_of_twins(searches, lambda hit: hit.passage.id, lambda hit: hit.passage.text, weights=self.weights)
        return fused
