"""The two stages in a row."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from retrieve_rerank.checks import check_count, check_queries, check_query, check_seconds, check_threshold
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.models.ranking import Ranker, as_ranker
from retrieve_rerank.retrieval.first_stage import FirstStage, Options, check_retriever
from retrieve_rerank.retrieval.rerank import OnError, Reranked, SecondStage, check_on_error
from retrieve_rerank.retrieval.saved import load_setting
from retrieve_rerank.search_result import SearchResult, Timings
from retrieve_rerank.types import Hit, Retriever, Scale, Scorer


class RetrieveRerank:
    """Retrieve candidates with a first stage, order them with a cross-encoder, keep the best.

    Args:
        retriever: Anything with `retrieve(query, k) -> list[Hit]`, such as `ChromaIndex`.
        cross_encoder: A `CrossEncoder`, or anything with `score(query, texts)`.
        fetch_k: How many candidates the first stage is asked for.
        top_n: How many hits a search returns at most; None returns all.
        score_threshold: Hits whose relevance score is below are left out; an empty result is a result. Hits that the
            cross-encoder did not score stay.
        time_budget: Seconds that a whole search may take: what the first stage leaves is the cross-encoder's. It is
            never more than one batch over, and the first stage is never cut off. Candidates that were not scored in
            time follow those that were; `SearchResult.degraded` says how many.
        on_error: What happens when the cross-encoder cannot be loaded or fails, or cannot read the query, being too
            long for it. "raise" raises the cause; "retrieval_order" gives the first stage's order, says why in
            `SearchResult.degraded` and warns (`DegradedWarning`). An empty query, settings that cannot be used and a
            first stage that fails raise in any case.
        scores: What a scorer that is no `CrossEncoder` returns: "logits", or "probabilities" in [0, 1].
        rerank_weight: How much the cross-encoder counts in the order, from 0 (the first stage's order) to 1 (the
            cross-encoder's alone). Between them both vote: hits are sorted by `Hit.combined_score`, which is
            `rerank_weight * z(logit) + (1 - rerank_weight) * z(retrieval score)`, where z standardises over the scored
            candidates of the query. Where the first stage gives no scores, or scores that do not fall with its ranks,
            1 / (60 + rank) stands in for them. `tune` finds the weight. `score` and `score_threshold` are about the
            relevance in any case.

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
        top_n: int | None = 5,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError = "raise",
        scores: Scale = "logits",
        rerank_weight: float = 1.0,
    ) -> None:
        check_retriever(retriever, "the retriever")
        self._cross_encoder = cross_encoder
        self.fetch_k = check_count(fetch_k, "fetch_k")
        self.top_n = None if top_n is None else check_count(top_n, "top_n")
        self.score_threshold = check_threshold(score_threshold)
        self.time_budget = check_seconds(time_budget, "time_budget")
        self.on_error = check_on_error(on_error)
        self.rerank_weight = check_weight(rerank_weight)
        self._ranker = as_ranker(cross_encoder, scores)
        self._first_stage = FirstStage(retriever)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        first_stages: Mapping[str, Retriever] | Retriever,
        cross_encoder: Scorer | None = None,
        *,
        top_n: int | None = 5,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        on_error: OnError = "raise",
        scores: Scale = "logits",
        rerank_weight: float | None = None,
    ) -> RetrieveRerank:
        """Return the pipeline of a setting that `Tuning.save` wrote.

        Args:
            path: Of the file.
            first_stages: By the names that were tuned; a single retriever is taken for the one of the setting.
            cross_encoder: None makes a `CrossEncoder` from what the file says.
            top_n: As for the class, as are the others.
            score_threshold: As for the class.
            time_budget: As for the class.
            on_error: As for the class.
            scores: As for the class.
            rerank_weight: Instead of the setting's; None keeps that.

        Raises:
            InvalidInputError: If the file cannot be used, the first stage is not there, or the setting is not to
                re-rank: then there is no pipeline, and the first stage alone is the better search.
        """
        setting = load_setting(path)
        if not setting.reranked:
            raise InvalidInputError(
                f"the setting in {os.fspath(path)!r} is not to re-rank: search {setting.first_stage!r} by itself, "
                "with its retrieve"
            )
        stages = first_stages if isinstance(first_stages, Mapping) else {setting.first_stage: first_stages}
        if setting.first_stage not in stages:
            raise InvalidInputError(
                f"the setting in {os.fspath(path)!r} is for the first stage {setting.first_stage!r}; given are "
                f"{sorted(stages)}"
            )
        return cls(
            stages[setting.first_stage],
            setting.make_cross_encoder() if cross_encoder is None else cross_encoder,
            fetch_k=setting.fetch_k,
            top_n=top_n,
            score_threshold=score_threshold,
            time_budget=time_budget,
            on_error=on_error,
            scores=scores,
            rerank_weight=setting.rerank_weight if rerank_weight is None else rerank_weight,
        )

    @property
    def retriever(self) -> Retriever:
        """The first stage, as it was given."""
        return self._first_stage.retriever

    @property
    def cross_encoder(self) -> Scorer:
        """What scores the candidates, as it was given; another one makes another pipeline."""
        return self._cross_encoder

    @property
    def ranker(self) -> Ranker:
        """What orders the candidates: the cross-encoder, with its scores as logits."""
        return self._ranker

    def search(
        self,
        query: str,
        *,
        rewrites: Sequence[str] = (),
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float | None = None,
        **first_stage_options: object,
    ) -> SearchResult:
        """Find the best passages for a query.

        Args:
            query: Not empty.
            rewrites: The query in other words. The first stage looks for each of them too, and what they find is fused
                (see `fuse`): a candidate's `retrieval_ranks` are its ranks for the query and for each rewrite. The
                cross-encoder scores against the query.
            top_n: Instead of the pipeline's own, for this search; so are the three below. None keeps that.
            score_threshold: As for the class.
            time_budget: As for the class.
            rerank_weight: As for the class.
            **first_stage_options: Handed to the retriever, such as `where=` for `ChromaIndex`.

        Raises:
            InvalidInputError: If an argument cannot be used.
            ModelError: If a model cannot be loaded or gives unusable numbers.
        """
        check_query(query)
        return self._one(
            query, rewrites, self._second_stage(top_n, score_threshold, time_budget, rerank_weight), first_stage_options
        )

    async def asearch(
        self,
        query: str,
        *,
        rewrites: Sequence[str] = (),
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float | None = None,
        **first_stage_options: object,
    ) -> SearchResult:
        """As `search`, without blocking the event loop.

        A retriever without async methods is asked on a thread of its own a call, so several calls at a time reach it
        together, as they do from threads that search.
        """
        check_query(query)
        stage = self._second_stage(top_n, score_threshold, time_budget, rerank_weight)
        return await self._aone(query, rewrites, stage, first_stage_options)

    def search_many(
        self,
        queries: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float | None = None,
        **first_stage_options: object,
    ) -> list[SearchResult]:
        """As `search` for each query, in common batches where the retriever and the cross-encoder can.

        The times of a result are its share of what all took. A time budget is each query's own: its share of the common
        first stage, and its re-ranking, which is then done by itself.

        Raises:
            InvalidInputError: If an argument cannot be used; `rewrites` are `search`'s alone.
            ModelError: If a model cannot be loaded or gives unusable numbers.
        """
        checked = _checked_many(queries, first_stage_options)
        stage = self._second_stage(top_n, score_threshold, time_budget, rerank_weight)
        if not (checked and self._first_stage.takes_many):
            return [self._one(query, (), stage, first_stage_options) for query in checked]
        start = time.perf_counter()
        found = self._first_stage.retrieve_many(checked, self.fetch_k, first_stage_options)
        share = (time.perf_counter() - start) / len(checked)
        reranked = stage.run_many(checked, found, spent=share)
        return [_result(query, hits, share, done) for query, hits, done in zip(checked, found, reranked, strict=True)]

    async def asearch_many(
        self,
        queries: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float | None = None,
        **first_stage_options: object,
    ) -> list[SearchResult]:
        """As `search_many`, without blocking the event loop."""
        checked = _checked_many(queries, first_stage_options)
        stage = self._second_stage(top_n, score_threshold, time_budget, rerank_weight)
        if not (checked and self._first_stage.takes_many):
            return [await self._aone(query, (), stage, first_stage_options) for query in checked]
        start = time.perf_counter()
        found = await self._first_stage.aretrieve_many(checked, self.fetch_k, first_stage_options)
        share = (time.perf_counter() - start) / len(checked)
        reranked = await stage.arun_many(checked, found, spent=share)
        return [_result(query, hits, share, done) for query, hits, done in zip(checked, found, reranked, strict=True)]

    def __repr__(self) -> str:
        return (
            f"RetrieveRerank({self.retriever!r}, {self.cross_encoder!r}, fetch_k={self.fetch_k}, top_n={self.top_n}, "
            f"score_threshold={self.score_threshold}, time_budget={self.time_budget}, on_error={self.on_error!r}, "
            f"rerank_weight={self.rerank_weight:g})"
        )

    def _one(self, query: str, rewrites: Sequence[str], stage: SecondStage, options: Options) -> SearchResult:
        start = time.perf_counter()
        candidates = self._first_stage.retrieve(query, self.fetch_k, options, rewrites)
        spent = time.perf_counter() - start
        return _result(query, candidates, spent, stage.run(query, candidates, spent=spent))

    async def _aone(self, query: str, rewrites: Sequence[str], stage: SecondStage, options: Options) -> SearchResult:
        start = time.perf_counter()
        candidates = await self._first_stage.aretrieve(query, self.fetch_k, options, rewrites)
        spent = time.perf_counter() - start
        return _result(query, candidates, spent, await stage.arun(query, candidates, spent=spent))

    def _second_stage(
        self,
        top_n: int | None,
        score_threshold: float | None,
        time_budget: float | None,
        rerank_weight: float | None,
    ) -> SecondStage:
        return SecondStage(
            self._ranker,
            self.top_n if top_n is None else top_n,
            self.score_threshold if score_threshold is None else score_threshold,
            self.time_budget if time_budget is None else time_budget,
            self.on_error,
            self.rerank_weight if rerank_weight is None else rerank_weight,
        )


def _checked_many(queries: Sequence[str], options: Options) -> list[str]:
    if "rewrites" in options:  # no option of a retriever: `search` would not hand it on either
        raise InvalidInputError("many queries take no rewrites; call search or asearch for each query that has some")
    return check_queries(queries)


def _result(query: str, candidates: Sequence[Hit], retrieve_seconds: float, reranked: Reranked) -> SearchResult:
    return SearchResult(
        query=query,
        hits=reranked.hits,
        candidates=tuple(candidates),
        timings=Timings(retrieve_seconds, reranked.seconds),
        truncated_count=reranked.truncated,
        degraded=reranked.degraded,
    )
