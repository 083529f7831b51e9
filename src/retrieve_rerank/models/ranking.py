"""From logits to ranked hits: sort, scale, cut. The same for every scorer."""

from __future__ import annotations

import asyncio
import contextvars
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import (
    check_count,
    check_encodable,
    check_queries,
    check_query,
    check_seconds,
    check_threshold,
)
from retrieve_rerank.errors import InvalidInputError, ModelError
from retrieve_rerank.models.scales import Scale, check_scale, scaled
from retrieve_rerank.models.scoring import Scores, Scoring
from retrieve_rerank.models.worker import Worker, time_left
from retrieve_rerank.types import Hit, Passage, Scorer

# How many texts a scorer of somebody else's is given at once where there is a time budget: few enough to stop in time.
_CHUNK = 16
_TOGETHER = 8  # queries that are scored at once: enough to fill every batch, few enough for others to get a turn
_PATIENCE = 1.0  # seconds; it may be called from several threads anyhow, so one that hangs is left alone soon


class Ranker(ABC):
    """Ranks passages by what a scorer says about their texts."""

    @abstractmethod
    def _score(self, scoring: Scoring) -> None:
        """Score the texts, best-first in their order where there is a deadline; return then at the latest."""

    @abstractmethod
    async def _ascore(self, scoring: Scoring) -> None:
        """As `_score`, without blocking the event loop."""

    def rank(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
    ) -> list[Hit]:
        """Order passages by their relevance to a query, best first.

        Args:
            query: Not empty.
            passages: Texts, passages and hits, in any mix; never modified. A text gets its position as id. Equal texts
                are scored once. The first stage's rank and score of a hit are kept.
            top_n: How many to return; None returns all.
            score_threshold: Hits whose relevance score is below are left out; 0.0 leaves out none. A passage that was
                not scored in time is never left out by it.
            time_budget: Seconds after which what is scored by then is returned; None waits for all. Passages are
                scored in the order given, a few batches' worth at a time. Waiting for other callers of the model
                counts, loading it does not. Running out of time is no error.

        Returns:
            Hits sorted by logit, ties in input order. `index` is the position in `passages`, and `score` the sigmoid of
            the logit, computed in float64. What the time budget left unscored follows in input order, with
            `logit=None`; its `score` is its retrieval score, or NaN without one.

        Raises:
            InvalidInputError: If an argument cannot be used.
            ModelError: If the model gives NaN or a wrong number of scores.
        """
        job = _Job(query, passages, top_n, score_threshold, time_budget)
        return job.hits(self._scores(query, job.texts, job.time_budget))

    async def arank(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
    ) -> list[Hit]:
        """As `rank`, without blocking the event loop. A cancelled call stops after the batch under way."""
        job = _Job(query, passages, top_n, score_threshold, time_budget)
        return job.hits(await self._ascores(query, job.texts, job.time_budget))

    def _scores(self, query: str, texts: Sequence[str], time_budget: float | None = None) -> Scores:
        """Score texts that are all different, and warn of what the caller should know."""
        if texts:
            self._ready()
        scoring = Scoring(query, texts, time_budget)
        try:
            if texts:
                self._score(scoring)
        finally:
            scores = scoring.finish()
        self._tell(int(scores.truncated.sum()), len(texts))
        return scores

    async def _ascores(self, query: str, texts: Sequence[str], time_budget: float | None = None) -> Scores:
        """As `_scores`, without blocking the event loop."""
        if texts:
            await self._aready()
        scoring = Scoring(query, texts, time_budget)
        try:
            if texts:
                await self._ascore(scoring)
        finally:
            scores = scoring.finish()
        self._tell(int(scores.truncated.sum()), len(texts))
        return scores

    def rank_many(
        self,
        queries: Sequence[str],
        passages: Sequence[Iterable[str | Passage | Hit]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[list[Hit]]:
        """Order each query's passages; a model of ours reads pairs of several queries in one batch.

        Args:
            queries: Each not empty.
            passages: For each query what `rank` takes.
            top_n: As `rank` takes it, for each query.
            score_threshold: As `rank` takes it.

        Returns:
            For each query what `rank` returns.

        Raises:
            InvalidInputError: If an argument cannot be used.
            ModelError: If the model gives NaN or a wrong number of scores.
        """
        many = _Jobs(queries, passages, top_n, score_threshold)
        if many.count:
            self._ready()
        for scorings in many.scorings():
            try:
                self._score_many(scorings)
            finally:
                many.take(scorings)
        self._tell(many.truncated, many.count)
        return many.found

    async def arank_many(
        self,
        queries: Sequence[str],
        passages: Sequence[Iterable[str | Passage | Hit]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[list[Hit]]:
        """As `rank_many`, without blocking the event loop."""
        many = _Jobs(queries, passages, top_n, score_threshold)
        if many.count:
            await self._aready()
        for scorings in many.scorings():
            try:
                await self._ascore_many(scorings)
            finally:
                many.take(scorings)
        self._tell(many.truncated, many.count)
        return many.found

    def _score_many(self, scorings: Sequence[Scoring]) -> None:
        """Score the texts of several queries; none has a deadline."""
        for scoring in scorings:
            if scoring.texts:
                self._score(scoring)

    async def _ascore_many(self, scorings: Sequence[Scoring]) -> None:
        """As `_score_many`, without blocking the event loop."""
        for scoring in scorings:
            if scoring.texts:
                await self._ascore(scoring)

    def _ready(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what must be done once, before the clock of a time budget starts. Not to be given up."""

    async def _aready(self) -> None:  # noqa: B027
        """As `_ready`, without blocking the event loop."""

    def _tell(self, truncated: int, count: int) -> None:  # noqa: B027
        """Warn, once a call, where `truncated` of `count` passages were not seen whole."""


class ScorerRanker(Ranker):
    """Ranks by any `Scorer`, whose scores are logits or probabilities."""

    def __init__(self, scorer: Scorer, scores: Scale = "logits") -> None:
        self.scorer = scorer
        self.scores = scores
        self._scaled = scaled(scorer, scores)
        self._worker = Worker(f"retrieve-rerank {type(scorer).__name__}", patience=_PATIENCE)

    def _score(self, scoring: Scoring) -> None:
        if scoring.deadline is None:
            self._score_here(scoring)
        else:
            self._worker.run_until(scoring.deadline, _in_context(self._score_here), scoring)

    async def _ascore(self, scoring: Scoring) -> None:
        ascore = getattr(self._scaled, "ascore", None)
        if ascore is None:
            await self._worker.arun_until(scoring.deadline, _in_context(self._score_here), scoring)
            return
        for chunk in _chunks(scoring):
            call = asyncio.ensure_future(ascore(scoring.query, [scoring.texts[position] for position in chunk]))
            try:
                await asyncio.wait([call], timeout=time_left(scoring.deadline))
            finally:
                late = call.cancel()  # not awaited: what ignores its cancellation must not hold up the caller
            if late:
                return
            _put(scoring, chunk, call.result())

    def _score_here(self, scoring: Scoring) -> None:
        for chunk in _chunks(scoring):
            _put(scoring, chunk, self._scaled.score(scoring.query, [scoring.texts[position] for position in chunk]))


def _in_context(call: Callable[[Scoring], None]) -> Callable[[Scoring], None]:
    """Return a call that sees the caller's context variables, such as a trace, on another thread."""
    context = contextvars.copy_context()

    def run(scoring: Scoring) -> None:
        context.run(call, scoring)

    return run


def _chunks(scoring: Scoring) -> Iterator[range]:
    """Yield the positions to score next, as long as somebody waits."""
    count = len(scoring.texts)
    size = count if scoring.deadline is None else _CHUNK
    for start in range(0, count, size):
        if not scoring.wanted:
            return
        yield range(start, min(start + size, count))


def _put(scoring: Scoring, chunk: range, answer: npt.ArrayLike) -> None:
    logits = np.asarray(answer)
    if logits.shape != (len(chunk),):
        raise ModelError(
            f"the cross-encoder was given {len(chunk)} texts and returned scores of shape {logits.shape}; expected "
            f"({len(chunk)},), one logit a text"
        )
    for position, logit in zip(chunk, logits, strict=True):
        scoring.put(position, logit)


def as_ranker(scorer: Scorer, scores: Scale = "logits") -> Ranker:
    """Return `scorer` as something that ranks.

    Args:
        scorer: Our `CrossEncoder`, or anything with `score(query, texts)`.
        scores: What the latter returns.
    """
    check_scale(scores)
    if isinstance(scorer, Ranker):
        if scores != "logits":
            raise InvalidInputError(
                f'scores="{scores}" is for other scorers: a {type(scorer).__name__} ranks by logits already'
            )
        return scorer
    if not callable(getattr(scorer, "score", None)):
        raise InvalidInputError(
            f"the cross-encoder must have score(query, texts), as CrossEncoder has; got {type(scorer).__name__}"
        )
    return ScorerRanker(scorer, scores)


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)) in float64, without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))


class _Job:
    """One call of `rank`: its checked input, the distinct texts to score, and the hits made from their scores."""

    def __init__(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        top_n: int | None,
        score_threshold: float | None,
        time_budget: float | None,
    ) -> None:
        self.query = check_query(query)
        self.top_n = None if top_n is None else check_count(top_n, "top_n")
        self.threshold = check_threshold(score_threshold)
        self.time_budget = check_seconds(time_budget, "time_budget")
        if isinstance(passages, (str, Passage, Hit, Mapping)) or not isinstance(passages, Iterable):
            raise InvalidInputError(
                f"passages must be a list of texts, passages or hits, got {type(passages).__name__}; wrap one: [...]"
            )
        self.candidates = [_as_hit(item, position) for position, item in enumerate(passages)]
        for candidate in self.candidates:
            check_encodable(candidate.passage.text, f"passage {candidate.passage.id!r}")
        self.texts = list(dict.fromkeys(candidate.passage.text for candidate in self.candidates))

    def hits(self, scores: Scores) -> list[Hit]:
        at = {text: position for position, text in enumerate(self.texts)}
        scored, left = [], []
        for hit in self.candidates:
            position = at[hit.passage.text]
            if not scores.scored[position]:
                score = math.nan if hit.retrieval_score is None else hit.retrieval_score
                left.append(replace(hit, score=score, logit=None, window=None, truncated=False))
                continue
            logit, truncated = float(scores.logits[position]), bool(scores.truncated[position])
            score, window = sigmoid(logit), scores.windows[position]
            scored.append(replace(hit, score=score, logit=logit, window=window, truncated=truncated))
        nan = [hit.passage.id for hit in scored if math.isnan(hit.score)]
        if nan:
            raise ModelError(
                f"the cross-encoder gave NaN for {len(nan)} of {len(scored)} passages (first: {nan[0]!r}), so "
                "they have no order; check the weights, or use precision='float32'"
            )
        # By the logit, which still differs where its score has reached 1.0.
        kept = sorted(scored, key=lambda hit: -cast(float, hit.logit))
        kept = [hit for hit in kept if self.threshold is None or hit.score >= self.threshold]
        return [replace(hit, rank=rank) for rank, hit in enumerate([*kept, *left][: self.top_n], start=1)]


class _Jobs:
    """The calls of `rank` that one `rank_many` stands for, some of them at a time."""

    def __init__(
        self,
        queries: Sequence[str],
        passages: Sequence[Iterable[str | Passage | Hit]],
        top_n: int | None,
        score_threshold: float | None,
    ) -> None:
        checked = check_queries(queries)
        if isinstance(passages, (str, Passage, Hit)) or not isinstance(passages, Sequence):
            raise InvalidInputError(
                f"passages must be a list with a list for each query, got {type(passages).__name__}"
            )
        if len(checked) != len(passages):
            raise InvalidInputError(
                f"there are {len(checked)} queries and {len(passages)} lists of passages; give one list a query"
            )
        self._jobs = [
            _Job(query, items, top_n, score_threshold, None) for query, items in zip(checked, passages, strict=True)
        ]
        self._taken: list[Scores] = []

    @property
    def count(self) -> int:
        """How many texts there are."""
        return sum(len(job.texts) for job in self._jobs)

    @property
    def truncated(self) -> int:
        """How many of them were not seen whole."""
        return sum(int(scores.truncated.sum()) for scores in self._taken)

    @property
    def found(self) -> list[list[Hit]]:
        """The hits of each query."""
        return [job.hits(scores) for job, scores in zip(self._jobs, self._taken, strict=True)]

    def scorings(self) -> Iterator[list[Scoring]]:
        """Yield what is to be scored together."""
        for start in range(0, len(self._jobs), _TOGETHER):
            yield [Scoring(job.query, job.texts) for job in self._jobs[start : start + _TOGETHER]]

    def take(self, scorings: Sequence[Scoring]) -> None:
        """Take what became of them."""
        self._taken += [scoring.finish() for scoring in scorings]


def _as_hit(item: str | Passage | Hit, position: int) -> Hit:
    if isinstance(item, Hit):
        return replace(item, index=position)
    if isinstance(item, str):
        item = Passage(str(position), item)
    if not isinstance(item, Passage):
        raise InvalidInputError(f"passages[{position}] must be a string, a Passage or a Hit, got {type(item).__name__}")
    return Hit(item, rank=position + 1, score=math.nan, index=position)
