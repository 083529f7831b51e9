"""From texts to ranked hits: score, sort, cut. The same for every scorer, ours or somebody else's."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import (
    check_choice,
    check_count,
    check_encodable,
    check_queries,
    check_query,
    check_seconds,
    check_threshold,
    is_iterable,
)
from retrieve_rerank.errors import InvalidInputError, ModelError, shown, warn_caller
from retrieve_rerank.models.calibration import UNCALIBRATED, Calibration, from_probabilities
from retrieve_rerank.models.interpolation import check_weight, interpolate
from retrieve_rerank.models.threads import Worker, time_left
from retrieve_rerank.types import Hit, Passage, Scale, Scorer

Logits = npt.NDArray[np.float64]

# How many texts a scorer of somebody else's is given at once where there is a time budget: few enough to stop in time.
_CHUNK = 16
_TOGETHER = 8  # queries that are scored at once: enough to fill every batch, few enough for others to get a turn
_PATIENCE = 1.0  # seconds; it may be called from several threads anyhow, so one that hangs is left alone soon


@dataclass(frozen=True, slots=True)
class Score:
    """What a scorer says of one text.

    Attributes:
        logit: As a float64, which other people's scores may need.
        truncated: Whether a part of the text was not seen.
        window: Character span of the window that won, or None where the text was scored as one piece.
    """

    logit: float
    truncated: bool = False
    window: tuple[int, int] | None = None


class Scoring:
    """One query's texts while they are scored: filled batch by batch by a worker, read by whoever waits for them.

    Safe between the caller and one worker.

    Args:
        query: What the texts are scored against.
        texts: All different.
        time_budget: Seconds after which the caller stops waiting; None is never.

    Attributes:
        calibration: What makes a relevance of a logit; the ranker sets it.
        deadline: When that is, as a value of `time.monotonic`, or None. It counts from `start`.
        ended: Whether the worker has done with it.
        scores: Of each text; None where it was not reached before the time was up.
    """

    def __init__(self, query: str, texts: Sequence[str], time_budget: float | None = None) -> None:
        self.query = query
        self.texts = texts
        self.calibration = UNCALIBRATED
        self._time_budget = time_budget
        self._lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Begin anew, with nothing scored and the whole time left."""
        self.deadline = None if self._time_budget is None else time.monotonic() + self._time_budget
        self.ended = self._given_up = False
        self._error: Exception | None = None
        self.scores: list[Score | None] = [None] * len(self.texts)

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits. To be asked between batches, never within one."""
        return not self._given_up and (self.deadline is None or time.monotonic() < self.deadline)

    def put(
        self, position: int, logit: float, *, truncated: bool = False, window: tuple[int, int] | None = None
    ) -> None:
        """Set what is known of the text at `position`. Does nothing once nobody waits."""
        with self._lock:
            if not self._given_up:
                self.scores[position] = Score(float(logit), truncated, window)

    def end(self, error: Exception | None = None) -> None:
        """Say that the worker has done with it, or has failed."""
        self._error = error
        self.ended = True

    def check(self) -> None:
        """Raise what the worker failed with."""
        if self._error is not None:
            raise self._error

    def finish(self, *, failed: bool = False) -> None:
        """Say that nobody waits for more: from here on nothing changes. A call that failed has scored nothing."""
        with self._lock:
            self._given_up = True
            if failed:
                self.scores = [None] * len(self.texts)


class Ranking(Scoring):
    """One query's passages on their way to being ranked hits: checked, scored as their distinct texts, sorted, cut.

    Args:
        query: As `Ranker.rank` takes it, as are the five below.
        passages: Of this query.
        top_n: Of the hits.
        score_threshold: Of the hits.
        time_budget: Seconds.
        rerank_weight: Of the logits in the order.
        merge: Whether passages of one id and text are one: that of the best retrieval rank, in the first one's place.

    Attributes:
        candidates: The passages as hits, each with its `index`, in the order given.

    Raises:
        InvalidInputError: If an argument cannot be used.
    """

    def __init__(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float = 1.0,
        *,
        merge: bool = False,
    ) -> None:
        self._weight = check_weight(rerank_weight)
        self._top_n = None if top_n is None else check_count(top_n, "top_n")
        self._threshold = check_threshold(score_threshold)
        if isinstance(passages, (str, Passage, Hit, Mapping)) or not is_iterable(passages):
            raise InvalidInputError(
                f"passages must be a list of texts, passages or hits, got {type(passages).__name__}; wrap one: [...]"
            )
        self.candidates = [_as_hit(item, position) for position, item in enumerate(passages)]
        if merge:
            self.candidates = _merged(self.candidates)
        at: dict[str, int] = {}
        self._at = [at.setdefault(candidate.passage.text, len(at)) for candidate in self.candidates]
        super().__init__(check_query(query), list(at), check_seconds(time_budget, "time_budget"))

    def check_texts(self) -> Ranking:
        """Return this, or raise InvalidInputError if a text is not valid Unicode."""
        for candidate in self.candidates:
            check_encodable(candidate.passage.text, f"passage {shown(candidate.passage.id)}")
        return self

    def counts(self) -> tuple[int, int]:
        """Return how many candidates were scored, and how many of these were not seen whole."""
        scored = [score for at in self._at if (score := self.scores[at]) is not None]
        return len(scored), sum(score.truncated for score in scored)

    def hits(self) -> list[Hit]:
        """Return the hits as `Ranker.rank` gives them, each made anew.

        Raises:
            ModelError: If a score is NaN.
        """
        scored: list[tuple[Hit, Score]] = []
        left: list[Hit] = []
        for hit, at in zip(self.candidates, self._at, strict=True):
            if (score := self.scores[at]) is None:
                left.append(hit)
            else:
                scored.append((hit, score))
        nan = [hit.passage.id for hit, score in scored if math.isnan(score.logit)]
        if nan:
            raise ModelError(
                f"the cross-encoder gave NaN for {len(nan)} of {len(scored)} passages (first: {shown(nan[0])}), so "
                "they have no order; check the weights, or use precision='float32'"
            )
        # By the logit, which still differs where its score has reached 1.0.
        order = interpolate([hit for hit, _ in scored], [score.logit for _, score in scored], self._weight)
        if self._threshold is not None:
            order = [
                found for found in order if self.calibration.relevance(scored[found[0]][1].logit) >= self._threshold
            ]
        ranked = [(*scored[place], combined) for place, combined in order]
        kept = [*ranked, *((hit, None, None) for hit in left)][: self._top_n]
        return [_ranked(*found, rank, self.calibration) for rank, found in enumerate(kept, start=1)]


class Ranker(ABC):
    """Ranks passages by what a scorer says about their texts."""

    @property
    def calibration(self) -> Calibration:
        """What makes a relevance of a logit."""
        return UNCALIBRATED

    @abstractmethod
    def _score(self, scorings: Sequence[Scoring]) -> None:
        """Score texts of one query or, where none has a deadline, of several; return at a deadline at the latest.

        Args:
            scorings: Each has texts; they are scored in their order where there is a deadline.
        """

    @abstractmethod
    async def _ascore(self, scorings: Sequence[Scoring]) -> None:
        """As `_score`, without blocking the event loop."""

    def _ready(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what must be done once, before the clock of a time budget starts. Not to be given up."""

    async def _aready(self) -> None:  # noqa: B027
        """As `_ready`, without blocking the event loop."""

    def _tell(self, truncated: int, count: int) -> None:  # noqa: B027
        """Warn, once a call, where `truncated` of `count` passages were not seen whole."""

    def rank(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float = 1.0,
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
            rerank_weight: Of the logits in the order, in [0, 1]; the rest is the first stage's, see
                `retrieve_rerank.models.interpolation`. 1 sorts by the logits alone.

        Returns:
            Hits sorted by logit, ties in input order, or, with a `rerank_weight` below 1, by `combined_score`. `index`
            is the position in `passages`, and `score` the relevance that `calibration` makes of the logit, computed in
            float64. What the time budget left unscored follows in input order, with `logit=None`; its `score` is its
            retrieval score, or NaN without one.

        Raises:
            InvalidInputError: If an argument cannot be used.
            ModelError: If the model gives NaN or a wrong number of scores.
        """
        ranking = Ranking(query, passages, top_n, score_threshold, time_budget, rerank_weight).check_texts()
        self.score_all([ranking])
        return ranking.hits()

    async def arank(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        time_budget: float | None = None,
        rerank_weight: float = 1.0,
    ) -> list[Hit]:
        """As `rank`, without blocking the event loop. A cancelled call stops after the batch under way."""
        ranking = Ranking(query, passages, top_n, score_threshold, time_budget, rerank_weight).check_texts()
        await self.ascore_all([ranking])
        return ranking.hits()

    def rank_many(
        self,
        queries: Sequence[str],
        passages: Sequence[Iterable[str | Passage | Hit]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        rerank_weight: float = 1.0,
    ) -> list[list[Hit]]:
        """Order each query's passages; a model of ours reads pairs of several queries in one batch.

        Args:
            queries: Each not empty.
            passages: For each query what `rank` takes.
            top_n: As `rank` takes it, for each query.
            score_threshold: As `rank` takes it.
            rerank_weight: As `rank` takes it.

        Returns:
            For each query what `rank` returns.

        Raises:
            InvalidInputError: If an argument cannot be used.
            ModelError: If the model gives NaN or a wrong number of scores.
        """
        rankings = _rankings(queries, passages, top_n, score_threshold, rerank_weight)
        self.score_all(rankings)
        return [ranking.hits() for ranking in rankings]

    async def arank_many(
        self,
        queries: Sequence[str],
        passages: Sequence[Iterable[str | Passage | Hit]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        rerank_weight: float = 1.0,
    ) -> list[list[Hit]]:
        """As `rank_many`, without blocking the event loop."""
        rankings = _rankings(queries, passages, top_n, score_threshold, rerank_weight)
        await self.ascore_all(rankings)
        return [ranking.hits() for ranking in rankings]

    def score_all(self, scorings: Sequence[Scoring]) -> None:
        """Score texts that are all different in a query, some queries at a time; warn of what the caller should know.

        Args:
            scorings: Checked. Either one, or several without a time budget. What is not scored in time is marked so.
        """
        filled = [scoring for scoring in scorings if scoring.texts]
        if filled:
            self._ready()
        for group in _groups(filled):
            try:
                self._score(group)
            finally:
                for scoring in group:
                    scoring.finish()
        self._told(filled)

    async def ascore_all(self, scorings: Sequence[Scoring]) -> None:
        """As `score_all`, without blocking the event loop."""
        filled = [scoring for scoring in scorings if scoring.texts]
        if filled:
            await self._aready()
        for group in _groups(filled):
            try:
                await self._ascore(group)
            finally:
                for scoring in group:
                    scoring.finish()
        self._told(filled)

    def _told(self, scorings: Sequence[Scoring]) -> None:
        for scoring in scorings:
            scoring.calibration = self.calibration
        truncated = sum(score.truncated for scoring in scorings for score in scoring.scores if score is not None)
        self._tell(truncated, sum(len(scoring.texts) for scoring in scorings))


class ScorerRanker(Ranker):
    """Ranks by any `Scorer`.

    Args:
        scorer: Anything with `score(query, texts)`; its `ascore` is used where it has one.
        scores: What it returns: "logits", any real numbers, or "probabilities" in [0, 1].
    """

    def __init__(self, scorer: Scorer, scores: Scale = "logits") -> None:
        self.scorer = scorer
        self.scores = check_scale(scores)
        self._warned = False
        self._worker = Worker(f"retrieve-rerank {type(scorer).__name__}", patience=_PATIENCE)

    def _score(self, scorings: Sequence[Scoring]) -> None:
        for scoring in scorings:
            if scoring.deadline is None:
                self._score_here(scoring)
            else:
                # In the caller's context: a trace, for one, goes by it.
                context = contextvars.copy_context()
                self._worker.run_until(scoring.deadline, context.run, self._score_here, scoring)

    async def _ascore(self, scorings: Sequence[Scoring]) -> None:
        ascore = getattr(self.scorer, "ascore", None)
        for scoring in scorings:
            if not callable(ascore):
                context = contextvars.copy_context()
                await self._worker.arun_until(scoring.deadline, context.run, self._score_here, scoring)
                continue
            for chunk, texts in _chunks(scoring):
                call = asyncio.ensure_future(ascore(scoring.query, texts))
                try:
                    await asyncio.wait([call], timeout=time_left(scoring.deadline))
                finally:
                    late = call.cancel()  # not awaited: what ignores its cancellation must not hold up the caller
                if late:
                    return
                self._put(scoring, chunk, call.result())

    def _score_here(self, scoring: Scoring) -> None:
        for chunk, texts in _chunks(scoring):
            self._put(scoring, chunk, self.scorer.score(scoring.query, texts))

    def _put(self, scoring: Scoring, chunk: range, answer: npt.ArrayLike) -> None:
        logits = self._logits(answer, len(chunk))
        if logits.shape != (len(chunk),):
            raise ModelError(
                f"the cross-encoder was given {len(chunk)} texts and returned scores of shape {logits.shape}; expected "
                f"({len(chunk)},), one logit a text"
            )
        for position, logit in zip(chunk, logits, strict=True):
            scoring.put(position, logit)

    def _logits(self, answer: npt.ArrayLike, count: int) -> Logits:
        name = scorer_name(self.scorer)
        try:
            numbers = np.asarray(answer, dtype=np.float64)
        except (
            ArithmeticError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as error:  # the last of a tensor that has a gradient
            raise ModelError(
                f"{name} must return one number a pair of query and text; its scores cannot be read: {error}"
            ) from error
        inside = (numbers >= 0) & (numbers <= 1)
        if self.scores == "probabilities":
            if (outside := numbers[~inside & ~np.isnan(numbers)]).size:
                raise ModelError(
                    f"{name} is said to give probabilities, but gave {outside.flat[0]:g}; expected numbers in [0, 1]. "
                    'If its scores are logits, use scores="logits"'
                )
            return from_probabilities(numbers)
        # Nothing but 0 and 1 is a stub, or a label, and no probability.
        if not self._warned and count > 1 and inside.all() and ((numbers > 0) & (numbers < 1)).any():
            self._warned = True
            warn_caller(
                f"every score that {name} gave lies in [0, 1], as probabilities do, and is taken for a logit: the "
                "order is right, the relevance scores and thresholds are not. If they are probabilities, say so with "
                'scores="probabilities"',
                UserWarning,
            )
        return numbers


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


def check_scale(value: Scale) -> Scale:
    """Return `value`, or raise InvalidInputError if it is no scale."""
    return cast(Scale, check_choice(value, get_args(Scale), "scores"))


def scorer_name(scorer: object) -> str:
    """Return the name of the model that scores where the object says it, else the name of its class."""
    names = [getattr(scorer, name, None) for name in ("model", "model_name")]
    return next((name for name in names if isinstance(name, str) and name), type(scorer).__name__)


def _rankings(
    queries: Sequence[str],
    passages: Sequence[Iterable[str | Passage | Hit]],
    top_n: int | None,
    score_threshold: float | None,
    rerank_weight: float,
) -> list[Ranking]:
    checked = check_queries(queries)
    if isinstance(passages, (str, Passage, Hit)) or not isinstance(passages, Sequence):
        raise InvalidInputError(f"passages must be a list with a list for each query, got {type(passages).__name__}")
    if len(checked) != len(passages):
        raise InvalidInputError(
            f"there are {len(checked)} queries and {len(passages)} lists of passages; give one list a query"
        )
    return [
        Ranking(query, items, top_n, score_threshold, None, rerank_weight).check_texts()
        for query, items in zip(checked, passages, strict=True)
    ]


def _ranked(hit: Hit, score: Score | None, combined: float | None, rank: int, calibration: Calibration) -> Hit:
    hit = replace(hit, rank=rank, combined_score=combined)
    if score is None:
        retrieval = math.nan if hit.retrieval_score is None else hit.retrieval_score
        return replace(hit, score=retrieval, logit=None, window=None, truncated=False)
    relevance = calibration.relevance(score.logit)
    return replace(hit, score=relevance, logit=score.logit, window=score.window, truncated=score.truncated)


def _as_hit(item: str | Passage | Hit, position: int) -> Hit:
    if isinstance(item, Hit):
        return replace(item, index=position)
    if isinstance(item, str):
        item = Passage(str(position), item)
    if not isinstance(item, Passage):
        raise InvalidInputError(f"passages[{position}] must be a string, a Passage or a Hit, got {type(item).__name__}")
    return Hit(item, rank=position + 1, score=math.nan, index=position)


def _merged(candidates: Sequence[Hit]) -> list[Hit]:
    best: dict[tuple[str, str], Hit] = {}
    for hit in candidates:
        kept = best.setdefault((hit.passage.id, hit.passage.text), hit)
        if (hit.retrieval_rank or math.inf) < (kept.retrieval_rank or math.inf):
            best[hit.passage.id, hit.passage.text] = hit
    return list(best.values())


def _groups(scorings: Sequence[Scoring]) -> Iterator[Sequence[Scoring]]:
    """Yield what is scored together, each with all its time left."""
    for start in range(0, len(scorings), _TOGETHER):
        group = scorings[start : start + _TOGETHER]
        for scoring in group:
            scoring.start()
        yield group


def _chunks(scoring: Scoring) -> Iterator[tuple[range, list[str]]]:
    """Yield the texts to score next, with their positions, as long as somebody waits."""
    count = len(scoring.texts)
    size = count if scoring.deadline is None else _CHUNK
    for start in range(0, count, size):
        if not scoring.wanted:
            return
        chunk = range(start, min(start + size, count))
        yield chunk, [scoring.texts[position] for position in chunk]
