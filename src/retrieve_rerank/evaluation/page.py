"""A result as a page that needs nothing from outside, or as a piece of one; with words and charts, what it shows."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from retrieve_rerank.errors import InvalidInputError, require
from retrieve_rerank.evaluation import charts, words
from retrieve_rerank.evaluation.charts import Mark, draw, signed
from retrieve_rerank.evaluation.choosing import Setting, Tuning
from retrieve_rerank.evaluation.dataset import WEAK, counted
from retrieve_rerank.evaluation.measuring import Example, examples, missed
from retrieve_rerank.evaluation.results import Evaluation, System
from retrieve_rerank.evaluation.words import Cell, answer, markdown, short
from retrieve_rerank.types import Hit, Passage
from retrieve_rerank.view import CSS, candidate_row, cut, hit_row, minus, side

__all__ = ["answer", "draw", "fragment", "markdown", "page", "short"]  # what a result shows of itself

_SHOWN = 10  # ranks of each side, and passages named in a sentence
_HUES = 6  # colours in report.css
_KINDS = {"helps": "up", "hurts": "down", "no clear difference": "same"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table that can be sorted: its mark, its cells (the first is its name), and whether it is chosen."""

    mark: Mark
    cells: Sequence[Cell]
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be sorted."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]


def page(result: Evaluation | Tuning, tuning: Tuning | None = None) -> str:
    """Return the report of an evaluation, perhaps with a tuning beside it, or of a tuning alone.

    Raises:
        InvalidInputError: If `tuning` is something else.
        MissingDependencyError: If jinja2 is not installed.
    """
    if tuning is not None and not isinstance(tuning, Tuning):
        raise InvalidInputError(f"tuning must be a Tuning, as tune returns, got {type(tuning).__name__}")
    folder = files("retrieve_rerank.evaluation") / "templates"
    script = (folder / "report.js").read_text(encoding="utf-8")
    safe = _templates().filters["safe"]
    found = {
        "digest": b64encode(sha256(script.encode()).digest()).decode(),
        "style": safe(CSS + (folder / "report.css").read_text(encoding="utf-8")),
        "script": safe(script),
        "method": words.method(result),
    }
    if isinstance(result, Tuning):
        return _rendered("tuning.html", title=f"Which setting for {result.dataset}?", **found, **_settings(result))
    title = f"Does re-ranking help on {result.dataset}?"
    more = {"tuning": None} if tuning is None else _settings(tuning)
    # A tuning has its own curves.
    curves = charts.evaluation_curves(result) if tuning is None else []
    return _rendered("evaluation.html", title=title, **found, **more, **_evaluation(result, curves))


def fragment(result: Evaluation | Tuning) -> str:
    """Return the answer, the table and the notes as one element, as notebooks show it."""
    if isinstance(result, Tuning):
        marks, best = charts.tuning_marks(result), result.frontier
        shown = [one for one in result.settings if one in best or one.cross_encoder is None or one == result.chosen]
        columns = ["setting", result.measure, "95 % interval", "depth", "pairs read", "p50 / p95", ""]
        rows = [
            [*_setting_row(marks, result, one).cells[:-1], Cell(_role(result, one))]
            for one in sorted(shown, key=lambda one: one.latency.p95)
        ]
        code = result.code()
    else:
        (columns, rows), code = words.table(result), ""
    return _rendered(
        "fragment.html", answer=result.answer, columns=columns, rows=rows, notes=words.notes(result), code=code
    )


def _role(tuning: Tuning, setting: Setting) -> str:
    roles = {"chosen": setting == tuning.chosen, "frontier": setting in tuning.frontier}
    return " ".join(role for role, applies in roles.items() if applies)


@cache
def _templates() -> Any:
    """Return the environment of the templates, which escapes whatever they put out."""
    jinja2 = require("jinja2", extra="evaluation")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("retrieve_rerank.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "cut": cut,
        "hue": lambda hue: f"hue{hue % _HUES}",
        "kind": lambda comparison: _KINDS[comparison.verdict],
        "minus": minus,
        "prose": lambda text: text.replace(" %", "\u00a0%"),  # no line ends before a per cent sign
        "signed": signed,
    }
    environment.globals["more"] = lambda things: f", {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return environment


def _rendered(template: str, **found: object) -> str:
    text: str = _templates().get_template(template).render(found)
    return text.encode("utf-8", "replace").decode("utf-8")  # without lone surrogates, which no file can hold


def _settings(tuning: Tuning) -> dict[str, object]:
    """Return what the templates show of a tuning."""
    marks, curves = charts.tuning_marks(tuning), charts.tuning_curves(tuning)
    chart = charts.tuning_chart(tuning)
    names = {point.mark: point.series for point in chart.points}
    columns = ["setting", tuning.measure, "95 % interval", "depth", "pairs read", "p50 / p95", "on the frontier"]
    rows = [_setting_row(marks, tuning, setting) for setting in tuning.settings]
    return {
        "tuning": tuning,
        "settings_chart": chart,
        "series": [
            (mark, names[mark], "" if model is None else charts.dash(tuning, model))
            for (_, model), mark in marks.items()
        ],
        "settings_curves": list(zip(curves, charts.curve_charts(tuning.measure, curves), strict=True)),
        "settings": Table(f"{len(rows)} settings on {tuning.questions} questions", columns, rows),
    }


def _setting_row(marks: Mapping[tuple[str, str | None], Mark], tuning: Tuning, one: Setting) -> Row:
    cells = [
        Cell(one.name, one.name.casefold()),
        Cell(f"{one.quality:.3f}", one.quality),
        Cell(f"[{one.low:.3f}, {one.high:.3f}]", one.low),
        Cell(str(one.fetch_k), one.fetch_k),
        Cell(f"{one.pairs:.1f}", one.pairs),
        Cell(words.shown_latency(one.latency), one.latency.p95),
        Cell("yes" if one in tuning.frontier else "", int(one in tuning.frontier)),
    ]
    return Row(marks[one.first_stage, one.cross_encoder], cells, chosen=one == tuning.chosen)


def _evaluation(evaluation: Evaluation, curves: Sequence[charts.Curve]) -> dict[str, object]:
    """Return what the templates show of an evaluation."""
    marks, measure = charts.evaluation_marks(evaluation), evaluation.measures[0]
    summary, found = words.answer_parts(evaluation)
    pairs = [(system, evaluation[system.baseline]) for system in evaluation.systems if system.baseline is not None]
    ends = [end for one in evaluation.comparisons for end in (one.low, one.high, 0.0)]
    data = {"data": f"{evaluation.dataset}: {words.size(evaluation)}"}
    return {
        "evaluation": evaluation,
        "summary": summary,
        "found": [(one.system, marks[one.system], one.verdict, _KINDS[one.verdict], text) for one, text in found],
        "weak": [WEAK.format(weak=evaluation.weak)] if evaluation.weak else [],
        "tables": _tables(evaluation, marks),
        "chart": charts.evaluation_chart(evaluation),
        "changes_axis": charts.axis_around(ends, margin=0.1),
        "changes": [
            (
                system.name,
                marks[system.name],
                [evaluation.comparison(system.name, name) for name in evaluation.measures],
            )
            for system, _ in pairs
        ],
        "curves": list(zip(curves, charts.curve_charts(measure, curves), strict=True)),
        "asked": counted(len(evaluation.judgements), "question"),
        "questions": [
            (
                system.name,
                marks[system.name],
                evaluation.comparison(system.name),
                [
                    (title, [_example(evaluation, system, baseline, one) for one in some])
                    for title, some in zip(
                        ("Gained most", "Lost most"), examples(system, baseline, measure), strict=True
                    )
                ],
            )
            for system, baseline in pairs
        ],
        "unread": [
            (system.name, marks[system.name], _unread(evaluation, system)) for system, _ in pairs if system.truncated
        ],
        "facts": {**data, **{names: text for text, names in words.described(evaluation).items()}},
    }


def _tables(evaluation: Evaluation, marks: Mapping[str, Mark]) -> list[Table]:
    """Return the table in two halves, each as wide as a laptop shows."""
    columns, rows = words.table(evaluation)
    middle = columns.index("p") + 2
    drawn = [marks[system.name] for system in evaluation.systems]
    intervals = "; changes with 95 % intervals" if evaluation.comparisons else ""
    return [
        Table(
            f"What was found: {words.size(evaluation)}{intervals}",
            columns[:middle],
            [Row(mark, row[:middle]) for mark, row in zip(drawn, rows, strict=True)],
        ),
        Table(
            "What could be found, what nobody judged, and what it costs",
            [columns[0], *columns[middle:]],
            [Row(mark, [row[0], *row[middle:]]) for mark, row in zip(drawn, rows, strict=True)],
        ),
    ]


def _unread(evaluation: Evaluation, system: System) -> list[tuple[str, int, int]]:
    """Return how many of the relevant candidates, and of the others, were cut, and how many there are."""
    counts = {"relevant": [0, 0], "others": [0, 0]}
    for query, ids in system.run.items():
        relevance, ranks = evaluation.judgements[query], set(system.cut.get(query, ()))
        for rank, passage in enumerate(ids, start=1):
            count = counts["relevant" if relevance.get(passage, 0) > 0 else "others"]
            count[0] += rank in ranks
            count[1] += 1
    return [(name, cut_off, every) for name, (cut_off, every) in counts.items()]


def _example(evaluation: Evaluation, system: System, baseline: System, one: Example) -> dict[str, object]:
    """Return a question, where its relevant passages went, and both rankings side by side."""
    query, judged = one.query, evaluation.judgements[one.query]
    was = {passage: rank for rank, passage in enumerate(baseline.run[query], start=1)}
    now = {passage: rank for rank, passage in enumerate(system.run[query], start=1)}
    before, after = _hits(evaluation, baseline, query), _hits(evaluation, system, query)
    best = max((hit.score for hit in before if math.isfinite(hit.score)), default=0.0)
    left = [candidate_row(hit, best, now.get(hit.passage.id), _badge(hit, judged)) for hit in before]
    cut_off = set(system.cut.get(query, ()))
    right = [
        hit_row(_scored(hit, was[hit.passage.id], truncated=hit.rank in cut_off), _badge(hit, judged)) for hit in after
    ]
    safe = _templates().filters["safe"]  # view escapes what it shows
    return {
        "text": evaluation.queries.get(query, query),
        "before": one.before,
        "after": one.after,
        "change": one.change,
        "moves": [(passage, was[passage], rank) for passage, rank in now.items() if judged.get(passage, 0) > 0],
        "missed": missed(system, query, judged),
        "left": safe(side("before", "First stage", left, "Nothing was found.")),
        "right": safe(side("after", "Re-ranked", right, "Nothing was found.")),
    }


def _hits(evaluation: Evaluation, system: System, query: str) -> list[Hit]:
    """Return the top of a ranking, with its scores."""
    ids, scores = system.run[query][:_SHOWN], system.scores.get(query, ())
    known = [*scores, *[None] * len(ids)]
    return [
        Hit(Passage(passage, evaluation.texts.get(passage, "")), rank, math.nan if score is None else score)
        for rank, (passage, score) in enumerate(zip(ids, known, strict=False), start=1)
    ]


def _scored(hit: Hit, was: int, *, truncated: bool) -> Hit:
    logit = None if math.isnan(hit.score) else hit.score
    score = math.nan if logit is None else 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
    return Hit(hit.passage, hit.rank, score, retrieval_rank=was, logit=logit, truncated=truncated)


def _badge(hit: Hit, judged: Mapping[str, int]) -> str:
    relevance = judged.get(hit.passage.id)
    if relevance is None:
        return '<span class="judged none">unjudged</span>'
    if relevance > 0:
        return f'<span class="judged yes">relevant{f" ({relevance})" * (relevance > 1)}</span>'
    return '<span class="judged no">not relevant</span>'
