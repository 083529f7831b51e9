"""Is a difference more than chance? Paired bootstrap intervals, paired randomisation tests, Holm's correction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count

Array = npt.NDArray[np.float64]

_CELLS = 4_000_000  # of the random matrix that is held at once
_EQUAL = 1e-12  # what rounding may do to a mean of measures, which lie in [0, 1]


def check_draws(resamples: int, seed: int) -> tuple[int, int]:
    """Return both as plain ints, or raise InvalidInputError if intervals and tests cannot be drawn so."""
    # A million gives more digits than anybody reads.
    return check_count(resamples, "resamples", most=1_000_000), check_count(seed, "seed", least=0)


def mean(values: Array, axis: int = 0) -> Array:
    """Return means of the values that are there; NaN, where a measure has no value, is left out, and of none is NaN."""
    if not np.isnan(values).any():
        return np.asarray(values.mean(axis=axis))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(values, axis=axis) / (~np.isnan(values)).sum(axis=axis))


def bootstrap_interval(differences: Array, *, resamples: int, seed: int) -> Array:
    """Return 95 % intervals of mean differences, by the percentiles of a paired bootstrap over questions.

    Args:
        differences: Array (questions, comparisons), NaN where there is no value. All comparisons see the same resampled
            questions.
        resamples: How often the questions are drawn anew, with replacement.
        seed: Of the draws.

    Returns:
        Array (comparisons, 2): lower and upper ends.
    """
    n = len(differences)
    random = np.random.default_rng(seed)
    means = []
    for rows in _chunks(resamples, n):
        drawn = random.integers(0, n, size=(rows, n))
        means.append(np.stack([mean(column[drawn], axis=1) for column in differences.T], axis=1))
    known = [column[~np.isnan(column)] for column in np.concatenate(means).T]
    return np.array([np.percentile(column, [2.5, 97.5]) if column.size else (np.nan, np.nan) for column in known])


def randomisation_p(differences: Array, *, resamples: int, seed: int) -> Array:
    """Return two-sided p-values of mean differences, by a paired randomisation test.

    If the two systems were alike, each question's difference could as well have the other sign. The p-value is the
    share of sign patterns whose mean is at least as far from 0 as the one that was seen: of all patterns where there
    are no more than `resamples`, else of random ones, the seen one among them, so that it is never 0.

    Args:
        differences: Array (questions, comparisons), NaN where there is no value.
        resamples: Number of random sign patterns.
        seed: Of the patterns.

    Returns:
        Array (comparisons,).
    """
    n = len(differences)
    differences = np.nan_to_num(differences)  # 0 has no sign to change
    seen = np.abs(differences.mean(axis=0)) - _EQUAL
    if n < 60 and 2**n <= resamples:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return np.asarray((np.abs(signs @ differences / n) >= seen).mean(axis=0))
    random = np.random.default_rng(seed)
    further = np.ones(differences.shape[1])
    for rows in _chunks(resamples, n):
        signs = random.integers(0, 2, size=(rows, n)) * 2.0 - 1.0
        further += (np.abs(signs @ differences / n) >= seen).sum(axis=0)
    return np.asarray(further / (resamples + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for step, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - step)))
        corrected[position] = largest
    return corrected


def _chunks(resamples: int, n: int) -> list[int]:
    rows = max(1, _CELLS // n)
    full, rest = divmod(resamples, rows)
    return [rows] * full + ([rest] if rest else [])
