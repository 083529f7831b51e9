"""The second stage of one search: rank the candidates, or say why they could not be ranked. The same at every door."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from retrieve_rerank.checks import check_choice, check_count, check_seconds, check_threshold
from retrieve_rerank.errors import DegradedWarning, InvalidInputError, RemoteError, in_one_line, warn_caller
from retrieve_rerank.models.interpolation import check_weight
from retrieve_rerank.models.model import Model
from retrieve_rerank.models.ranking import Ranker, Ranking, ScorerRanker, scorer_name
from retrieve_rerank.types import Hit

OnError = Literal["raise", "retrieval_order"]


@dataclass(frozen=True, slots=True)
class Reranked:
    """What became of the candidates of one search.

    Attributes:
        hits: Best first, cut; where nothing was scored, in the first stage's order.
        candidates: How many there were.
        scored: How many of them the cross-encoder scored.
        truncated: How many of them it did not see whole.
        seconds: Wall-clock time.
        model: What scored.
        precision: What it computes in, where that is known.
        degraded: Why this is not the order that was asked for; None if it is.
    """

    hits: tuple[Hit, ...]
    candidates: int
    scored: int
    truncated: int
    seconds: float
    model: str
    precision: str | None
    degraded: str | None

    def facts(self) -> dict[str, str | int | float | None]:
        """Return all but the hits, for a trace."""
        return {
            "model": self.model,
            "precision": self.precision,
            "candidates": self.candidates,
            "scored": self.scored,
            "truncated": self.truncated,
            "seconds": self.seconds,
            "degraded": self.degraded,
        }


@dataclass(frozen=True, slots=True)
class SecondStage:
    """How the candidates of a search are ranked.

    Attributes:
        ranker: What ranks.
        top_n: How many hits to keep; None keeps all.
        score_threshold: Scored hits whose relevance score is below are left out. Those without a score stay.
        time_budget: Seconds for all that `spent` counts and the ranking; None is no limit.
        on_error: What happens when the ranker raises, whatever it is: the model cannot be loaded or fails, or the query
            is too long for it. "raise" raises the cause; "retrieval_order" gives the candidates in the first stage's
            order, marked, with a `DegradedWarning`.
        rerank_weight: How much the logits count in the order, from 0 to 1; the rest is the first stage's say.

    Raises:
        InvalidInputError: If an argument cannot be used.
    """

    ranker: Ranker
    top_n: int | None = None
    score_threshold: float | None = None
    time_budget: float | None = None
    on_error: OnError = "raise"
    rerank_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.top_n is not None:
            check_count(self.top_n, "top_n")
        check_threshold(self.score_threshold)
        check_seconds(self.time_budget, "time_budget")
        check_on_error(self.on_error)
        check_weight(self.rerank_weight)

    def run(self, query: str, candidates: Sequence[Hit], *, spent: float = 0.0) -> Reranked:
        """Rank the candidates of a query.

        Args:
            query: Not empty.
            candidates: In the first stage's order; never modified. Those of one id and text are one.
            spent: Seconds of the time budget that are gone already.

        Raises:
            InvalidInputError: Whatever `on_error` says, if the query is empty or no text, or a candidate is no hit.
                What the ranker finds unusable, such as a query too long for the model, is up to `on_error`.
        """
        call = _Call(self, query, candidates, spent)
        try:
            if not call.late:
                self.ranker.score_all([call.ranking.check_texts()])
            return call.result()
        except Exception as error:  # noqa: BLE001 - whatever a model or a server raises, the first stage's order stands
            return call.failed(error)

    async def arun(self, query: str, candidates: Sequence[Hit], *, spent: float = 0.0) -> Reranked:
        """As `run`, without blocking the event loop. A cancelled call ends as cancelled."""
        call = _Call(self, query, candidates, spent)
        try:
            if not call.late:
                await self.ranker.ascore_all([call.ranking.check_texts()])
            return call.result()
        except Exception as error:  # noqa: BLE001
            return call.failed(error)

    def run_many(self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]], *, spent: float) -> list[Reranked]:
        """As `run` for each query. Without a time budget, pairs of several queries share the model's batches.

        Args:
            queries: Each not empty.
            candidates: Of each query.
            spent: Seconds of each query's time budget that are gone already.
        """
        if self.time_budget is None:
            calls = [_Call(self, query, hits, spent) for query, hits in zip(queries, candidates, strict=True)]
            try:
                self.ranker.score_all([call.ranking.check_texts() for call in calls])
                return [call.result(len(calls)) for call in calls]
            except Exception as error:  # noqa: BLE001
                if self.on_error == "raise" or _is_down(error):
                    return [call.failed(error, len(calls)) for call in calls]
                # Not swallowed: each query is asked again by itself below, so that the failure is its own and is told.
        return [self.run(query, hits, spent=spent) for query, hits in zip(queries, candidates, strict=True)]

    async def arun_many(
        self, queries: Sequence[str], candidates: Sequence[Sequence[Hit]], *, spent: float
    ) -> list[Reranked]:
        """As `run_many`, without blocking the event loop."""
        if self.time_budget is None:
            calls = [_Call(self, query, hits, spent) for query, hits in zip(queries, candidates, strict=True)]
            try:
                await self.ranker.ascore_all([call.ranking.check_texts() for call in calls])
                return [call.result(len(calls)) for call in calls]
            except Exception as error:  # noqa: BLE001
                if self.on_error == "raise" or _is_down(error):
                    return [call.failed(error, len(calls)) for call in calls]
                # Not swallowed: see `run_many`.
        return [await self.arun(query, hits, spent=spent) for query, hits in zip(queries, candidates, strict=True)]


def _is_down(error: Exception) -> bool:
    """Whether a server does not answer at all: asking it again for each query would wait for it each time."""
    if not isinstance(error, RemoteError):
        return False
    from retrieve_rerank.models.connection import RefusedError  # with an HTTP client behind it

    return not isinstance(error, RefusedError)


class _Call:
    """One run: when it began, what it was given, and the ways in which it ends."""

    def __init__(self, stage: SecondStage, query: str, candidates: Sequence[Hit], spent: float) -> None:
        for position, hit in enumerate(candidates):
            if not isinstance(hit, Hit):
                raise InvalidInputError(
                    f"the first stage must give hits; candidates[{position}] is a {type(hit).__name__}"
                )
        left = None if stage.time_budget is None else stage.time_budget - spent
        self.stage, self.start = stage, time.perf_counter()
        self.late = left is not None and left <= 0
        budget = None if self.late else left
        self.ranking = Ranking(
            query, candidates, stage.top_n, stage.score_threshold, budget, stage.rerank_weight, merge=True
        )

    def result(self, shared_by: int = 1, degraded: str | None = None) -> Reranked:
        """Return what was scored by now, of a run that was for so many queries together."""
        ranking, (model, precision) = self.ranking, described(self.stage.ranker)
        (scored, truncated), count = ranking.counts(), len(ranking.candidates)
        if degraded is None and scored < count:
            degraded = f"time budget of {self.stage.time_budget:g} s: {scored} of {count} candidates scored"
        return Reranked(
            hits=tuple(ranking.hits()),
            candidates=count,
            scored=scored,
            truncated=truncated,
            seconds=(time.perf_counter() - self.start) / shared_by,
            model=model,
            precision=precision,
            degraded=degraded,
        )

    def failed(self, error: Exception, shared_by: int = 1) -> Reranked:
        """Return the first stage's order, and warn: something is broken. Or raise the error."""
        if self.stage.on_error == "raise":
            raise error
        self.ranking.finish(failed=True)
        result = self.result(shared_by, f"re-ranking failed: {reason(error, self.stage.ranker)}")
        warn_caller(f"{result.degraded}; the result is in the first stage's order", DegradedWarning)
        return result


def check_on_error(value: OnError) -> OnError:
    """Return `value`, or raise InvalidInputError if it is no way to deal with errors."""
    return cast(OnError, check_choice(value, get_args(OnError), "on_error"))


def described(ranker: Ranker) -> tuple[str, str | None]:
    """Return the name of the model that ranks, and what it computes in as far as known. Loads nothing."""
    if isinstance(ranker, Model):
        return ranker.model, ranker.loaded_precision
    return scorer_name(ranker.scorer if isinstance(ranker, ScorerRanker) else ranker), None


def reason(error: BaseException, ranker: Ranker) -> str:
    """Return an error in one line, also without the ranker's own token."""
    return in_one_line(error, ranker.redacted if isinstance(ranker, Model) else str)
