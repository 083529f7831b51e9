"""What other people's scorers return, on our scale: logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import InvalidInputError, ModelError, warn_caller
from retrieve_rerank.types import Scorer

Scale = Literal["logits", "probabilities"]
Logits = npt.NDArray[np.float64]

# The logits of the least float64 above 0 and the greatest below 1 are -744.4 and 36.7: 0 and 1 lie outside, so that
# they tie with nothing, and have a sigmoid of 0.0 and 1.0.
_OF_ZERO, _OF_ONE = -746.0, 38.0


class ScaledScorer:
    """A scorer whose scores leave as logits; made by `scaled`.

    Args:
        scorer: Anything with `score(query, texts)`.
        scores: What it returns: "logits", any real numbers, or "probabilities" in [0, 1].
    """

    def __init__(self, scorer: Scorer, scores: Scale) -> None:
        self.scorer = scorer
        self.scores = scores
        self._warned = False

    def score(self, query: str, texts: Sequence[str]) -> Logits:
        """Return an array (len(texts),) of logits.

        Raises:
            ModelError: If the scores are no numbers, or a probability lies outside [0, 1].
        """
        return self._scaled(self.scorer.score(query, texts), texts)

    def _scaled(self, given: npt.ArrayLike, texts: Sequence[str]) -> Logits:
        try:
            numbers = np.asarray(given, dtype=np.float64)
        except (ValueError, TypeError, RuntimeError) as error:  # the last of a tensor that has a gradient
            raise ModelError(
                f"{scorer_name(self.scorer)} must return one number a pair of query and text; its scores cannot be "
                f"read: {error}"
            ) from error
        if self.scores == "probabilities":
            return self._logits(numbers)
        if not self._warned and len(set(texts)) > 1 and _like_probabilities(numbers):
            self._warned = True
            warn_caller(
                f"every score that {scorer_name(self.scorer)} gave lies in [0, 1], as probabilities do, and is taken "
                "for a logit: the order is right, the relevance scores and thresholds are not. If they are "
                'probabilities, say so with scores="probabilities"',
                UserWarning,
            )
        return numbers

    def _logits(self, probabilities: Logits) -> Logits:
        outside = probabilities[(probabilities < 0) | (probabilities > 1)]
        if outside.size:
            raise ModelError(
                f"{scorer_name(self.scorer)} is said to give probabilities, but gave {outside.flat[0]:g}; expected "
                'numbers in [0, 1]. If its scores are logits, use scores="logits"'
            )
        return from_probabilities(probabilities)


class _AsyncScaledScorer(ScaledScorer):
    """The same of a scorer that has an async method of its own."""

    async def ascore(self, query: str, texts: Sequence[str]) -> Logits:
        return self._scaled(await self.scorer.ascore(query, texts), texts)  # type: ignore[attr-defined]


def _like_probabilities(scores: Logits) -> bool:
    # Nothing but 0 and 1 is a stub, or a label, and no probability.
    return bool(((scores >= 0) & (scores <= 1)).all() and ((scores > 0) & (scores < 1)).any())


def from_probabilities(probabilities: Logits) -> Logits:
    """Return the logits of numbers in [0, 1]; NaN stays NaN, for the ranking to refuse."""
    with np.errstate(divide="ignore"):  # 0 and 1 are dealt with below
        logits = np.log(probabilities) - np.log1p(-probabilities)
    return np.where(probabilities == 0, _OF_ZERO, np.where(probabilities == 1, _OF_ONE, logits))


def scaled(scorer: Scorer, scores: Scale) -> ScaledScorer:
    """Return `scorer` with its scores as logits."""
    check_scale(scores)
    own = callable(getattr(scorer, "ascore", None))
    return _AsyncScaledScorer(scorer, scores) if own else ScaledScorer(scorer, scores)


def check_scale(value: Scale) -> Scale:
    """Return `value`, or raise InvalidInputError if it is no scale."""
    if value not in get_args(Scale):
        raise InvalidInputError(f"scores must be one of {', '.join(get_args(Scale))}; got {value!r}")
    return value


def scorer_name(scorer: object) -> str:
    """Return the name of the model that scores where the object says it, else the name of its class."""
    names = [getattr(scorer, name, None) for name in ("model", "model_name")]
    return next((name for name in names if isinstance(name, str) and name), type(scorer).__name__)
