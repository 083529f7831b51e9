"""The report: its parts in order, in one page that loads nothing and runs nothing but its own script."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation import presenting
from retrieve_rerank.evaluation.report.depth import depth_charts
from retrieve_rerank.evaluation.report.marks import Mark, marks, name_of
from retrieve_rerank.evaluation.report.quality import badge, changes, quality_and_latency
from retrieve_rerank.evaluation.report.rankings import rankings
from retrieve_rerank.evaluation.report.scores import score_charts, truncation
from retrieve_rerank.view import CSS, cut, escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def evaluation_page(evaluation: Evaluation) -> str:
    """Return the report of an evaluation."""
    drawn = marks(evaluation)
    compared = bool(evaluation.comparisons)
    parts = [
        _head(evaluation, drawn),
        section("table", "All numbers", table(*_rows(evaluation, drawn), caption=_caption(evaluation))),
        section(
            "quality",
            "Quality and latency",
            quality_and_latency(evaluation, drawn),
            "Filled: re-ranked; hollow: first stage alone, in the same colour. Bars are 95 % bootstrap intervals of the "
            "mean; the dashed line above ends at the ceiling, which a perfect re-ranking of the same candidates would "
            "reach. Bars of two systems may overlap although their difference is clear: what changes question by "
            "question is below. Points of about the same latency stand side by side.",
        ),
    ]
    if compared:
        parts.append(section("changes", "What re-ranking changes", changes(evaluation, drawn)))
    if depth := depth_charts(evaluation, drawn):
        parts.append(
            section(
                "depth",
                "How deep to re-rank",
                depth,
                "What fewer candidates would have reached, read from the same scores. Solid: re-ranked, with a 95 % band; "
                "dashed: first stage alone; dotted: ceiling. The highest point is the highest on these questions: "
                "on others it may lie elsewhere.",
            )
        )
    if compared:
        parts.append(section("questions", "Questions that gained and lost most", rankings(evaluation, drawn)))
    if scores := score_charts(evaluation, drawn):
        parts.append(
            section(
                "scores",
                "Can the scores tell?",
                scores,
                "Logits of all candidates. Where relevant and other passages overlap, no threshold divides them. Each "
                "row is drawn to its own height; the line is the median.",
            )
        )
    if compared:
        parts.append(section("truncation", "What was not read", truncation(evaluation, drawn)))
    parts.append(section("about", "How this was measured", _about(evaluation)))
    return whole(f"Does re-ranking help on {evaluation.dataset}?", "".join(parts))


def whole(title: str, body: str) -> str:
    """Return a page."""
    folder = files("retrieve_rerank.evaluation.report")
    script = (folder / "report.js").read_text(encoding="utf-8")
    style = CSS + (folder / "report.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return _PAGE.format(title=escaped(cut(title, 120)), hash=digest, style=style, body=body, script=script)


def section(name: str, title: str, content: str, said: str = "") -> str:
    """Return a part of the page."""
    about = f'<p class="soft">{said}</p>' if said else ""
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{about}{content}</section>'


def table(columns: list[str], rows: list[list[tuple[str, float | str | None]]], *, caption: str) -> str:
    """Return a table that can be sorted, from cells of HTML and what sorting is by. The first column names the rows."""
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<{"th scope=row" if place == 0 else "td"} data-value="{"" if value is None else escaped(str(value))}">{cell}'
            f"</{'th' if place == 0 else 'td'}>"
            for place, (cell, value) in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(cut(caption, 80))}">'
        f'<table class="sortable"><caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head(evaluation: Evaluation, drawn: dict[str, Mark]) -> str:
    summary, found = presenting.answer_parts(evaluation)
    said = "".join(
        f"<li>{drawn[one.system].chip} {name_of(one.system)} {badge(one)}<br>{escaped(text)}.</li>"
        for one, text in found
    )
    answer = f'<p class="answer">{escaped(summary)}{":" if said else "."}</p>' + (
        f"<ul class='each'>{said}</ul>" * bool(said)
    )
    weak = ""
    if evaluation.weak:
        weak = f'<p class="notice"><strong>Weak questions.</strong> {escaped(presenting.WEAK.format(weak=evaluation.weak))}</p>'
    notes = "".join(f"<li>{escaped(note)}</li>" for note in evaluation.notes)
    noted = (
        f'<div class="notice"><strong>To know when reading the numbers</strong><ul>{notes}</ul></div>' if notes else ""
    )
    return f"<header><h1>Does re-ranking help on <bdi>{escaped(evaluation.dataset)}</bdi>?</h1>{answer}{weak}{noted}</header>"


def _rows(
    evaluation: Evaluation, drawn: dict[str, Mark]
) -> tuple[list[str], list[list[tuple[str, float | str | None]]]]:
    columns, rows = presenting.table(evaluation)
    shown = []
    for system, row in zip(evaluation.systems, rows, strict=True):
        cells: list[tuple[str, float | str | None]] = [(escaped(cell.text), cell.value) for cell in row]
        cells[0] = (f"{drawn[system.name].chip} {name_of(system.name)}", row[0].value)
        shown.append(cells)
    return columns, shown


def _caption(evaluation: Evaluation) -> str:
    return f"{presenting.size(evaluation)}; changes with 95 % intervals, p corrected for the number of systems"


def _about(evaluation: Evaluation) -> str:
    systems = {names: description for description, names in presenting.described(evaluation).items()}
    facts = facts_list({"data": f"{evaluation.dataset}: {presenting.size(evaluation)}", **systems})
    return f"<p>{escaped(presenting.method(evaluation))}</p>{facts}{machine(evaluation.machine)}"


def machine(found: dict[str, str | int]) -> str:
    """Return the machine and the versions."""
    return f"<h3>Machine and versions</h3>{facts_list({name: str(value) for name, value in found.items()})}"


def facts_list(facts: dict[str, str]) -> str:
    """Return names with what is said of them."""
    return (
        "<dl>"
        + "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(said)}</dd></div>" for name, said in facts.items())
        + "</dl>"
    )
