"""What a system is called in charts: its label and colour; and the intervals that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrieve_rerank.evaluation.report.chart import chip
from retrieve_rerank.evaluation.results import System
from retrieve_rerank.evaluation.significance import bootstrap_interval
from retrieve_rerank.view import cut, escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_NAME = 120  # characters of a name beside charts


@dataclass(frozen=True, slots=True)
class Mark:
    """How a system is drawn: its label in the table, the colour of its first stage, filled where it is re-ranked."""

    label: str
    hue: int
    filled: bool

    @property
    def chip(self) -> str:
        """The label as HTML."""
        return chip(self.label, self.hue, filled=self.filled)


def marks(evaluation: Evaluation) -> dict[str, Mark]:
    """Return how each system is drawn."""
    hues: dict[str, int] = {}
    for system in evaluation.systems:
        hues.setdefault(system.baseline or system.name, len(hues))
    return {
        system.name: Mark(str(number), hues[system.baseline or system.name], system.baseline is not None)
        for number, system in enumerate(evaluation.systems, start=1)
    }


def reranked(evaluation: Evaluation) -> list[tuple[System, System]]:
    """Return the re-ranked systems, each with its first stage."""
    return [(system, evaluation[system.baseline]) for system in evaluation.systems if system.baseline is not None]


def mean_intervals(
    values: Mapping[str, Mapping[str, float]], *, resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the 95 % bootstrap interval of the mean of each row of values by question."""
    questions = sorted(next(iter(values.values())))
    columns = np.array([[row[question] for row in values.values()] for question in questions])
    ends = bootstrap_interval(columns, resamples=resamples, seed=seed).tolist()
    return {name: (low, high) for name, (low, high) in zip(values, ends, strict=True)}


def name_of(text: str) -> str:
    """Return a name for a page, isolated from the direction of what is around it."""
    return f"<bdi>{escaped(cut(text, _NAME))}</bdi>"
