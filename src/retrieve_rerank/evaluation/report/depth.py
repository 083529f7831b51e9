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
from retrieve_rerank.view import escaped

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
        ceiling: What a perfect re-ranking of as many would reach; None where that is not known.
    """

    depth: int
    quality: float
    low: float
    high: float
    ceiling: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality by depth of one way to re-rank: its label and colour, its name, its first stage's mean, its depths."""

    mark: Mark
    name: str
    before: float
    depths: Sequence[Depth]


def depths(evaluation: Evaluation, system: System, baseline: System) -> list[Depth]:
    """Return what re-ranking only the first candidates of the first stage would have reached, by their number."""
    measure, judgements = evaluation.measures[0], evaluation.judgements
    levels = _levels(baseline.fetch_k)
    seen = cutoff(measure)
    place = {query: {passage: at for at, passage in enumerate(ids)} for query, ids in system.run.items()}
    quality: dict[str, Mapping[str, float]] = {}
    perfect: list[float] = []
    for depth in levels:
        found, best = {}, {}
        for query, ids in baseline.run.items():
            relevance = judgements[query]
            found[query] = sorted(ids[:depth], key=place[query].__getitem__)[:seen]
            best[query] = sorted(ids[:depth], key=lambda passage: -relevance.get(passage, 0))[:seen]
        quality[str(depth)] = per_query([measure], judgements, found)[measure]
        values = per_query([measure], judgements, best)[measure]
        perfect.append(_mean(values))
    intervals = mean_intervals(quality, resamples=min(_RESAMPLES, evaluation.resamples), seed=evaluation.seed)
    return [
        Depth(depth, _mean(values), *intervals[str(depth)], ceiling)
        for depth, values, ceiling in zip(levels, quality.values(), perfect, strict=True)
    ]


def depth_charts(evaluation: Evaluation, drawn: Mapping[str, Mark]) -> str:
    """Return a chart a re-ranked system with its numbers; empty where there is no depth to choose."""
    measure = evaluation.measures[0]
    return curve_charts(
        measure,
        [
            Curve(drawn[system.name], system.name, baseline.means[measure], depths(evaluation, system, baseline))
            for system, baseline in reranked(evaluation)
            if baseline.fetch_k > 1
        ],
    )


def curve_charts(measure: str, curves: Sequence[Curve]) -> str:
    """Return charts of quality by depth, all on one scale; empty if there are none."""
    if not curves:
        return ""
    reach = [curve.before for curve in curves]
    for curve in curves:
        for one in curve.depths:
            reach += [one.low, one.high, one.high if one.ceiling is None else one.ceiling]
    y = axis_around(reach)
    return f'<div class="panels">{"".join(_panel(measure, y, curve) for curve in curves)}</div>'


def _panel(name: str, y: Axis, curve: Curve) -> str:
    measure = escaped(name)
    found, last = curve.depths, curve.depths[-1]
    x = Axis(float(found[0].depth), float(last.depth), log=True)
    limits = [(one.depth, one.ceiling) for one in found if one.ceiling is not None]
    shapes = (
        band(x, y, [(one.depth, one.low, one.high) for one in found], "band")
        + (line(x, y, limits, "limit") if limits else "")
        + line(x, y, [(found[0].depth, curve.before), (last.depth, curve.before)], "before")
        + line(x, y, [(one.depth, one.quality) for one in found], "curve")
    )
    best = max(found, key=lambda one: one.quality)
    dot = f'<circle class="best" cx="{x.at(best.depth)}%" cy="{100 - y.at(best.quality)}%" r="4.5"/>'
    whole = "" if best is last else f"; all of them {signed(last.quality)}"
    said = (
        f"highest at {best.depth} of {last.depth} candidates, {signed(best.quality)}{whole}; not re-ranked "
        f"{signed(curve.before)}"
    )
    drawing = chart(
        x,
        y,
        stretched(shapes) + dot,
        title=f"{name} of {curve.name} by the number of candidates re-ranked: {said}",
        x_name="candidates fetched and re-ranked (logarithmic)",
        y_name=name,
        x_label=lambda value: f"{value:g}",
        x_ticks=x.ticks(7),
        height=220,
    )
    rows = "".join(
        f'<tr><th scope="row">{one.depth}</th><td>{signed(one.quality)}</td><td>{signed(one.low)} to {signed(one.high)}'
        f"</td><td>{'' if one.ceiling is None else signed(one.ceiling)}</td></tr>"
        for one in found
    )
    head = "".join(f'<th scope="col">{column}</th>' for column in ("depth", measure, "95\u00a0%", "ceiling"))
    return (
        f'<figure class="panel hue{curve.mark.hue % HUES}"><figcaption>{curve.mark.chip} {name_of(curve.name)}: {said}.'
        f'</figcaption>{drawing}<details><summary>numbers</summary><table class="plain"><caption class="hidden">'
        f"{measure} by depth</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details></figure>"
    )


def _levels(deepest: int) -> list[int]:
    levels = [step * factor for factor in (1, 100, 10_000) for step in _LEVELS]
    return [*(level for level in dict.fromkeys(levels) if level < deepest), deepest]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
