"""Charts of what quality costs, and of what re-ranking changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.presenting import shown_time
from retrieve_rerank.evaluation.report.axes import Axis, axis_around
from retrieve_rerank.evaluation.report.chart import Disc, chart, discs, signed, strip
from retrieve_rerank.evaluation.report.frame import prose
from retrieve_rerank.evaluation.report.marks import Mark, mean_intervals, name_of, reranked
from retrieve_rerank.evaluation.results import Comparison, System
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_KIND = {"helps": "up", "hurts": "down", "no clear difference": "same"}


def latency(system: System) -> tuple[float, float]:
    """Return seconds a question at p50 and p95, both stages together."""
    if system.total is not None:
        return system.total.p50, system.total.p95
    more = (0.0, 0.0) if system.rerank is None else (system.rerank.p50, system.rerank.p95)
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
                mark.label,
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
            f'<li>{mark.chip}<span>{name_of(system.name)} <span class="soft">{shown}{ceiling}<br>{times}</span></span>'
            "</li>"
        )
    x = axis_around((value for point in points for value in (point.x, point.x_to or point.x)), log=True, margin=0.12)
    reach = [value for point in points for value in (point.low, point.high, point.ceiling or point.high)]
    y = axis_around(reach)
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
    axis = axis_around([end for one in evaluation.comparisons for end in (one.low, one.high, 0.0)], margin=0.1)
    rows = []
    for system, _ in reranked(evaluation):
        verdict = badge(evaluation.comparison(system.name))
        rows.append(head_row(f"{drawn[system.name].chip} {name_of(system.name)} {verdict}"))
        for measure in evaluation.measures:
            one = evaluation.comparison(system.name, measure)
            rows.append(change_row(axis, measure, one.difference, one.low, one.high, _KIND[one.verdict]))
    return forest(rows, "Change by re-ranking, question by question, with 95 % intervals", axis)


def badge(comparison: Comparison) -> str:
    """Return the verdict as HTML."""
    return f'<span class="verdict {_KIND[comparison.verdict]}">{comparison.verdict}</span>'


def head_row(title: str) -> str:
    """Return a row of `forest` that names those below it, from HTML."""
    return f'<tr class="head"><th colspan="3" scope="rowgroup">{title}</th></tr>'


def change_row(axis: Axis, label: str, difference: float, low: float, high: float, kind: str) -> str:
    """Return a row of `forest`."""
    text = f"{signed(difference, plus=True)} [{signed(low, plus=True)}, {signed(high, plus=True)}]"
    drawing = strip(axis, low, high, difference, kind, f"{label}: {text}")
    return (
        f'<tr><th scope="row">{escaped(label)}</th><td class="draw">{drawing}</td><td class="number">{text}</td></tr>'
    )


def forest(rows: list[str], caption: str, axis: Axis) -> str:
    """Return a table of intervals on one scale."""
    ticks = "".join(
        f'<text class="tick" x="{axis.at(tick)}%" y="12" text-anchor="middle">'
        f"{signed(tick, 2, plus=True) if tick else 'no change'}</text>"
        for tick in axis.ticks(4)
    )
    scale = f'<svg class="scale" width="100%" height="16" aria-hidden="true">{ticks}</svg>'
    return (
        f'<table class="forest"><caption>{prose(caption)}</caption><thead><tr><th scope="col"><span class="hidden">of'
        f'</span></th><th scope="col" class="draw"><span class="hidden">drawn</span>{scale}</th><th scope="col" '
        f'class="number">{prose("change [95 % interval]")}</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def shown_time_short(seconds: float) -> str:
    """Return a round time for an axis."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.999:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e6:g} µs"
