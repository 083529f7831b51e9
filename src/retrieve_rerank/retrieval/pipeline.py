"""The two stages in a row."""

from __future__ import annotations

import time
from collections.abc import Sequence

from retrieve_rerank.checks import check_count, check_queries, check_query, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.models.ranking import as_ranker
from retrieve_rerank.models.worker import Worker
from retrieve_rerank.retrieval.source import Source
from retrieve_rerank.types import Hit, Retriever, Scorer, SearchResult, Timings


class RetrieveRerank:
    """Retrieve candidates with a first stage, order them with a cross-encoder, keep the best.

    Args:
        retriever: Anything with `retrieve(query, k) -> list[Hit]`, such as `ChromaIndex`.
        cross_encoder: A `CrossEncoder`, or anything with `score(query, texts)`, whose scores are taken as logits.
        fetch_k: How many candidates the first stage is asked for.
        top_n: How many hits a search returns at most.
        score_threshold: Hits whose relevance score is below are left out; an empty result is a result.

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import BiEncoder, ChromaIndex, CrossEncoder, Passage, RetrieveRerank
        >>> index = ChromaIndex(BiEncoder(bi_encoder_path))
        >>> report = index.add([Passage("1", "Paris is the capital of France."), Passage("2", "Bread is baked.")])
        >>> search = RetrieveRerank(index, CrossEncoder(cross_encoder_path), top_n=1)
        >>> result = search.search("What is the capital of France?")
        >>> len(result), len(result.candidates), result[0].retrieval_rank in (1, 2)
        (1, 2, True)
    """

    def __init__(
        self,
        retriever: Retriever,
        cross_encoder: Scorer,
        *,
        fetch_k: int = 100,
        top_n: int = 5,
        score_threshold: float | None = None,
    ) -> None:
        if not callable(getattr(retriever, "retrieve", None)):
            raise InvalidInputError(
                f"the retriever must have retrieve(query, k), as ChromaIndex has; got {type(retriever).__name__}"
            )
        self.retriever = retriever
        self.cross_encoder = cross_encoder
        self.fetch_k = check_count(fetch_k, "fetch_k")
        self.top_n = check_count(top_n, "top_n")
        self.score_threshold = check_threshold(score_threshold)
        self._ranker = as_ranker(cross_encoder)
        self._source = Source(retriever, Worker("retrieve-rerank first stage").arun)

    def search(self, query: str, *, rewrites: Sequence[str] = (), **first_stage_options: object) -> SearchResult:
        """Find the best passages for a query.

        Args:
            query: Not empty.
            rewrites: The query in other words. The first stage looks for each of them too, and what they find is fused
                (see `fuse`): a candidate's `retrieval_ranks` are its ranks for the query and for each rewrite. The
                cross-encoder scores against the query.
            **first_stage_options: Handed to the retriever, such as `where=` for `ChromaIndex`.

        Raises:
            InvalidInputError: If the query cannot be used.
            ModelError: If a model cannot be loaded or gives unusable numbers.
        """
        check_query(query)
        start = time.perf_counter()
        candidates = self._source.retrieve_fused(query, rewrites, self.fetch_k, first_stage_options)
        return self._rerank(query, candidates, time.perf_counter() - start)

    async def asearch(self, query: str, *, rewrites: Sequence[str] = (), **first_stage_options: object) -> SearchResult:
        """As `search`, without blocking the event loop."""
        check_query(query)
        start = time.perf_counter()
        candidates = await self._source.aretrieve_fused(query, rewrites, self.fetch_k, first_stage_options)
        return await self._arerank(query, candidates, time.perf_counter() - start)

    def search_many(self, queries: Sequence[str], **first_stage_options: object) -> list[SearchResult]:
        """As `search` for each query. Queries are encoded and searched together where the retriever can."""
        checked = check_queries(queries)
        if not (checked and self._source.takes_many):
            return [self.search(query, rewrites=(), **first_stage_options) for query in checked]
        start = time.perf_counter()
        found = self._source.retrieve_many(checked, self.fetch_k, first_stage_options)
        share = (time.perf_counter() - start) / len(checked)
        return [self._rerank(query, candidates, share) for query, candidates in zip(checked, found, strict=True)]

    async def asearch_many(self, queries: Sequence[str], **first_stage_options: object) -> list[SearchResult]:
        """As `search_many`, without blocking the event loop."""
        checked = check_queries(queries)
        if not (checked and self._source.takes_many):
            return [await self.asearch(query, rewrites=(), **first_stage_options) for query in checked]
        start = time.perf_counter()
        found = await self._source.aretrieve_many(checked, self.fetch_k, first_stage_options)
        share = (time.perf_counter() - start) / len(checked)
        return [await self._arerank(query, candidates, share) for query, candidates in zip(checked, found, strict=True)]

    def __repr__(self) -> str:
        return (
            f"RetrieveRerank({self.retriever!r}, {self.cross_encoder!r}, fetch_k={self.fetch_k}, top_n={self.top_n}, "
            f"score_threshold={self.score_threshold})"
        )

    def _rerank(self, query: str, candidates: Sequence[Hit], retrieve_seconds: float) -> SearchResult:
        start = time.perf_counter()
        hits = self._ranker.rank(query, candidates)
        return self._result(query, candidates, hits, retrieve_seconds, time.perf_counter() - start)

    async def _arerank(self, query: str, candidates: Sequence[Hit], retrieve_seconds: float) -> SearchResult:
        start = time.perf_counter()
        hits = await self._ranker.arank(query, candidates)
        return self._result(query, candidates, hits, retrieve_seconds, time.perf_counter() - start)

    def _result(
        self, query: str, candidates: Sequence[Hit], hits: Sequence[Hit], retrieve: float, rerank: float
    ) -> SearchResult:
        # All candidates are ranked, then cut here: how many of them were truncated is a fact about all of them.
        kept = [hit for hit in hits[: self.top_n] if self.score_threshold is None or hit.score >= self.score_threshold]
        return SearchResult(
            query=query,
            hits=tuple(kept),
            candidates=tuple(candidates),
            timings=Timings(retrieve, rerank),
            truncated_count=sum(hit.truncated for hit in hits),
        )
