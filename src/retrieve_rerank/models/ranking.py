"""From logits to ranked hits: sort, scale, cut. The same for every scorer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count, check_encodable, check_query, check_threshold
from retrieve_rerank.errors import InvalidInputError, ModelError
from retrieve_rerank.models.scales import Scale, check_scale, scaled
from retrieve_rerank.models.worker import Worker
from retrieve_rerank.types import Hit, Passage, Scorer


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer says about some texts, in their order: logits (n,) and whether each text was seen whole."""

    logits: npt.NDArray[np.floating]
    truncated: Sequence[bool]


class Ranker(ABC):
    """Ranks passages by what a scorer says about their texts."""

    @abstractmethod
    def _score(self, query: str, texts: list[str]) -> Scores: ...

    @abstractmethod
    async def _ascore(self, query: str, texts: list[str]) -> Scores: ...

    def rank(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """Order passages by their relevance to a query, best first.

        Args:
            query: Not empty.
            passages: Texts, passages and hits, in any mix; never modified. A text gets its position as id. Equal texts
                are scored once. The first stage's rank and score of a hit are kept.
            top_n: How many to return; None returns all.
            score_threshold: Hits whose relevance score is below are left out; 0.0 leaves out none.

        Returns:
            Hits sorted by logit, ties in input order. `score` is the sigmoid of the logit, computed in float64.

        Raises:
            InvalidInputError: If an argument cannot be used.
            ModelError: If the model gives NaN or a wrong number of scores.
        """
        job = _Job(query, passages, top_n, score_threshold)
        return job.hits(self._score(query, job.texts)) if job.texts else []

    async def arank(
        self,
        query: str,
        passages: Iterable[str | Passage | Hit],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """As `rank`, without blocking the event loop."""
        job = _Job(query, passages, top_n, score_threshold)
        return job.hits(await self._ascore(query, job.texts)) if job.texts else []


class ScorerRanker(Ranker):
    """Ranks by any `Scorer`, whose scores are logits or probabilities."""

    def __init__(self, scorer: Scorer, scores: Scale = "logits") -> None:
        self.scorer = scorer
        self._scaled = scaled(scorer, scores)
        self._worker = Worker(f"retrieve-rerank {type(scorer).__name__}")

    def _score(self, query: str, texts: list[str]) -> Scores:
        return Scores(self._scaled.score(query, texts), [False] * len(texts))

    async def _ascore(self, query: str, texts: list[str]) -> Scores:
        ascore = getattr(self._scaled, "ascore", None)
        if ascore is None:
            return await self._worker.arun(self._score, query, texts)
        return Scores(await ascore(query, texts), [False] * len(texts))


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
        self, query: str, passages: Iterable[str | Passage | Hit], top_n: int | None, score_threshold: float | None
    ) -> None:
        check_query(query)
        self.top_n = None if top_n is None else check_count(top_n, "top_n")
        self.threshold = check_threshold(score_threshold)
        if isinstance(passages, (str, Passage, Hit)) or not isinstance(passages, Iterable):
            raise InvalidInputError(
                f"passages must be a list of texts, passages or hits, got {type(passages).__name__}; wrap one: [...]"
            )
        self.candidates = [_as_hit(item, position) for position, item in enumerate(passages)]
        for candidate in self.candidates:
            check_encodable(candidate.passage.text, f"passage {candidate.passage.id!r}")
        self.texts = list(dict.fromkeys(candidate.passage.text for candidate in self.candidates))

    def hits(self, scores: Scores) -> list[Hit]:
        if scores.logits.shape != (len(self.texts),):
            raise ModelError(
                f"the cross-encoder was given {len(self.texts)} texts and returned scores of shape "
                f"{scores.logits.shape}; expected ({len(self.texts)},), one logit a text"
            )
        by_text = {
            text: (float(logit), bool(cut))
            for text, logit, cut in zip(self.texts, scores.logits, scores.truncated, strict=True)
        }
        nan = [hit.passage.id for hit in self.candidates if math.isnan(by_text[hit.passage.text][0])]
        if nan:
            raise ModelError(
                f"the cross-encoder gave NaN for {len(nan)} of {len(self.candidates)} passages (first: {nan[0]!r}), so "
                "they have no order; check the weights, or use precision='float32'"
            )
        ranked = sorted(self.candidates, key=lambda hit: -by_text[hit.passage.text][0])
        hits = []
        for rank, hit in enumerate(ranked[: self.top_n], start=1):
            logit, truncated = by_text[hit.passage.text]
            score = sigmoid(logit)
            if self.threshold is not None and score < self.threshold:
                break
            hits.append(replace(hit, rank=rank, score=score, logit=logit, window=None, truncated=truncated))
        return hits


def _as_hit(item: str | Passage | Hit, position: int) -> Hit:
    if isinstance(item, Hit):
        return item
    if isinstance(item, str):
        item = Passage(str(position), item)
    if not isinstance(item, Passage):
        raise InvalidInputError(f"passages[{position}] must be a string, a Passage or a Hit, got {type(item).__name__}")
    return Hit(item, rank=position + 1, score=math.nan)
