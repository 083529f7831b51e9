"""The charts' data, each made once for the page's own SVG and for matplotlib, which only this module imports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from string import ascii_uppercase
from typing import TYPE_CHECKING

from retrieve_rerank.errors import require
from retrieve_rerank.evaluation.choosing import Tuning
from retrieve_rerank.evaluation.measures import cutoff, per_query
from retrieve_rerank.evaluation.measuring import intervals, mean_of, perfect
from retrieve_rerank.evaluation.results import Evaluation, System
from retrieve_rerank.evaluation.words import shown_time
from retrieve_rerank.search_result import cut, minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70)  # depths of a curve, and a hundred times them
_RESAMPLES = 1000  # of the curves' bands, which are only looked at
_STEPS = (1.0, 2.0, 5.0, 10.0)  # between ticks
_RADIUS = 9  # of a labelled disc, in pixels
_NARROWEST = 200  # pixels that the inside of a chart has on the smallest phone
_NAME = 50  # characters of a name in matplotlib's legend


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale, linear or logarithmic."""

    low: float  # at 0 %
    high: float  # at 100 %
    log: bool = False  # whether equal factors are equal distances

    def at(self, value: float) -> float:
        """Return where a value lies, in per cent; what is outside lies on the edge."""
        low, high, value = (math.log(max(x, 1e-12)) if self.log else x for x in (self.low, self.high, value))
        return round(min(100.0, max(0.0, 100 * (value - low) / (high - low))), 2)

    def up(self, value: float) -> float:
        """Return where a value lies, in per cent from the top."""
        return round(100 - self.at(value), 2)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values within the scale, about `most` of them; logarithmic ones lie apart."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**e for e in exponents for f in factors if self.low <= f * 10.0**e <= self.high]
                places = [self.at(value) for value in found]
                if len(found) <= most and all(b - a >= 100 / most for a, b in pairwise(places)):
                    break
            return found if len(found) <= most else found[:: math.ceil(len(found) / most)]
        raw = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(s * unit for s in _STEPS if s * unit >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def axis_around(values: Iterable[float], *, log: bool = False, margin: float = 0.08) -> Axis:
    """Return a scale that shows all values, with a margin (a share of it) on both sides.

    Args:
        values: Those that are no numbers are left out.
        log: Whether it is logarithmic; values are then > 0.
        margin: Share of the span of the values.
    """
    known = [value for value in values if not math.isnan(value)] or [0.5]
    if log:
        known = [math.log10(max(value, 1e-7)) for value in known]
    low, high = min(known), max(known)
    least = 0.6 if log else 0.05  # span, so that one value has a scale as well
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    room = (high - low) * margin
    low, high = low - room, high + room
    return Axis(10.0**low, 10.0**high, log=True) if log else Axis(low, high)


@dataclass(frozen=True, slots=True)
class Mark:
    """How a system is drawn: its label in the table, the colour of its first stage, filled where it is re-ranked."""

    label: str
    hue: int
    filled: bool


@dataclass(frozen=True, slots=True)
class Point:
    """A system, or a setting or a depth of a series."""

    mark: Mark
    series: str  # its name, or that of its series
    x: float  # seconds a question, or a depth
    y: float  # mean of the measure
    low: float  # end of the 95 % interval of `y`
    high: float
    ceiling: float | None = None  # what a perfect re-ranking would reach, if it is known
    said: str = ""  # what it is, in words
    x_to: float | None = None  # end of a line to the right of it, if it has one
    best: bool = False  # whether nothing beats it
    chosen: bool = False  # whether it is the one to take


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of a measure, made once for whatever draws it."""

    title: str  # what it shows, in words
    x_name: str
    y_name: str  # the measure
    x: Axis
    y: Axis
    ticks: Sequence[tuple[float, str]]  # values of the horizontal axis that are written, with their texts
    points: Sequence[Point] = ()
    labelled: bool = False  # whether the points are discs with labels, and no dots of a series
    lines: Sequence[tuple[int, str, Sequence[tuple[float, float]]]] = ()  # colour, style, points
    band: Sequence[tuple[float, float, float]] = ()  # an area between two lines, as points (x, low, high)
    limit: float | None = None  # a value of the horizontal axis that is marked, if there is one
    said: str = ""  # what a reader sees in it, in words

    def shifts(self) -> list[float]:
        """Return by how many pixels each disc is moved, as little as keeps them apart on the smallest phone.

        Discs stay in their order, and a wider chart only draws them further apart.
        """
        shifts = [0.0] * len(self.points)
        order = sorted(range(len(self.points)), key=lambda place: self.points[place].x)
        step = min(2 * _RADIUS + 2, (_NARROWEST - 2 * _RADIUS) / max(1, len(order) - 1))
        wanted = [self.x.at(self.points[place].x) / 100 * _NARROWEST - n * step for n, place in enumerate(order)]
        # What would cover the one before goes to the right, or the one before to the left: half of each.
        right, left = accumulate(wanted, max), [*accumulate(reversed(wanted), min)][::-1]
        last = _NARROWEST - _RADIUS - (len(order) - 1) * step
        for place, at, low, high in zip(order, wanted, left, right, strict=True):
            shifts[place] = round(min(max((low + high) / 2, _RADIUS), last) - at, 1) if self.labelled else 0.0
        return shifts


def evaluation_marks(evaluation: Evaluation) -> dict[str, Mark]:
    """Return how each system is drawn: numbers, in the colour of the first stage."""
    hues: dict[str, int] = {}
    for system in evaluation.systems:
        hues.setdefault(system.baseline or system.name, len(hues))
    return {
        system.name: Mark(str(number), hues[system.baseline or system.name], system.baseline is not None)
        for number, system in enumerate(evaluation.systems, start=1)
    }


def tuning_marks(tuning: Tuning) -> dict[tuple[str, str | None], Mark]:
    """Return how each first stage, alone and with each cross-encoder, is drawn: letters, none of them a number."""
    hues = {name: hue for hue, name in enumerate(tuning.first_stages)}
    pairs = {(setting.first_stage, setting.cross_encoder) for setting in tuning.settings}
    order = [(one, other) for one in tuning.first_stages for other in (None, *tuning.cross_encoders)]
    return {
        pair: Mark(f"{ascii_uppercase[place % 26]}{place // 26 or ''}", hues[pair[0]], filled=pair[1] is not None)
        for place, pair in enumerate(pair for pair in order if pair in pairs)
    }


def evaluation_chart(evaluation: Evaluation) -> Chart:
    """Return quality against latency, a labelled disc a system."""
    measure, marks = evaluation.measures[0], evaluation_marks(evaluation)
    rows = [system.per_query[measure] for system in evaluation.systems]
    ends = intervals(rows, resamples=evaluation.resamples, seed=evaluation.seed)
    points = []
    for system, (low, high) in zip(evaluation.systems, ends, strict=True):
        p50, p95 = _latency(system)
        mean = system.means[measure]
        ceiling = None if system.baseline is None else evaluation[system.baseline].ceiling[measure]
        limit = "" if ceiling is None else f", ceiling {signed(ceiling)}"
        said = f"{signed(mean)} [{signed(low)}, {signed(high)}]{limit}; {shown_time(p50)} / {shown_time(p95)}"
        points.append(Point(marks[system.name], system.name, p50, mean, low, high, ceiling, said, p95))
    x = axis_around((value for point in points for value in (point.x, point.x_to or point.x)), log=True, margin=0.12)
    return Chart(
        f"{measure} against seconds a question of {len(points)} systems; the numbers are in the list beside it",
        "time a question, p50, with a line to p95 (logarithmic)",
        measure,
        x,
        axis_around(value for point in points for value in (point.low, point.high, point.ceiling or point.high)),
        [(tick, _short_time(tick)) for tick in x.ticks()],
        [point for point in points if not math.isnan(point.y)],
        labelled=True,
    )


def changes_axis(evaluation: Evaluation) -> Axis:
    """Return the scale of all changes, with no change on it."""
    return axis_around([end for one in evaluation.comparisons for end in (one.low, one.high, 0.0)], margin=0.1)


def tuning_chart(tuning: Tuning) -> Chart:
    """Return quality against latency, a line of dots for each first stage and cross-encoder."""
    limit, best, marks = tuning.latency_budget, tuning.frontier, tuning_marks(tuning)
    settings = tuning.at_weight(tuning.weight)
    seconds = [setting.latency.p95 for setting in settings]
    x = axis_around([*seconds, *([] if limit is None else [limit])], log=True)
    points, lines = [], []
    for (first_stage, cross_encoder), mark in marks.items():
        found = [one for one in settings if (one.first_stage, one.cross_encoder) == (first_stage, cross_encoder)]
        found.sort(key=lambda one: one.fetch_k)
        if cross_encoder is not None:
            line = [(one.latency.p95, one.quality) for one in found]
            lines.append((mark.hue, dash(tuning, cross_encoder), line))
        series = f"{first_stage} → {cross_encoder}" if cross_encoder is not None else f"{first_stage}, not re-ranked"
        for one in found:
            said = f"{one.name}: {signed(one.quality)}, {shown_time(one.latency.p95)}"
            x_y = (one.latency.p95, one.quality, one.low, one.high)
            points.append(Point(mark, series, *x_y, said=said, best=one in best, chosen=one == tuning.chosen))
    asked = "" if limit is None else f"; dashed: {shown_time(limit)} asked for"
    return Chart(
        f"{tuning.measure} against seconds a question of {len(points)} settings, which the table lists",
        f"time a question, p95 (logarithmic){asked}",
        tuning.measure,
        x,
        axis_around([setting.quality for setting in settings], margin=0.12),
        [(tick, _short_time(tick)) for tick in x.ticks()],
        points,
        lines=lines,
        limit=limit,
    )


def dash(tuning: Tuning, cross_encoder: str) -> str:
    """Return the style of a cross-encoder's lines."""
    return f"dash{tuning.cross_encoders.index(cross_encoder) % 3}"


def evaluation_depths(evaluation: Evaluation) -> list[Chart]:
    """Return, of each re-ranked system, what re-ranking fewer candidates would have reached, without scoring again."""
    measure, marks = evaluation.measures[0], evaluation_marks(evaluation)
    found = []
    for system in evaluation.systems:
        if system.baseline is not None and (baseline := evaluation[system.baseline]).fetch_k > 1:
            points = [
                Point(marks[system.name], system.name, depth, quality, low, high, ceiling)
                for depth, quality, low, high, ceiling in depths(evaluation, system, baseline)
            ]
            found.append((points, baseline.means[measure]))
    return _depth_charts(measure, found)


def depths(evaluation: Evaluation, system: System, baseline: System) -> list[tuple[int, float, float, float, float]]:
    """Return what re-ranking only the first candidates of the first stage would have reached, by their number.

    Returns:
        Depth, mean, both ends of its interval, and what a perfect re-ranking of as many would reach.
    """
    measure, judgements = evaluation.measures[0], evaluation.judgements
    levels = [step * factor for factor in (1, 100, 10_000) for step in _LEVELS if step * factor < baseline.fetch_k]
    levels = [*dict.fromkeys(levels), baseline.fetch_k]
    seen = cutoff(measure)
    place = {query: {passage: at for at, passage in enumerate(ids)} for query, ids in system.run.items()}
    quality: list[Mapping[str, float]] = []
    ceilings: list[float] = []
    for depth in levels:
        first = {query: ids[:depth] for query, ids in baseline.run.items()}
        found = {query: sorted(ids, key=place[query].__getitem__)[:seen] for query, ids in first.items()}
        best = {query: ids[:seen] for query, ids in perfect(first, judgements).items()}
        quality.append(per_query([measure], judgements, found)[measure])
        ceilings.append(mean_of(per_query([measure], judgements, best)[measure]))
    ends = intervals(quality, resamples=min(_RESAMPLES, evaluation.resamples), seed=evaluation.seed)
    return [
        (depth, mean_of(values), low, high, ceiling)
        for depth, values, (low, high), ceiling in zip(levels, quality, ends, ceilings, strict=True)
    ]


def evaluation_weights(evaluation: Evaluation) -> list[Chart]:
    """Return, of each re-ranked system, what every weight of the cross-encoder would have reached."""
    measure, marks = evaluation.measures[0], evaluation_marks(evaluation)
    found = []
    for system in evaluation.systems:
        if system.baseline is not None and system.by_weight:
            points = [
                Point(marks[system.name], system.name, weight, *reached)
                for weight, reached in sorted(system.by_weight.items())
            ]
            found.append((points, evaluation[system.baseline].means[measure]))
    return _weight_charts(measure, found)


def tuning_depths(tuning: Tuning) -> list[Chart]:
    """Return quality by depth of each first stage with each cross-encoder, where several depths were tried."""
    before = {one.first_stage: one.quality for one in tuning.settings if one.cross_encoder is None}
    found = []
    for (first_stage, cross_encoder), mark in tuning_marks(tuning).items():
        if cross_encoder is not None and len(tuning.depths) > 1:
            name, known = f"{first_stage} → {cross_encoder}", tuning.ceiling.get(first_stage, {})
            points = [
                Point(mark, name, one.fetch_k, one.quality, one.low, one.high, known.get(one.fetch_k))
                for one in tuning.curve(first_stage, cross_encoder, tuning.weight)
            ]
            found.append((points, before[first_stage]))
    return _depth_charts(tuning.measure, found)


def tuning_weights(tuning: Tuning) -> list[Chart]:
    """Return quality by weight of each first stage with each cross-encoder, as deep as is chosen, or else deepest."""
    depth = tuning.depths[-1] if tuning.chosen.cross_encoder is None else tuning.chosen.fetch_k
    alone = {one.first_stage: one for one in tuning.settings if one.cross_encoder is None}
    found = []
    for (first_stage, cross_encoder), mark in tuning_marks(tuning).items():
        if cross_encoder is not None:
            wanted = (first_stage, cross_encoder, depth)
            settings = [one for one in tuning.settings if (one.first_stage, one.cross_encoder, one.fetch_k) == wanted]
            points = [
                Point(mark, f"{first_stage} → {cross_encoder}", one.rerank_weight, one.quality, one.low, one.high)
                for one in (alone[first_stage], *sorted(settings, key=lambda one: one.rerank_weight))
            ]
            found.append((points, alone[first_stage].quality))
    return _weight_charts(tuning.measure, found)


def _depth_charts(measure: str, found: Sequence[tuple[Sequence[Point], float]]) -> list[Chart]:
    """Return charts of quality by depth from points and what the first stage alone reaches."""

    def said(best: Point, last: Point) -> str:
        whole = "" if best is last else f"; all of them {signed(last.y)}"
        return f"highest at {best.x:g} of {last.x:g} candidates, {signed(best.y)}{whole}"

    x_name, by = "candidates fetched and re-ranked (logarithmic)", "the number of candidates re-ranked"
    return _curves(measure, found, x_name, by, said, log=True)


def _weight_charts(measure: str, found: Sequence[tuple[Sequence[Point], float]]) -> list[Chart]:
    """Return charts of quality by the weight of the cross-encoder, likewise."""

    def said(best: Point, last: Point) -> str:
        return f"highest at {best.x:g}, {signed(best.y)}; the cross-encoder alone {signed(last.y)}"

    return _curves(measure, found, "rerank_weight", "rerank_weight", said)


def _curves(
    measure: str,
    found: Sequence[tuple[Sequence[Point], float]],
    x_name: str,
    by: str,
    said_of: Callable[[Point, Point], str],
    *,
    log: bool = False,
) -> list[Chart]:
    """Return charts of quality by `by`, all on one scale, from points and what the first stage alone reaches."""
    reach = [before for _, before in found]
    for points, _ in found:
        reach += [end for one in points for end in (one.low, one.high, one.ceiling or one.high)]
    y, charts = axis_around(reach), []
    for points, before in found:
        first, last, best = points[0], points[-1], max(points, key=lambda one: one.y)
        said, hue = f"{said_of(best, last)}; not re-ranked {signed(before)}", best.mark.hue
        limits = [(one.x, one.ceiling) for one in points if one.ceiling is not None]
        x = Axis(first.x, last.x, log=log)
        charts.append(
            Chart(
                f"{measure} of {best.series} by {by}: {said}",
                x_name,
                measure,
                x,
                y,
                [(tick, f"{tick:g}") for tick in x.ticks(7)],
                [replace(one, best=one is best) for one in points],
                lines=[
                    *([(hue, "limit", limits)] if limits else []),
                    (hue, "before", [(first.x, before), (last.x, before)]),
                    (hue, "curve", [(one.x, one.y) for one in points]),
                ],
                band=[(one.x, one.low, one.high) for one in points],
                said=said,
            )
        )
    return charts


def draw(result: Evaluation | Tuning, ax: Axes | None) -> Axes:
    """Draw quality against latency with matplotlib, on new axes if none are given."""
    pyplot = require("matplotlib.pyplot", extra="evaluation")
    move = require("matplotlib.transforms", extra="evaluation").offset_copy
    axes: Axes = pyplot.subplots(layout="constrained")[1] if ax is None else ax
    axes.set_xscale("log")
    chart = tuning_chart(result) if isinstance(result, Tuning) else evaluation_chart(result)
    series: dict[str, list[tuple[Point, float]]] = {}
    for point, shift in zip(chart.points, chart.shifts(), strict=True):
        series.setdefault(point.series, []).append((point, shift))
    for name, found in series.items():
        points, mark = [point for point, _ in found], found[0][0].mark
        # What would cover another one is drawn beside it.
        place, colour = move(axes.transData, fig=axes.figure, x=found[0][1], units="points"), f"C{mark.hue % 10}"
        axes.errorbar(
            [point.x for point in points],
            [point.y for point in points],
            # Rounding may put the mean a hair beyond the ends of its interval.
            yerr=[[max(0.0, p.y - p.low) for p in points], [max(0.0, p.high - p.y) for p in points]],
            fmt="o-" if mark.filled else "o" if chart.labelled else "D",
            color=colour,
            ecolor=(colour, 1.0 if chart.labelled else 0.35),
            markerfacecolor="none" if chart.labelled and not mark.filled else colour,
            markersize=6 if chart.labelled else 4,
            capsize=3 if chart.labelled else 0,
            label=_literal(name),
            transform=place,
        )
        for p in points:
            # A moved line tells the axes nothing of its reach.
            axes.update_datalim([(p.x, p.low), (p.x_to or p.x, p.ceiling or p.high)])
            if p.x_to is not None:
                axes.plot([p.x, p.x_to], [p.y, p.y], color=colour, linewidth=0.8, transform=place)
            if p.ceiling is not None:
                axes.plot([p.x, p.x], [p.high, p.ceiling], ":", color=colour, linewidth=0.8, transform=place)
                axes.plot([p.x], [p.ceiling], "_", markersize=12, color=colour, transform=place)
    axes.autoscale_view()
    if chart.limit is not None:
        axes.axvline(chart.limit, color="gray", linestyle="--", linewidth=0.8)
    if isinstance(result, Tuning):
        x, y, label = result.chosen.latency.p95, result.chosen.quality, _literal(f"chosen: {result.chosen.name}")
        axes.plot([x], [y], "o", markersize=14, markerfacecolor="none", color="black", label=label)
    axes.set_xlabel(chart.x_name)
    axes.set_ylabel(_literal(chart.y_name))
    axes.set_title(_literal(result.dataset))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    return axes


def signed(value: float, digits: int = 3, *, plus: bool = False) -> str:
    """Return a number with a true minus sign, and with a plus sign if wanted."""
    return minus(f"{value:+.{digits}f}" if plus else f"{value:.{digits}f}")


def _latency(system: System) -> tuple[float, float]:
    """Return seconds a question at p50 and p95, both stages together."""
    if system.total is not None:
        return system.total.p50, system.total.p95
    more = (0.0, 0.0) if system.rerank is None else (system.rerank.p50, system.rerank.p95)
    return system.retrieve.p50 + more[0], system.retrieve.p95 + more[1]


def _short_time(seconds: float) -> str:
    """Return a round time for an axis."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.999:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e6:g} µs"


def _literal(text: str) -> str:
    """Return text that is drawn as it is, if not too long: no mathematics between dollar signs, no hidden label."""
    text = cut(" ".join(text.encode("utf-8", "replace").decode("utf-8").split()), _NAME).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
