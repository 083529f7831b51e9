"""Charts of what quality costs, and of what re-ranking changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.presenting import shown_time
from retrieve_rerank.evaluation.report.axes import Axis, axis_around
from retrieve_rerank.evaluation.report.chart import Disc, chart, discs, signed, strip
from retrieve_rerank.evaluation.report.marks import Mark, mean_intervals, name_of
from retrieve_rerank.evaluation.results import Comparison, System
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_KIND = {"helps": "up", "hurts": "down", "no clear difference": "same"}


def latency(system: System) -> tuple[float, float]:
    """Return seconds a question at p50 and p95, both stages together."""
    rerank = system.rerank
    more = (0.0, 0.0) if rerank is None else (rerank.p50, rerank.p95)
    return system.retrieve.p50 + more[0], system.retrieve.p95 + more[1]


def quality_and_latency(evaluation: Evaluation, drawn: dict[str, Mark]) -> str:
    """Return the chart of quality against latency, and what its numbers are."""
    measure = evaluation.measures[0]
    intervals = mean_intervals(
        {system.name: system.per_query[measure] for system in evaluation.systems},
        resamples=evaluation.resamples,
        seed=evaluation.seed,
    )
    points, key = [], []
    for system in evaluation.systems:
        mark, (low, high), (p50, p95) = drawn[system.name], intervals[system.name], latency(system)
        limit = None if system.baseline is None else evaluation[system.baseline].ceiling[measure]
        mean = system.means[measure]
        shown = f"{signed(mean)} [{signed(low)}, {signed(high)}]"
        ceiling = "" if limit is None else f", ceiling {signed(limit)}"
        times = f"{shown_time(p50)} / {shown_time(p95)}"
        points.append(
            Disc(
                mark.number,
                mark.hue,
                mark.filled,
                p50,
                mean,
                low,
                high,
                f"{system.name}: {measure} {shown}{ceiling}; {times}",
                p95,
                limit,
            )
        )
        key.append(
            f'<li>{mark.chip}<span>{name_of(system.name)} <span class="soft">{shown}{ceiling}<br>{times}</span></span></li>'
        )
    x = axis_around((value for point in points for value in (point.x, point.x_to or point.x)), log=True, margin=0.12)
    reach = [value for point in points for value in (point.low, point.high, point.ceiling or point.high)]
    y = axis_around(reach, within=(min(0.0, *reach), max(1.0, *reach)))
    drawing = chart(
        x,
        y,
        discs(x, y, points),
        title=f"{measure} against seconds a question of {len(points)} systems; the numbers are in the list beside it",
        x_name="time a question, p50, with a line to p95 (logarithmic)",
        y_name=measure,
        x_label=shown_time_short,
    )
    return f'<div class="with-key">{drawing}<ol class="key">{"".join(key)}</ol></div>'


def changes(evaluation: Evaluation, drawn: dict[str, Mark]) -> str:
    """Return the table of differences with their intervals, all measures."""
    axis = change_axis(evaluation.comparisons)
    rows = []
    for system in dict.fromkeys(comparison.system for comparison in evaluation.comparisons):
        first = evaluation.comparison(system)
        rows.append(
            f'<tr class="head"><th colspan="3" scope="rowgroup">{drawn[system].chip} {name_of(system)} '
            f"{badge(first)}</th></tr>"
        )
        for measure in evaluation.measures:
            one = evaluation.comparison(system, measure)
            rows.append(change_row(axis, measure, one.difference, one.low, one.high, _KIND[one.verdict]))
    return forest(rows, "Change by re-ranking, question by question, with 95 % intervals", axis)


def change_axis(found: tuple[Comparison, ...]) -> Axis:
    """Return a scale for differences, the same for all, with 0 on it."""
    ends = [value for one in found for value in (one.low, one.high, 0.0)]
    return axis_around(ends, margin=0.1)


def badge(comparison: Comparison) -> str:
    """Return the verdict as HTML."""
    return f'<span class="verdict {_KIND[comparison.verdict]}">{comparison.verdict}</span>'


def change_row(axis: Axis, label: str, difference: float, low: float, high: float, kind: str) -> str:
    """Return a row of `forest`."""
    text = f"{signed(difference, plus=True)} [{signed(low, plus=True)}, {signed(high, plus=True)}]"
    drawing = strip(axis, low, high, difference, kind, f"{label}: {text}")
    return (
        f'<tr><th scope="row">{escaped(label)}</th><td class="draw">{drawing}</td><td class="number">{text}</td></tr>'
    )


def forest(rows: list[str], caption: str, axis: Axis) -> str:
    """Return a table of intervals on one scale."""
    ends = f'<span class="ends"><span>{signed(axis.low, 2, plus=True)}</span><span>{signed(axis.high, 2, plus=True)}</span></span>'
    return (
        f'<table class="forest"><caption>{escaped(caption)}</caption><thead><tr><th scope="col">'
        f'<span class="hidden">what</span></th><th scope="col" class="draw">{ends}</th>'
        f'<th scope="col" class="number">change [95 %]</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def shown_time_short(seconds: float) -> str:
    """Return a round time for an axis."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.999:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e6:g} µs"
