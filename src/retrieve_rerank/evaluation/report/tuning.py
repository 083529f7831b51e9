"""The part of a report that a tuning fills: the setting to take, what it was chosen from, and what that is worth."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.dataset import counted
from retrieve_rerank.evaluation.presenting import Cell, shown_latency, shown_time
from retrieve_rerank.evaluation.report.axes import axis_around
from retrieve_rerank.evaluation.report.chart import HUES, chart, line, signed, stretched
from retrieve_rerank.evaluation.report.depth import Curve, Depth, curve_charts
from retrieve_rerank.evaluation.report.frame import machine, notice, prose, section, table, whole
from retrieve_rerank.evaluation.report.marks import Mark, name_of
from retrieve_rerank.evaluation.report.quality import shown_time_short
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.tuned import Tuning

_DASHES = 3  # kinds of lines in report.css
_FRONTIER = (
    "One line for each first stage and cross-encoder, a dot for each depth; a diamond is the first stage alone. Large "
    "dots and filled diamonds are settings that nothing beats in quality without taking longer; the ring is the one to "
    "take. The table has their intervals."
)
_DEPTH = (
    "Solid: re-ranked, with a 95 % band; dashed: first stage alone; dotted: ceiling, which a perfect re-ranking of as "
    "many candidates would reach."
)


def tuning_page(tuning: Tuning) -> str:
    """Return the report of a tuning alone."""
    head = (
        f"<header><h1>Which setting for <bdi>{escaped(tuning.dataset)}</bdi>?</h1>"
        f'<p class="answer">{prose(tuning.answer)}</p>{notice("Before you trust the numbers", tuning.notes)}'
        "</header>"
    )
    about = section("about", "How this was measured", f"<p>{prose(_method(tuning))}</p>{machine(tuning.machine)}")
    return whole(f"Which setting for {tuning.dataset}?", f"{head}{_sections(tuning)}{about}")


def tuning_sections(tuning: Tuning) -> str:
    """Return what a tuning adds to the report of an evaluation."""
    said = f'<p class="answer">{prose(tuning.answer)}</p>{notice("Before you trust the tuning", tuning.notes)}'
    return section("answer", "The setting to take", said + _code(tuning)) + _sections(tuning, with_code=False)


def _sections(tuning: Tuning, *, with_code: bool = True) -> str:
    parts = [section("setting", "The setting to paste", _code(tuning))] if with_code else []
    parts.append(section("frontier", "Quality and latency of the settings", _frontier(tuning), _FRONTIER))
    if curves := curve_charts(tuning.measure, _curves(tuning)):
        parts.append(section("depths", "How deep to re-rank", curves, _DEPTH))
    parts.append(section("settings", "All settings", _table(tuning)))
    return "".join(parts)


def _code(tuning: Tuning) -> str:
    code = f'<div class="code"><pre tabindex="0"><code>{escaped(tuning.code())}</code></pre></div>'
    return f"<p>{prose(tuning.reason)}</p>{code}"


def _frontier(tuning: Tuning) -> str:
    seconds = [setting.latency.p95 for setting in tuning.settings]
    limit = tuning.latency_budget
    x = axis_around([*seconds, *([] if limit is None else [limit])], log=True)
    y = axis_around([setting.quality for setting in tuning.settings], margin=0.12)
    marks, best = _marks(tuning), tuning.frontier
    dashes = {name: f"dash{place % _DASHES}" for place, name in enumerate(tuning.cross_encoders)}
    shapes, dots = "", ""
    for (first_stage, cross_encoder), mark in marks.items():
        rows = [one for one in tuning.settings if (one.first_stage, one.cross_encoder) == (first_stage, cross_encoder)]
        if cross_encoder is not None:
            points = [(one.latency.p95, one.quality) for one in tuning.curve(first_stage, cross_encoder)]
            shapes += f'<g class="hue{mark.hue % HUES}">{line(x, y, points, dashes[cross_encoder])}</g>'
        for one in rows:
            at, up = x.at(one.latency.p95), round(100 - y.at(one.quality), 2)
            said = f"<title>{escaped(one.name)}: {signed(one.quality)}, {shown_time(one.latency.p95)}</title>"
            ring = f'<circle class="ring" cx="{at}%" cy="{up}%" r="10"/>' if one == tuning.chosen else ""
            size = 5 if one in best else 2.5
            hollow = "" if one in best else ' class="hollow"'
            shape = (
                f'<svg x="{at}%" y="{up}%" overflow="visible"><path{hollow} d="M0-6 6 0 0 6-6 0Z"/></svg>'
                if cross_encoder is None
                else f'<circle cx="{at}%" cy="{up}%" r="{size}"/>'
            )
            dots += f'<g class="dot hue{mark.hue % HUES}">{said}{ring}{shape}</g>'
    if limit is not None:
        dots += f'<line class="budget" x1="{x.at(limit)}%" x2="{x.at(limit)}%" y1="0" y2="100%"/>'
    asked = "" if limit is None else f"; dashed: {shown_time(limit)} asked for"
    drawing = chart(
        x,
        y,
        stretched(shapes) + dots,
        title=f"{tuning.measure} against seconds a question of {len(tuning.settings)} settings, which the table lists",
        x_name=f"time a question, p95 (logarithmic){asked}",
        y_name=tuning.measure,
        x_label=shown_time_short,
    )
    key = "".join(
        f"<li>{mark.chip}<span>{name_of(first_stage)}, not re-ranked</span></li>"
        if cross_encoder is None
        else f"<li>{mark.chip}<span>{_sample(mark, dashes[cross_encoder])} {name_of(first_stage)} → "
        f"{name_of(cross_encoder)}</span></li>"
        for (first_stage, cross_encoder), mark in marks.items()
    )
    return f'<div class="with-key">{drawing}<ol class="key">{key}</ol></div>'


def _sample(mark: Mark, kind: str) -> str:
    """Return a piece of a curve's line."""
    return (
        f'<svg class="hue{mark.hue % HUES}" width="28" height="10" aria-hidden="true">'
        f'<polyline class="{kind}" points="0,5 28,5"/></svg>'
    )


def _curves(tuning: Tuning) -> list[Curve]:
    before = {one.first_stage: one.quality for one in tuning.settings if one.cross_encoder is None}
    curves = []
    for (first_stage, cross_encoder), mark in _marks(tuning).items():
        if cross_encoder is None:
            continue
        ceiling = tuning.ceiling.get(first_stage, {})
        found = [
            Depth(one.fetch_k, one.quality, one.low, one.high, ceiling.get(one.fetch_k))
            for one in tuning.curve(first_stage, cross_encoder)
        ]
        if len(found) > 1:
            curves.append(Curve(mark, f"{first_stage} → {cross_encoder}", before[first_stage], found))
    return curves


def _table(tuning: Tuning) -> str:
    columns = ["setting", tuning.measure, "95 % interval", "depth", "pairs read", "p50 / p95", "on the frontier"]
    marks, best = _marks(tuning), tuning.frontier
    rows = []
    for one in tuning.settings:
        chosen = ' <span class="verdict up">chosen</span>' if one == tuning.chosen else ""
        name = f"{marks[one.first_stage, one.cross_encoder].chip} {name_of(one.name)}{chosen}"
        cells = [
            Cell(one.name, one.name.casefold()),
            Cell(f"{one.quality:.3f}", one.quality),
            Cell(f"[{one.low:.3f}, {one.high:.3f}]", one.low),
            Cell(str(one.fetch_k), one.fetch_k),
            Cell(f"{one.pairs:.1f}", one.pairs),
            Cell(shown_latency(one.latency), one.latency.p95),
            Cell("yes" if one in best else "", int(one in best)),
        ]
        rows.append((name, cells))
    return table(columns, rows, caption=f"{len(rows)} settings on {tuning.questions} questions")


def _marks(tuning: Tuning) -> dict[tuple[str, str | None], Mark]:
    """Return how each first stage, alone and with each cross-encoder, is drawn."""
    hues = {name: hue for hue, name in enumerate(tuning.first_stages)}
    pairs = {(setting.first_stage, setting.cross_encoder) for setting in tuning.settings}
    order = [(one, other) for one in tuning.first_stages for other in (None, *tuning.cross_encoders)]
    return {
        pair: Mark(_letter(place), hues[pair[0]], filled=pair[1] is not None)
        for place, pair in enumerate(pair for pair in order if pair in pairs)
    }


def _letter(place: int) -> str:
    """Return a label that is none of an evaluation's, whose labels are numbers."""
    more, letter = divmod(place, len(ascii_uppercase))
    return f"{ascii_uppercase[letter]}{more or ''}"


def _method(tuning: Tuning) -> str:
    return (
        f"{counted(tuning.questions, 'question')}, {counted(tuning.passages, 'passage')}. Every first stage was asked "
        "at every depth, and each pair of question and passage was scored once. Intervals: 95 %, bootstrap over "
        f"questions, {tuning.resamples} resamples, seed {tuning.seed}. Ceiling: what a perfect re-ranking of the same "
        "candidates would reach."
    )
