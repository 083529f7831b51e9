"""The questions that gained and lost most, with both rankings side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.dataset import counted
from retrieve_rerank.evaluation.examples import SHOWN, Example, examples, missed
from retrieve_rerank.evaluation.report.chart import signed
from retrieve_rerank.evaluation.report.marks import Mark, name_of, reranked
from retrieve_rerank.evaluation.results import System
from retrieve_rerank.types import Hit, Passage
from retrieve_rerank.view import candidate_row, cut, escaped, hit_row, side

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_QUESTION = 300  # characters


def rankings(evaluation: Evaluation, drawn: Mapping[str, Mark]) -> str:
    """Return the questions that gained most and lost most, a re-ranked system; the first system's first ones open."""
    measure = evaluation.measures[0]
    parts = []
    for place, (system, baseline) in enumerate(reranked(evaluation)):
        gained, lost = examples(system, baseline, measure)
        comparison = evaluation.comparison(system.name)
        parts.append(
            f"<h3>{drawn[system.name].chip} {name_of(system.name)}</h3>"
            f'<p class="soft">Of {counted(len(evaluation.judgements), "question")}, {comparison.wins} gained, '
            f"{comparison.losses} lost, {comparison.ties} stayed as before.</p>"
            + _list(evaluation, system, baseline, "Gained most", gained, opened=place == 0)
            + _list(evaluation, system, baseline, "Lost most", lost, opened=place == 0)
        )
    return "".join(parts)


def _list(
    evaluation: Evaluation, system: System, baseline: System, title: str, found: Sequence[Example], *, opened: bool
) -> str:
    if not found:
        return ""
    rows = "".join(
        _example(evaluation, system, baseline, one, opened=opened and place == 0) for place, one in enumerate(found)
    )
    return f"<h4>{title}</h4>{rows}"


def _example(evaluation: Evaluation, system: System, baseline: System, one: Example, *, opened: bool) -> str:
    text = cut(evaluation.queries.get(one.query, one.query), _QUESTION)
    values = f"{escaped(evaluation.measures[0])} {signed(one.before)} → {signed(one.after)}"
    change = f'<b class="{"up" if one.change > 0 else "down"}">{signed(one.change, plus=True)}</b>'
    return (
        f'<details class="example"{" open" * opened}><summary><span class="asked" dir="auto">{escaped(text)}</span> '
        f'<span class="values">{values} {change}</span></summary>{_fate(evaluation, system, baseline, one.query)}'
        f"{_sides(evaluation, system, baseline, one.query)}</details>"
    )


def _fate(evaluation: Evaluation, system: System, baseline: System, query: str) -> str:
    """Return where the relevant passages went, in words."""
    relevance = evaluation.judgements[query]
    before = {passage: rank for rank, passage in enumerate(baseline.run[query], start=1)}
    after = {passage: rank for rank, passage in enumerate(system.run[query], start=1)}
    moves = [
        f"{name_of(passage)} ({before[passage]} → {rank})"
        for passage, rank in after.items()
        if relevance.get(passage, 0) > 0
    ]
    said = [
        f"Relevant, rank before → after: {_some(moves)}." if moves else "No relevant passage is among the candidates."
    ]
    if absent := missed(system, query, relevance):
        said.append(f"Relevant but not found by the first stage: {_some([name_of(passage) for passage in absent])}.")
    return f'<p class="soft">{" ".join(said)}</p>'


def _some(things: Sequence[str]) -> str:
    more = f", {len(things) - SHOWN} more" if len(things) > SHOWN else ""
    return ", ".join(things[:SHOWN]) + more


def _sides(evaluation: Evaluation, system: System, baseline: System, query: str) -> str:
    before, after = _hits(evaluation, baseline, query), _hits(evaluation, system, query)
    was = {passage: rank for rank, passage in enumerate(baseline.run[query], start=1)}
    now = {passage: rank for rank, passage in enumerate(system.run[query], start=1)}
    judged = evaluation.judgements[query]
    best = max((hit.score for hit in before if math.isfinite(hit.score)), default=0.0)
    left = [candidate_row(hit, best, now.get(hit.passage.id), _badge(hit, judged)) for hit in before]
    cut_off = set(system.cut.get(query, ()))
    right = [hit_row(_scored(hit, was[hit.passage.id], hit.rank in cut_off), _badge(hit, judged)) for hit in after]
    return (
        f'<div class="rr-result"><div class="rr-sides">{side("before", "First stage", left, "Nothing was found.")}'
        f"{side('after', 'Re-ranked', right, 'Nothing was found.')}</div></div>"
    )


def _hits(evaluation: Evaluation, system: System, query: str) -> list[Hit]:
    """Return the top of a ranking, with its scores."""
    ids, scores = system.run[query][:SHOWN], system.scores.get(query, ())
    known = [*scores, *[None] * len(ids)]
    return [
        Hit(Passage(passage, evaluation.texts.get(passage, "")), rank, math.nan if score is None else score)
        for rank, (passage, score) in enumerate(zip(ids, known, strict=False), start=1)
    ]


def _scored(hit: Hit, was: int, truncated: bool) -> Hit:  # noqa: FBT001
    logit = None if math.isnan(hit.score) else hit.score
    score = math.nan if logit is None else _sigmoid(logit)
    return Hit(hit.passage, hit.rank, score, retrieval_rank=was, logit=logit, truncated=truncated)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _badge(hit: Hit, judged: Mapping[str, int]) -> str:
    relevance = judged.get(hit.passage.id)
    if relevance is None:
        return '<span class="judged none">unjudged</span>'
    if relevance > 0:
        return f'<span class="judged yes">relevant{f" ({relevance})" * (relevance > 1)}</span>'
    return '<span class="judged no">not relevant</span>'
