"""A result as a page that needs nothing from outside, or as a piece of one; with words and charts, what it shows."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from retrieve_rerank.errors import InvalidInputError, require
from retrieve_rerank.evaluation import charts, words
from retrieve_rerank.evaluation.charts import draw, signed
from retrieve_rerank.evaluation.choosing import Tuning
from retrieve_rerank.evaluation.dataset import WEAK, counted
from retrieve_rerank.evaluation.measuring import SHOWN, examples, missed
from retrieve_rerank.evaluation.results import Evaluation, System
from retrieve_rerank.evaluation.words import answer, markdown, short
from retrieve_rerank.models.calibration import sigmoid
from retrieve_rerank.models.interpolation import interpolate
from retrieve_rerank.search_result import candidate_row, css, cut, hit_row, minus, side
from retrieve_rerank.types import Hit, Passage

__all__ = ["answer", "draw", "fragment", "markdown", "page", "short"]  # what a result shows of itself

_HUES = 6  # colours in report.css
_KINDS = {"helps": "up", "hurts": "down", "no clear difference": "same"}


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
    frame = {
        "digest": b64encode(sha256(script.encode()).digest()).decode(),
        "style": css() + (folder / "report.css").read_text(encoding="utf-8"),
        "script": script,
    }
    if isinstance(result, Tuning):
        return _rendered("tuning.html", title=f"Which setting for {result.dataset}?", tuning=result, **frame)
    title = f"Does re-ranking help on {result.dataset}?"
    return _rendered("evaluation.html", title=title, evaluation=result, tuning=tuning, **frame)


def fragment(result: Evaluation | Tuning) -> str:
    """Return the answer, the table and the notes as one element, as notebooks show it."""
    columns, rows = words.table(result)
    code = ""
    if isinstance(result, Tuning):
        best, code = (*result.frontier, result.chosen), result.code()
        found = zip(words.listed(result), rows, strict=True)
        rows = [row for one, row in found if one in best or one.cross_encoder is None]
    return _rendered(
        "fragment.html", answer=result.answer, columns=columns, rows=rows, notes=words.notes(result), code=code
    )


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
        "some": lambda things: things[:SHOWN],
        "others": lambda things: f", {len(things) - SHOWN} more" if len(things) > SHOWN else "",
    }
    environment.globals |= {
        "charts": charts,
        "words": words,
        "zip": zip,
        "weakness": WEAK.format,
        "counted": counted,
        "examples": examples,
        "rankings": _rankings,
        "unread": _unread,
    }
    return environment


def _rendered(template: str, **found: object) -> str:
    text: str = _templates().get_template(template).render(found)
    return text.encode("utf-8", "replace").decode("utf-8")  # without lone surrogates, which no file can hold


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


def _rankings(evaluation: Evaluation, system: System, query: str) -> dict[str, object]:
    """Return where the relevant passages of a question went, and both rankings side by side, as HTML."""
    baseline, judged = evaluation[str(system.baseline)], evaluation.judgements[query]
    was = {passage: rank for rank, passage in enumerate(baseline.run[query], start=1)}
    now = {passage: rank for rank, passage in enumerate(system.run[query], start=1)}
    before, after = _hits(evaluation, baseline, query), _hits(evaluation, system, query)
    best = max((hit.score for hit in before if math.isfinite(hit.score)), default=0.0)
    left = [candidate_row(hit, best, now.get(hit.passage.id), _badge(hit, judged)) for hit in before]
    right = [hit_row(hit, _badge(hit, judged)) for hit in after]
    return {
        "moves": [(passage, was[passage], rank) for passage, rank in now.items() if judged.get(passage, 0) > 0],
        "missed": missed(system, query, judged),
        "sides": side("before", "First stage", left, "Nothing was found.")
        + side("after", "Re-ranked", right, "Nothing was found."),
    }


def _hits(evaluation: Evaluation, system: System, query: str) -> list[Hit]:
    """Return the top of a ranking, with its scores: a first stage's as they are, a cross-encoder's as logits."""
    ids, scores, cut_off = system.run[query][:SHOWN], system.scores.get(query, ()), system.cut.get(query, ())
    combined = _combined(evaluation, system, query)
    hits = []
    for rank, passage in enumerate(ids, start=1):
        score = scores[rank - 1] if rank <= len(scores) else None
        hit = Hit(Passage(passage, evaluation.texts.get(passage, "")), rank, math.nan if score is None else score)
        if system.baseline is not None:
            was = evaluation[system.baseline].run[query].index(passage) + 1
            relevance = math.nan if score is None else sigmoid(score)
            hit = replace(hit, score=relevance, retrieval_rank=was, logit=score, truncated=rank in cut_off)
            hit = replace(hit, combined_score=combined.get(passage))
        hits.append(hit)
    return hits


def _combined(evaluation: Evaluation, system: System, query: str) -> dict[str, float | None]:
    """Return what the order is by, by passage, where both stages voted."""
    logits = dict(zip(system.run[query], system.scores.get(query, ()), strict=False))
    if system.baseline is None or system.rerank_weight in (None, 1) or None in logits.values():
        return {}
    first = evaluation[system.baseline]
    found = zip(first.run[query], first.scores[query], strict=True)
    candidates = [Hit(Passage(name, ""), 1, math.nan, retrieval_score=score) for name, score in found]
    order = interpolate(candidates, [logits[hit.passage.id] or 0.0 for hit in candidates], system.rerank_weight or 0.0)
    return {candidates[place].passage.id: combined for place, combined in order}


def _badge(hit: Hit, judged: Mapping[str, int]) -> str:
    relevance = judged.get(hit.passage.id)
    if relevance is None:
        return '<span class="judged none">unjudged</span>'
    if relevance > 0:
        return f'<span class="judged yes">relevant{f" ({relevance})" * (relevance > 1)}</span>'
    return '<span class="judged no">not relevant</span>'
