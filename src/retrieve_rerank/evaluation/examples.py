"""The questions on which re-ranking gained and lost most, and the texts that a look at them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.results import TIE, System

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.dataset import Dataset
    from retrieve_rerank.evaluation.running import Stage

SHOWN = 10  # ranks of each side
_EACH = 5  # questions that gained, and that lost
_LONGEST = 240  # characters of a text that are kept


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its value before and after re-ranking."""

    query: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


def examples(system: System, baseline: System, measure: str) -> tuple[list[Example], list[Example]]:
    """Return the questions that gained most and those that lost most, the largest change first."""
    before, after = baseline.per_query[measure], system.per_query[measure]
    every = [Example(query, before[query], after[query]) for query in sorted(after)]
    gained = sorted((one for one in every if one.change > TIE), key=lambda one: -one.change)
    lost = sorted((one for one in every if one.change < -TIE), key=lambda one: one.change)
    return gained[:_EACH], lost[:_EACH]


def missed(system: System, query: str, judgements: Mapping[str, int]) -> list[str]:
    """Return the relevant passages of a question that are not among the candidates, the most relevant first."""
    found = set(system.run[query])
    relevant = sorted((-relevance, passage) for passage, relevance in judgements.items() if relevance > 0)
    return [passage for _, passage in relevant if passage not in found]


def texts_of(stages: Sequence[Stage], systems: Sequence[System], measure: str, dataset: Dataset) -> dict[str, str]:
    """Return the starts of the passages that are shown with the examples, by id."""
    by_name = {system.name: (system, stage) for system, stage in zip(systems, stages, strict=True)}
    texts: dict[str, str] = {}
    absent: set[str] = set()
    for system, stage in by_name.values():
        if system.baseline is None:
            continue
        baseline, first = by_name[system.baseline]
        for one in (one for side in examples(system, baseline, measure) for one in side):
            shown = {*system.run[one.query][:SHOWN], *baseline.run[one.query][:SHOWN]}
            for hit in (*first.hits[one.query], *stage.hits[one.query]):
                if hit.passage.id in shown:
                    texts.setdefault(hit.passage.id, _start(hit.passage.text))
            absent.update(missed(system, one.query, dataset.judgements[one.query])[:SHOWN])
    if absent:
        texts = {
            **{passage.id: _start(passage.text) for passage in dataset.passages if passage.id in absent},
            **texts,
        }
    return texts


def _start(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
