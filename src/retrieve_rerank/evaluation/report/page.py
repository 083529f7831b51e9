"""The report of an evaluation: its parts in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retrieve_rerank.evaluation import presenting
from retrieve_rerank.evaluation.report.depth import depth_charts
from retrieve_rerank.evaluation.report.frame import facts, machine, notice, prose, section, table, whole
from retrieve_rerank.evaluation.report.marks import Mark, marks, name_of
from retrieve_rerank.evaluation.report.quality import badge, changes, quality_and_latency
from retrieve_rerank.evaluation.report.rankings import rankings
from retrieve_rerank.evaluation.report.scores import score_charts, truncation
from retrieve_rerank.evaluation.report.tuning import tuning_sections
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation
    from retrieve_rerank.evaluation.tuned import Tuning

_QUALITY = (
    "Filled: re-ranked; hollow: first stage alone, in the same colour. Bars are 95 % bootstrap intervals of the mean. "
    "The dotted line ends at the ceiling, which a perfect re-ranking of the same candidates would reach. Bars of two "
    "systems may overlap although their difference is clear: the next section compares question by question. Points of "
    "about the same latency stand side by side."
)
_DEPTH = (
    "What the first candidates alone would have reached, read from the same scores; a fused first stage that is asked "
    "for fewer may find slightly others. Solid: re-ranked, with a 95 % band; dashed: first stage alone; dotted: "
    "ceiling. The highest point is the highest on these questions; on others it may lie elsewhere."
)
_SCORES = (
    "Logits of all candidates. Where relevant and other passages overlap, no threshold divides them. Unjudged passages "
    "may be relevant as well. Each row is drawn to its own height; the line is the median."
)
_UNREAD = (
    "Passages longer than the cross-encoder reads were cut at its limit. Where that hurts, shorter passages or "
    "CrossEncoder(…, long_passages='windows') may help."
)


def evaluation_page(evaluation: Evaluation, tuning: Tuning | None = None) -> str:
    """Return the report of an evaluation, and of a tuning beside it."""
    drawn = marks(evaluation)
    parts = [_head(evaluation, drawn)]
    if tuning is not None:
        parts.append(tuning_sections(tuning))
    parts.append(section("table", "All numbers", _tables(evaluation, drawn)))
    parts.append(section("quality", "Quality and latency", quality_and_latency(evaluation, drawn), _QUALITY))
    if evaluation.comparisons:
        parts.append(section("changes", "What re-ranking changes", changes(evaluation, drawn)))
        if tuning is None and (depth := depth_charts(evaluation, drawn)):  # a tuning has its own
            parts.append(section("depth", "How deep to re-rank", depth, _DEPTH))
        parts.append(section("questions", "Questions that gained and lost most", rankings(evaluation, drawn)))
        if scores := score_charts(evaluation, drawn):
            parts.append(section("scores", "Do the scores tell relevant passages from others?", scores, _SCORES))
        parts.append(section("unread", "What the cross-encoder did not read", truncation(evaluation, drawn), _UNREAD))
    parts.append(section("about", "How this was measured", _about(evaluation)))
    return whole(f"Does re-ranking help on {evaluation.dataset}?", "".join(parts))


def _head(evaluation: Evaluation, drawn: dict[str, Mark]) -> str:
    summary, found = presenting.answer_parts(evaluation)
    each = "".join(
        f"<li>{drawn[one.system].chip} {name_of(one.system)} {badge(one)}<br>{prose(text)}.</li>" for one, text in found
    )
    weak = [presenting.WEAK.format(weak=evaluation.weak)] if evaluation.weak else []
    return (
        f"<header><h1>Does re-ranking help on <bdi>{escaped(evaluation.dataset)}</bdi>?</h1>"
        f'<p class="answer">{prose(summary)}{":" if each else "."}</p>{f"<ul class=each>{each}</ul>" * bool(each)}'
        f"{notice('Before you trust the numbers', [*weak, *evaluation.notes])}</header>"
    )


def _tables(evaluation: Evaluation, drawn: dict[str, Mark]) -> str:
    """Return the table in two halves, each as wide as a laptop shows."""
    columns, rows = presenting.table(evaluation)
    names = [f"{drawn[system.name].chip} {name_of(system.name)}" for system in evaluation.systems]
    middle = columns.index("p") + 2
    found = [(name, row[:middle]) for name, row in zip(names, rows, strict=True)]
    reach = [(name, [row[0], *row[middle:]]) for name, row in zip(names, rows, strict=True)]
    intervals = "; changes with 95 % intervals" if evaluation.comparisons else ""
    costs = "What could be found, what nobody judged, and what it costs"
    return table(columns[:middle], found, caption=f"What was found: {presenting.size(evaluation)}{intervals}") + table(
        [columns[0], *columns[middle:]], reach, caption=costs
    )


def _about(evaluation: Evaluation) -> str:
    systems = {names: description for description, names in presenting.described(evaluation).items()}
    data = {"data": f"{evaluation.dataset}: {presenting.size(evaluation)}"}
    return f"<p>{prose(presenting.method(evaluation))}</p>{facts({**data, **systems})}{machine(evaluation.machine)}"
