"""Both stages vote: one order from the cross-encoder's logits and the first stage's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import number_of
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.types import Hit

Array = npt.NDArray[np.float64]

_RRF_K = 60  # as usual in reciprocal rank fusion, for ranks that stand in for scores


def interpolate(hits: Sequence[Hit], logits: Sequence[float], weight: float) -> list[tuple[int, float | None]]:
    """Order the scored candidates of one query by both stages' scores.

    A candidate's combined score is `weight * z(logit) + (1 - weight) * z(retrieval score)`, where z takes off the mean
    over these candidates and divides by their standard deviation; where all are equal, z is 0. An infinite logit counts
    as one standard deviation beyond the finite ones.

    The first stage's order is the order given; of what has been re-ranked before, and so has logits, it is that of
    `retrieval_rank`, where these are all there and all different. Its scores vote if every candidate has a finite one
    and they never rise along that order. Otherwise, as without scores, after maximal marginal relevance, or with
    distances, 1 / (60 + rank) stands in for them.

    Args:
        hits: The candidates, whose logits are known.
        logits: Of each; none is NaN.
        weight: Of the logits, in [0, 1]. At 1 the order is by the logits alone, ties in the order given; at 0 it is the
            first stage's; between them ties are in the first stage's order.

    Returns:
        The places of the candidates in `hits`, best first, each with its combined score; with None where the weight is
        1, as nothing is combined.
    """
    if weight == 1:
        return [(place, None) for place in sorted(range(len(hits)), key=lambda place: -logits[place])]
    given = [hit.retrieval_rank for hit in hits]
    again = any(hit.logit is not None for hit in hits) and None not in given and len(set(given)) == len(given)
    order = sorted(range(len(hits)), key=lambda place: (given[place] or 0) if again else place)
    scores = [number_of(hits[place].retrieval_score) for place in order]
    if not (all(map(math.isfinite, scores)) and all(a >= b for a, b in pairwise(scores))):
        scores = [1 / (_RRF_K + rank) for rank in range(1, len(order) + 1)]
    combined = weight * _standardised([logits[place] for place in order]) + (1 - weight) * _standardised(scores)
    # Sorting is stable: what is equal stays in the first stage's order.
    return sorted(zip(order, combined.tolist(), strict=True), key=lambda item: -item[1])


def check_weight(value: float) -> float:
    """Return a `rerank_weight` as a float in [0, 1], or raise InvalidInputError."""
    if not 0 <= (number := number_of(value)) <= 1:
        raise InvalidInputError(
            "rerank_weight must be a number from 0 (the first stage's order) to 1 (the cross-encoder's), got "
            f"{shown(value)}"
        )
    return number


def _standardised(values: Sequence[float]) -> Array:
    """Return values with mean 0 and standard deviation 1, none of them infinite; zeros where all are equal."""
    numbers = np.array(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    exponent = math.frexp(np.abs(finite).max(initial=0.0))[1]
    numbers, finite = np.ldexp(numbers, -exponent), np.ldexp(finite, -exponent)  # so that no square is infinite or 0
    if len(finite) < len(numbers):
        finite = finite if len(finite) else np.zeros(1)
        beyond = finite.std() or 1.0
        numbers = np.clip(numbers, finite.min() - beyond, finite.max() + beyond)
    if not len(numbers) or numbers.min() == numbers.max():
        return np.zeros(len(numbers))
    return np.asarray((numbers - numbers.mean()) / numbers.std())
