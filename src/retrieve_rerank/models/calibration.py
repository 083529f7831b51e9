"""What makes a probability of a logit: a temperature and an offset, stated by a checkpoint, given, or fitted.

A cross-encoder's logits order passages. Whether the sigmoid of one is the probability that its passage is relevant
depends on how the model was trained: one that was distilled from another's scores may give 0.95 to what is irrelevant.
A calibration changes what a logit means, and never the order.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieve_rerank._files import check_path, write_text
from retrieve_rerank.checks import number_of
from retrieve_rerank.errors import InvalidInputError, shown, warn_caller

Floats = npt.NDArray[np.float64]

_STEPS = 100  # of Newton's method, which needs about ten
# The logits of the least float64 above 0 and the greatest below 1 are -744.4 and 36.7: 0 and 1 lie outside, so that
# they tie with nothing, and have a sigmoid of 0.0 and 1.0.
_OF_ZERO, _OF_ONE = -746.0, 38.0
_FEWEST = 20  # pairs of which a precision is known
_PRUDENT = 0.67  # standard errors below which one of four samples lies
_NORMAL = 1.96  # standard errors to each side that hold 95 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a relevance is made of a logit: `sigmoid(logit / temperature + offset)`.

    Attributes:
        temperature: Above 0. More makes the model less sure of itself.
        offset: Log-odds that are added. Less than 0 where fewer passages are relevant than the model takes for granted.
        source: Where it comes from, in words.
        queries: Of the fit; 0 where nothing was fitted.
        pairs: Of query and passage, of the fit.
        relevant: How many of them are relevant.
        covariance: Variance of 1 / temperature, its covariance with the offset, and the variance of the offset, where
            these were fitted. Pairs of one query count as dependent.
        precision: The precision that `threshold` was looked for.
        threshold: The lowest relevance from which on the passages of the fit, 20 at least, have that precision
            together; None where none was looked for, or none has it, of which a warning tells.

    Raises:
        InvalidInputError: If temperature or offset cannot be used.

    Example:
        >>> from retrieve_rerank import Calibration
        >>> calibration = Calibration(temperature=2.0, offset=-1.0)
        >>> calibration.relevance(2.0), round(calibration.relevance(6.0), 3)
        (0.5, 0.881)
    """

    temperature: float = 1.0
    offset: float = 0.0
    source: str = "given"
    queries: int = 0
    pairs: int = 0
    relevant: int = 0
    covariance: tuple[float, float, float] | None = field(default=None, repr=False)
    precision: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        temperature, offset = number_of(self.temperature), number_of(self.offset)
        if not 0 < temperature < math.inf or not math.isfinite(offset):
            raise InvalidInputError(
                "a calibration is a temperature above 0 and an offset, both finite numbers; got "
                f"{shown(self.temperature)} and {shown(self.offset)}"
            )
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "offset", offset)

    def relevance(self, logit: float) -> float:
        """Return the probability in [0, 1] that a passage with this logit is relevant."""
        return sigmoid(logit / self.temperature + self.offset)

    def interval(self, logit: float) -> tuple[float, float]:
        """Return the bounds that hold the relevance of a logit with 95 % confidence, as far as the fit can tell.

        Raises:
            InvalidInputError: If it was not fitted.
        """
        if self.covariance is None:
            raise InvalidInputError(f"this calibration was not fitted ({self.source}), so nobody knows how sure it is")
        slope, both, offset = self.covariance
        error = _NORMAL * math.sqrt(max(0.0, slope * logit**2 + 2 * both * logit + offset))
        middle = logit / self.temperature + self.offset
        return sigmoid(middle - error), sigmoid(middle + error)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, which `calibration=` takes by its path."""
        write_text(json.dumps(asdict(self), indent=2) + "\n", path, "the calibration")


UNCALIBRATED = Calibration(source="none: the sigmoid of the logit, for which the checkpoint may not be trained")


def as_calibration(value: object) -> Calibration:
    """Return what `calibration=` of a model was given: a calibration, its two numbers, or the path of a file.

    Raises:
        InvalidInputError: If it is none of these.
    """
    if isinstance(value, Calibration):
        return value
    if isinstance(value, (str, os.PathLike)):
        return _read(check_path(value, "calibration"))
    if isinstance(value, Sequence) and len(value) == 2:
        return Calibration(*value)
    raise InvalidInputError(
        "calibration must be a Calibration, a temperature with an offset such as (2.0, -1.0), or the path of a file "
        f"that Calibration.save wrote; got {shown(value)}"
    )


def _read(path: Path) -> Calibration:
    wrong = f"{str(path)!r} is no calibration that Calibration.save wrote"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not {"temperature", "offset"} <= set(found):
            raise InvalidInputError(wrong)
        covariance = found.get("covariance")
        return Calibration(**{**found, "covariance": None if covariance is None else tuple(covariance)})
    except OSError as error:
        raise InvalidInputError(f"the calibration {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InvalidInputError(wrong) from error


def fit(
    logits: Sequence[Floats], labels: Sequence[Floats], *, precision: float | None = None, source: str = "fitted"
) -> Calibration:
    """Fit temperature and offset to judged pairs, by logistic regression.

    The labels are drawn a little towards each other, as Platt does it, so that a few pairs do not make it certain.

    Args:
        logits: For each query, of its passages.
        labels: For each query, in [0, 1]: how relevant the passages are.
        precision: To look for a threshold for.
        source: What the result says of itself.

    Raises:
        InvalidInputError: If the pairs do not tell: all are alike, or higher logits are less relevant.
    """
    values, judged = np.concatenate(logits).astype(np.float64), np.concatenate(labels).astype(np.float64)
    relevant, others = float(judged.sum()), float((1 - judged).sum())
    if min(relevant, others) < 1 or np.ptp(values) == 0:
        raise InvalidInputError(
            f"of the {len(values)} pairs, {relevant:g} are relevant and {others:g} are not; a fit needs both, with "
            "different logits"
        )
    top, bottom = (relevant + 1) / (relevant + 2), 1 / (others + 2)
    targets = bottom + judged * (top - bottom)
    middle, width = values.mean(), values.std()
    rows = np.stack([(values - middle) / width, np.ones_like(values)], axis=1)
    weights, hessian = _newton(rows, targets)
    back = np.array([[1 / width, 0.0], [-middle / width, 1.0]])  # from these to the logits as they are
    slope, offset = back @ weights
    if slope <= 0:
        raise InvalidInputError(
            f"the passages that are judged relevant have lower logits than the others among these {len(values)} pairs, "
            "so no temperature fits; check the labels (1 is relevant), or give more pairs"
        )
    relevances = _sigmoids(rows @ weights)
    threshold = None
    if precision is not None and (threshold := _threshold(relevances, judged, precision)) is None:
        warn_caller(
            f"no threshold on these {len(values)} pairs leaves passages of which {precision:.0%} are relevant, so "
            "threshold is None, which leaves out nothing; ask for a lower precision, or take a better model",
            UserWarning,
        )
    # What the queries pull apart, as their passages are not independent of each other.
    starts = np.cumsum([0, *(len(each) for each in logits[:-1])])
    by_query = np.add.reduceat((targets - relevances)[:, None] * rows, starts)
    count = len(by_query)
    meat = by_query.T @ by_query * count / (count - 1) if count > 1 else hessian
    bread = back @ np.linalg.inv(hessian)
    spread = bread @ meat @ bread.T
    return Calibration(
        1 / float(slope),
        float(offset),
        source,
        count,
        len(values),
        round(relevant),
        (float(spread[0, 0]), float(spread[0, 1]), float(spread[1, 1])),
        precision,
        threshold,
    )


def _newton(rows: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Return the weights of a logistic regression, and the second derivatives there."""
    weights = np.zeros(rows.shape[1])
    scale = np.diag([1e-9 * len(rows)] * rows.shape[1])  # so that it can always be inverted
    hessian = scale
    loss = math.inf
    step = np.zeros_like(weights)
    for _ in range(_STEPS):
        scores = rows @ weights
        now = float(np.logaddexp(0, scores).sum() - targets @ scores)
        if now > loss:  # the step was too long
            step /= 2
            weights = weights - step
            if np.abs(step).max() < 1e-12:
                break
            continue
        found = _sigmoids(scores)
        hessian = rows.T @ (rows * (found * (1 - found))[:, None]) + scale
        step = np.linalg.solve(hessian, rows.T @ (targets - found))
        if np.abs(step).max() < 1e-10 * (1 + np.abs(weights).max()):
            break
        loss, weights = now, weights + step
    return weights, hessian


def _threshold(relevances: Floats, judged: Floats, precision: float) -> float | None:
    """Return the lowest relevance from which on all passages together have a precision; None if there is none.

    It must have it after a part of the standard error is taken off: of all thresholds of a sample, the one that just
    has it is often one by luck, and has less on other questions.
    """
    order = np.argsort(-relevances, kind="stable")
    counts = np.arange(1, len(order) + 1)
    shares = np.cumsum(judged[order]) / counts
    surely = shares - _PRUDENT * np.sqrt(shares * (1 - shares) / counts)
    last = np.append(relevances[order][1:] < relevances[order][:-1], True)  # equal ones are kept together
    enough = np.flatnonzero((surely >= precision) & last & (counts >= min(_FEWEST, len(order))))
    return float(relevances[order][enough[-1]]) if len(enough) else None


def _sigmoids(values: Floats) -> Floats:
    result: Floats = np.exp(-np.logaddexp(0, -values))
    return result


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)) in float64, without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))


def from_probabilities(probabilities: Floats) -> Floats:
    """Return the logits of numbers in [0, 1]; NaN stays NaN, for the ranking to refuse."""
    with np.errstate(divide="ignore"):  # 0 and 1 are dealt with below
        logits = np.log(probabilities) - np.log1p(-probabilities)
    return np.where(probabilities == 0, _OF_ZERO, np.where(probabilities == 1, _OF_ONE, logits))
