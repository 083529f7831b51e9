"""An evaluation in words, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.dataset import counted
from retrieve_rerank.evaluation.results import Comparison, Latency, System

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

_WEAK = (
    "The questions are weak: {weak}. They show whether a system is broken and roughly which of two is better; they do "
    "not show how large the gain is on questions that people ask, since their words come from the passages themselves "
    "and any other passage that answers counts as not relevant."
)
_METHOD = (
    "Intervals: 95 %, paired bootstrap over questions. p: paired randomisation test, two-sided, corrected by Holm's "
    "method for the number of re-ranked systems; {resamples} resamples, seed {seed}. Ceiling: what a perfect "
    "re-ranking of the same candidates would reach. ≈: in part from times measured earlier, for another pipeline or "
    "from the cache."
)


def answer(evaluation: Evaluation) -> str:
    """Return one sentence: whether re-ranking helps, by how much, at what cost."""
    name = evaluation.measures[0]
    where = f"on {evaluation.dataset}"
    weak = " (weak questions, made from the passages themselves)" if evaluation.weak else ""
    compared = [comparison for comparison in evaluation.comparisons if comparison.measure == name]
    if not compared:
        best = max(evaluation.systems, key=lambda system: system.means[name])
        found = f"the best first stage is {best.name!r} with {name} {best.means[name]:.3f}"
        return f"Nothing was re-ranked {where}{weak}; {found}."
    questions = counted(len(evaluation.judgements), "question")
    if len(compared) == 1:
        (only,) = compared
        said = "makes no clear difference" if only.verdict == "no clear difference" else only.verdict
        return (
            f"Re-ranking {said} {where}{weak}: {_change(evaluation, only)}, over {questions}{_cost(evaluation, only)}."
        )
    helping = sum(comparison.verdict == "helps" for comparison in compared)
    each = "; ".join(
        f"{one.system!r} {_verdict(one)}: {_change(evaluation, one)}{_cost(evaluation, one)}" for one in compared
    )
    return f"Re-ranking helps in {helping} of {len(compared)} pipelines {where}{weak}, over {questions}: {each}."


def short(evaluation: Evaluation) -> str:
    """Return the representation on one line."""
    name = evaluation.measures[0]
    compared = [comparison for comparison in evaluation.comparisons if comparison.measure == name]
    found = "; ".join(
        f"{comparison.system!r} {_verdict(comparison)}, {name} {comparison.difference:+.3f}" for comparison in compared
    )
    return (
        f"<Evaluation of {counted(len(evaluation.systems), 'system')} on {evaluation.dataset!r}, "
        f"{counted(len(evaluation.judgements), 'question')}: {found or 'nothing was re-ranked'}>"
    )


def markdown(evaluation: Evaluation) -> str:
    """Return the answer, the table and the notes."""
    columns, rows = _table(evaluation)
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in _notes(evaluation))
    return f"{evaluation.answer}\n\n{table}\n\n{notes}\n"


def html(evaluation: Evaluation) -> str:
    """Return the same as one element, with nothing to load."""
    columns, rows = _table(evaluation)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td style='text-align:{'left' if place == 0 else 'right'}'>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(evaluation))
    return (
        f"<div><p><strong>{escape(evaluation.answer)}</strong></p><div style='overflow-x:auto'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><ul>{notes}</ul></div>"
    )


def _verdict(comparison: Comparison) -> str:
    return comparison.verdict.replace("no clear", "makes no clear")


def _change(evaluation: Evaluation, comparison: Comparison) -> str:
    name = comparison.measure
    before, after = evaluation[comparison.baseline].means[name], evaluation[comparison.system].means[name]
    return (
        f"{name} goes from {before:.3f} to {after:.3f} ({comparison.difference:+.3f}, 95 % interval "
        f"{comparison.low:+.3f} to {comparison.high:+.3f})"
    )


def _cost(evaluation: Evaluation, comparison: Comparison) -> str:
    latency = evaluation[comparison.system].rerank
    return "" if latency is None else f", at a cost of {_seconds(latency)} a question (p50 / p95)"


def _table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table."""
    first = evaluation.measures[0]
    changes = {comparison.system: comparison for comparison in evaluation.comparisons if comparison.measure == first}
    columns = [
        "system",
        *evaluation.measures,
        f"change in {first}",
        "p",
        "wins / ties / losses",
        f"ceiling {first}",
        "R@fetch_k",
        "unjudged in top 10",
        "truncated",
        "retrieve p50 / p95",
        "re-rank p50 / p95",
    ]
    return columns, [_row(evaluation, system, changes.get(system.name)) for system in evaluation.systems]


def _row(evaluation: Evaluation, system: System, change: Comparison | None) -> list[str]:
    first = system if system.baseline is None else evaluation[system.baseline]
    share = system.truncated_share
    return [
        system.name,
        *(f"{system.means[name]:.3f}" for name in evaluation.measures),
        "" if change is None else f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]",
        "" if change is None else f"{change.p_holm:.4f}",
        "" if change is None else f"{change.wins} / {change.ties} / {change.losses}",
        f"{first.ceiling[evaluation.measures[0]]:.3f}",
        f"{first.ceiling[f'R@{first.fetch_k}']:.3f} (k = {first.fetch_k})",
        f"{system.mean_unjudged:.1f}",
        "" if share is None else f"{share:.1%}",
        _seconds(system.retrieve),
        "" if system.rerank is None else _seconds(system.rerank),
    ]


def _notes(evaluation: Evaluation) -> Sequence[str]:
    size = f"{counted(len(evaluation.judgements), 'question')}, {counted(evaluation.passages, 'passage')}"
    machine = ", ".join(f"{name} {value}" for name, value in evaluation.machine.items())
    described: dict[str, list[str]] = {}
    for system in evaluation.systems:
        described.setdefault(system.description, []).append(system.name)
    systems = [f"{', '.join(names)}: {description}" for description, names in described.items()]
    weak = [_WEAK.format(weak=evaluation.weak)] if evaluation.weak else []
    method = _METHOD.format(resamples=evaluation.resamples, seed=evaluation.seed)
    return [f"{evaluation.dataset}: {size}.", *weak, *evaluation.notes, method, *systems, f"Measured with {machine}."]


def _seconds(latency: Latency) -> str:
    return f"{'≈ ' if latency.estimated else ''}{_time(latency.p50)} / {_time(latency.p95)}"


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
