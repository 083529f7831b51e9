"""Charts as inline SVG.

Widths are in per cent, heights and letters in pixels, so that letters have their full size on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from retrieve_rerank.evaluation.report.axes import Axis
from retrieve_rerank.view import escaped, minus

HUES = 6  # colours in report.css
_RADIUS = 9  # of a labelled disc, in pixels
_NARROWEST = 200  # pixels that the inside of a chart has on the smallest phone


@dataclass(frozen=True, slots=True)
class Disc:
    """A labelled point of a chart.

    Attributes:
        label: What the table calls it.
        hue: Number of its colour.
        filled: Whether it is re-ranked; a first stage is hollow.
        x: Value.
        y: Value.
        low: Lower end of the interval of `y`.
        high: Upper end.
        said: What it is, in words.
        x_to: End of a line to the right of it, if it has one.
        ceiling: A value above it that is marked as a limit, if there is one.
    """

    label: str
    hue: int
    filled: bool
    x: float
    y: float
    low: float
    high: float
    said: str
    x_to: float | None = None
    ceiling: float | None = None


def chart(
    x: Axis,
    y: Axis,
    inside: str,
    *,
    title: str,
    x_name: str,
    y_name: str,
    x_label: Callable[[float], str],
    x_ticks: Sequence[float] | None = None,
    height: int = 280,
) -> str:
    """Return a chart with its grid, ticks and names around what is inside; `y` is a mean of a measure in [0, 1]."""
    grid = [
        f'<line class="grid" x1="0" x2="100%" y1="{100 - y.at(tick)}%" y2="{100 - y.at(tick)}%"/>'
        f'<text class="tick" x="-8" y="{100 - y.at(tick)}%" dy=".33em" text-anchor="end">{signed(tick, 2)}</text>'
        for tick in y.ticks()
        if 0 <= tick <= 1
    ]
    grid += [
        f'<line class="grid" x1="{x.at(tick)}%" x2="{x.at(tick)}%" y1="0" y2="100%"/>'
        f'<text class="tick" x="{x.at(tick)}%" y="100%" dy="17" text-anchor="middle">{x_label(tick)}</text>'
        for tick in (x.ticks() if x_ticks is None else x_ticks)
    ]
    return (
        f'<div class="chart"><div class="y-name">{escaped(y_name)}</div>'
        f'<svg width="100%" height="{height}" role="img"><title>{escaped(title)}</title>{"".join(grid)}'
        f'<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>{inside}</svg>'
        f'<div class="x-name">{escaped(x_name)}</div></div>'
    )


def stretched(shapes: str) -> str:
    """Return shapes in per cent as a layer of a chart: y grows downwards."""
    return f'<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">{shapes}</svg>'


def line(x: Axis, y: Axis, points: Iterable[tuple[float, float]], kind: str) -> str:
    """Return a line through points, for `stretched`."""
    return f'<polyline class="{kind}" points="{_points(x, y, points)}"/>'


def band(x: Axis, y: Axis, points: Sequence[tuple[float, float, float]], kind: str) -> str:
    """Return the area between two lines, from points (x, low, high), for `stretched`."""
    around = [(at, high) for at, _, high in points] + [(at, low) for at, low, _ in reversed(points)]
    return f'<polygon class="{kind}" points="{_points(x, y, around)}"/>'


def discs(x: Axis, y: Axis, points: Sequence[Disc]) -> str:
    """Return labelled points with their intervals. Those that would cover each other stand side by side."""
    return "".join(_disc(x, y, point, shift) for point, shift in zip(points, _shifts(x, points), strict=True))


def strip(axis: Axis, low: float, high: float, value: float, kind: str, title: str) -> str:
    """Return an interval with its value on a line of its own, with 0 marked."""
    zero = f'<line class="zero" x1="{axis.at(0)}%" x2="{axis.at(0)}%" y1="0" y2="100%"/>'
    return (
        f'<svg class="strip {kind}" width="100%" height="24" role="img"><title>{escaped(title)}</title>{zero}'
        f'<line class="whisker" x1="{axis.at(low)}%" x2="{axis.at(high)}%" y1="12" y2="12"/>'
        f'<circle cx="{axis.at(value)}%" cy="12" r="5"/></svg>'
    )


def chip(label: str, hue: int, *, filled: bool) -> str:
    """Return the label that a system has in the charts."""
    return f'<span class="chip hue{hue % HUES}{" filled" * filled}">{label}</span>'


def signed(value: float, digits: int = 3, *, plus: bool = False) -> str:
    """Return a number with a true minus sign, and with a plus sign if wanted."""
    return minus(f"{value:+.{digits}f}" if plus else f"{value:.{digits}f}")


def _points(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x.at(a)},{round(100 - y.at(b), 2)}" for a, b in points)


def _disc(x: Axis, y: Axis, point: Disc, shift: float) -> str:
    left, top = x.at(point.x), round(100 - y.at(point.y), 2)
    low, high = round(100 - y.at(point.low), 2), round(100 - y.at(point.high), 2)
    tail = (
        ""
        if point.x_to is None
        else f'<line class="tail" x1="{left}%" x2="{x.at(point.x_to)}%" y1="{top}%" y2="{top}%"/>'
    )
    limit = ""
    if point.ceiling is not None:
        level = round(100 - y.at(point.ceiling), 2)
        reach = f'<line class="reach" x1="{left}%" x2="{left}%" y1="{high}%" y2="{level}%"/>' if level < high else ""
        cap = '<line class="limit" x1="-9" x2="9" y1="0" y2="0"/>'
        limit = f'{reach}<svg x="{left}%" y="{level}%" overflow="visible">{cap}</svg>'
    return (
        f'<g class="disc hue{point.hue % HUES}{" filled" * point.filled}" transform="translate({shift:g} 0)">'
        f"<title>{escaped(point.said)}</title>{limit}{tail}"
        f'<line class="whisker" x1="{left}%" x2="{left}%" y1="{low}%" y2="{high}%"/>'
        f'<circle cx="{left}%" cy="{top}%" r="{_RADIUS}"/>'
        f'<text x="{left}%" y="{top}%" dy=".35em" text-anchor="middle">{point.label}</text></g>'
    )


def _shifts(x: Axis, points: Sequence[Disc]) -> list[float]:
    """Return by how many pixels each point is moved, as little as keeps them apart on the smallest phone.

    Points stay in their order, and a wider chart only draws them further apart.
    """
    order = sorted(range(len(points)), key=lambda place: points[place].x)
    room = _NARROWEST - 2 * _RADIUS
    step = min(2 * _RADIUS + 2, room / max(1, len(points) - 1))
    wanted = [x.at(points[place].x) / 100 * _NARROWEST - number * step for number, place in enumerate(order)]
    shifts = [0.0] * len(points)
    for number, (place, at) in enumerate(zip(order, _rising(wanted), strict=True)):
        inside = min(max(at, _RADIUS), _RADIUS + room - (len(points) - 1) * step)
        shifts[place] = round(inside - wanted[number], 1)
    return shifts


def _rising(values: Sequence[float]) -> list[float]:
    """Return the values that never fall and are closest to those given: what falls is replaced by its mean."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and sum(blocks[-2]) / len(blocks[-2]) > sum(blocks[-1]) / len(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return [sum(block) / len(block) for block in blocks for _ in block]
