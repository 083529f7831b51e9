"""How quality depends on the depth of re-ranking: read from the rankings that are there, nothing is scored again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.measures import cutoff, per_query
from retrieve_rerank.evaluation.report.axes import Axis, axis_around
from retrieve_rerank.evaluation.report.chart import HUES, band, chart, line, signed, stretched
from retrieve_rerank.evaluation.report.marks import Mark, mean_intervals, name_of, reranked
from retrieve_rerank.evaluation.results import System

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_LEVELS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70)
_RESAMPLES = 1000  # of the bands, which are only looked at


@dataclass(frozen=True, slots=True)
class Depth:
    """Means when so many candidates are fetched and re-ranked.

    Attributes:
        depth: How many.
        quality: Mean of the measure.
        low: Lower end of its 95 % interval.
        high: Upper end.
        ceiling: What a perfect re-ranking of as many would reach.
    """

    depth: int
    quality: float
    low: float
    high: float
    ceiling: float


def depths(evaluation: Evaluation, system: System, baseline: System) -> list[Depth]:
    """Return what re-ranking only the first candidates of the first stage would have reached, by their number."""
    measure, judgements = evaluation.measures[0], evaluation.judgements
    levels = _levels(baseline.fetch_k)
    place = {query: {passage: at for at, passage in enumerate(ids)} for query, ids in system.run.items()}
    quality: dict[str, Mapping[str, float]] = {}
    perfect: dict[int, float] = {}
    for depth in levels:
        found, best = {}, {}
        for query, ids in baseline.run.items():
            relevance = judgements[query]
            found[query] = _top(measure, sorted(ids[:depth], key=place[query].__getitem__))
            best[query] = _top(measure, sorted(ids[:depth], key=lambda passage: -relevance.get(passage, 0)))
        quality[str(depth)] = per_query([measure], judgements, found)[measure]
        values = per_query([measure], judgements, best)[measure]
        perfect[depth] = sum(values.values()) / len(values)
    intervals = mean_intervals(quality, resamples=min(_RESAMPLES, evaluation.resamples), seed=evaluation.seed)
    return [
        Depth(depth, sum(values.values()) / len(values), *intervals[str(depth)], perfect[depth])
        for depth, values in zip(levels, quality.values(), strict=True)
    ]


def depth_charts(evaluation: Evaluation, drawn: Mapping[str, Mark]) -> str:
    """Return a chart a re-ranked system, all on one scale, with its numbers; empty where there is no depth to choose."""
    curves = [
        (system, baseline, depths(evaluation, system, baseline))
        for system, baseline in reranked(evaluation)
        if baseline.fetch_k > 1
    ]
    if not curves:
        return ""
    measure = evaluation.measures[0]
    reach = [
        value
        for _, baseline, curve in curves
        for value in (baseline.means[measure], *(v for one in curve for v in (one.low, one.high, one.ceiling)))
    ]
    y = axis_around(reach, within=(min(0.0, *reach), max(1.0, *reach)))
    panels = "".join(
        _panel(measure, y, drawn[system.name], system, baseline, curve) for system, baseline, curve in curves
    )
    return f'<div class="panels">{panels}</div>'


def _panel(measure: str, y: Axis, mark: Mark, system: System, baseline: System, curve: Sequence[Depth]) -> str:
    x = Axis(1.0, float(curve[-1].depth), log=True)
    before = baseline.means[measure]
    shapes = (
        band(x, y, [(one.depth, one.low, one.high) for one in curve], "band")
        + line(x, y, [(one.depth, one.ceiling) for one in curve], "limit")
        + line(x, y, [(1, before), (curve[-1].depth, before)], "before")
        + line(x, y, [(one.depth, one.quality) for one in curve], "curve")
    )
    best = max(curve, key=lambda one: one.quality)
    dot = f'<circle class="best" cx="{x.at(best.depth)}%" cy="{100 - y.at(best.quality)}%" r="4.5"/>'
    said = (
        f"highest at {best.depth} of {curve[-1].depth} candidates, {signed(best.quality)}; all of them "
        f"{signed(curve[-1].quality)}; not re-ranked {signed(before)}"
    )
    drawing = chart(
        x,
        y,
        stretched(shapes) + dot,
        title=f"{measure} of {system.name} by the number of candidates re-ranked: {said}",
        x_name="candidates fetched and re-ranked (logarithmic)",
        y_name=measure,
        x_label=lambda value: f"{value:g}",
        x_ticks=x.ticks(7),
        height=220,
    )
    rows = "".join(
        f'<tr><th scope="row">{one.depth}</th><td>{signed(one.quality)}</td><td>{signed(one.low)} to {signed(one.high)}'
        f"</td><td>{signed(one.ceiling)}</td></tr>"
        for one in curve
    )
    return (
        f'<figure class="panel hue{mark.hue % HUES}"><figcaption>{mark.chip} {name_of(system.name)}: {said}.</figcaption>'
        f"{drawing}<details><summary>numbers</summary><table class='plain'><thead><tr><th scope='col'>depth</th>"
        f"<th scope='col'>{measure}</th><th scope='col'>95 %</th><th scope='col'>ceiling</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details></figure>"
    )


def _levels(deepest: int) -> list[int]:
    levels = [step * factor for factor in (1, 100, 10_000) for step in _LEVELS]
    return [*(level for level in dict.fromkeys(levels) if level < deepest), deepest]


def _top(measure: str, ids: Sequence[str]) -> Sequence[str]:
    """Return what the measure looks at."""
    return ids[: cutoff(measure)]
