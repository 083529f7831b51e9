"""Whether the scores tell relevant passages from others, and what the cross-encoder did not read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.report.axes import Axis, axis_around
from retrieve_rerank.evaluation.report.chart import HUES, signed
from retrieve_rerank.evaluation.report.marks import Mark, mean_intervals, name_of, reranked
from retrieve_rerank.evaluation.report.quality import change_row, forest, head_row
from retrieve_rerank.evaluation.results import System
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_BINS = 36
_GROUPS = ("relevant", "judged not relevant", "unjudged")


def score_charts(evaluation: Evaluation, drawn: Mapping[str, Mark]) -> str:
    """Return, a re-ranked system, how its scores are distributed; empty where scores were not kept."""
    grouped = [(system, baseline, _groups(evaluation, system)) for system, baseline in reranked(evaluation)]
    known = [value for _, _, groups in grouped for values in groups.values() for value in values]
    if not known:
        return ""
    axis = axis_around(known, margin=0.02)
    panels = "".join(
        _panel(evaluation, axis, drawn[system.name], system, baseline, groups)
        for system, baseline, groups in grouped
        if any(groups.values())
    )
    return f'<div class="panels">{panels}</div>'


def above(evaluation: Evaluation, system: System) -> float | None:
    """Return how often a relevant candidate is ranked above another one of its question; None if none has both."""
    shares = []
    for query, ids in system.run.items():
        relevance = evaluation.judgements[query]
        others = pairs = ordered = 0
        for passage in reversed(ids):
            if relevance.get(passage, 0) > 0:
                ordered += others
                pairs += 1
            else:
                others += 1
        if pairs and others:
            shares.append(ordered / (pairs * others))
    return statistics.fmean(shares) if shares else None


def truncation(evaluation: Evaluation, drawn: Mapping[str, Mark]) -> str:
    """Return what was not read to its end, and how re-ranking did on questions where that was a relevant passage."""
    measure, parts, rows = evaluation.measures[0], [], []
    seen: list[tuple[System, list[tuple[str, list[float], tuple[float, float]]]]] = []
    for system, baseline in reranked(evaluation):
        if system.truncated:
            parts.append(_bars(evaluation, drawn[system.name], system))
            seen.append((system, _split(evaluation, measure, system, baseline)))
    if not parts:
        return "<p>Nothing: every candidate was read to its end.</p>"
    ends = [end for _, halves in seen for _, _, interval in halves for end in interval]
    drawing = ""
    if ends:
        axis = axis_around([*ends, 0.0], margin=0.1)
        for system, halves in seen:
            rows.append(head_row(f"{drawn[system.name].chip} {name_of(system.name)}"))
            for label, values, (low, high) in halves:
                kind = "up" if low > 0 else "down" if high < 0 else "same"
                rows.append(change_row(axis, f"{label} ({len(values)})", statistics.fmean(values), low, high, kind))
        drawing = forest(rows, f"Change in {measure} by re-ranking, by whether a relevant candidate was cut", axis)
    return f'<div class="bars">{"".join(parts)}</div>{drawing}'


def _groups(evaluation: Evaluation, system: System) -> dict[str, list[float]]:
    """Return the scores of a system by what is known of the passages."""
    groups: dict[str, list[float]] = {name: [] for name in _GROUPS}
    for query, ids in system.run.items():
        relevance = evaluation.judgements[query]
        for passage, score in zip(ids, system.scores.get(query, ()), strict=False):
            if score is not None:
                judged = relevance.get(passage)
                groups[_GROUPS[2 if judged is None else int(judged < 1)]].append(score)
    return groups


def _panel(
    evaluation: Evaluation, axis: Axis, mark: Mark, system: System, baseline: System, groups: Mapping[str, list[float]]
) -> str:
    shares = [above(evaluation, row) for row in (baseline, system)]
    said = (
        ""
        if shares[0] is None or shares[1] is None
        else f": a relevant candidate is above another one in {shares[1]:.1%} of the pairs of a question, before "
        f"re-ranking in {shares[0]:.1%}"
    )
    strips = "".join(_histogram(axis, name, values) for name, values in groups.items() if values)
    ticks = "".join(
        f'<text class="tick" x="{axis.at(tick)}%" y="12" text-anchor="middle">{signed(tick, 0)}</text>'
        for tick in axis.ticks(5)
        if float(tick).is_integer()
    )
    return (
        f'<figure class="panel hue{mark.hue % HUES}"><figcaption>{mark.chip} {name_of(system.name)}{said}.</figcaption>'
        f'<div class="chart flat">{strips}<svg width="100%" height="16" aria-hidden="true">{ticks}</svg>'
        '<div class="x-name">logit (0 is a relevance score of 0.5)</div></div></figure>'
    )


def _histogram(axis: Axis, name: str, values: Sequence[float]) -> str:
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(axis.at(value) / 100 * _BINS))] += 1
    most, width, middle = max(counts), 100 / _BINS, statistics.median(values)
    bars = "".join(
        f'<rect x="{place * width:.2f}%" width="{width * 0.9:.2f}%" y="{46 - 44 * count / most:.1f}" '
        f'height="{44 * count / most:.1f}"/>'
        for place, count in enumerate(counts)
        if count
    )
    label = f"{name}: {len(values):,}, median {signed(middle, 1)}"
    return (
        f'<div class="group">{escaped(label)}</div><svg class="bins {"told" if name == _GROUPS[0] else "other"}" '
        f'width="100%" height="48" role="img"><title>Distribution of the logits, {escaped(label)}</title>'
        f'<line class="axis" x1="0" x2="100%" y1="46.5" y2="46.5"/>{bars}'
        f'<line class="median" x1="{axis.at(middle)}%" x2="{axis.at(middle)}%" y1="0" y2="48"/></svg>'
    )


def _bars(evaluation: Evaluation, mark: Mark, system: System) -> str:
    """Return the shares of candidates that were cut, relevant ones and others."""
    cut, every = [0, 0], [0, 0]
    for query, ids in system.run.items():
        relevance, ranks = evaluation.judgements[query], set(system.cut.get(query, ()))
        for rank, passage in enumerate(ids, start=1):
            other = int(relevance.get(passage, 0) < 1)
            every[other] += 1
            cut[other] += rank in ranks
    rows = "".join(
        f'<div class="share"><span>{name}</span><span class="track"><span style="width:{100 * part / whole:.1f}%">'
        f"</span></span><span>{part / whole:.1%} of {whole:,}</span></div>"
        for name, part, whole in zip(("relevant", "others"), cut, every, strict=True)
        if whole
    )
    return f'<div class="hue{mark.hue % HUES}"><div>{mark.chip} {name_of(system.name)}, cut:</div>{rows}</div>'


def _split(
    evaluation: Evaluation, measure: str, system: System, baseline: System
) -> list[tuple[str, list[float], tuple[float, float]]]:
    """Return the changes of the questions where a relevant candidate was cut, and where none was, with intervals."""
    halves: dict[str, dict[str, float]] = {"a relevant candidate was cut": {}, "none was": {}}
    for query, ids in system.run.items():
        relevance = evaluation.judgements[query]
        cut = any(relevance.get(ids[rank - 1], 0) > 0 for rank in system.cut.get(query, ()))
        half = halves["a relevant candidate was cut" if cut else "none was"]
        half[query] = system.per_query[measure][query] - baseline.per_query[measure][query]
    return [
        (
            label,
            list(values.values()),
            mean_intervals({label: values}, resamples=evaluation.resamples, seed=evaluation.seed)[label],
        )
        for label, values in halves.items()
        if values
    ]
