"""An evaluation in words, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from retrieve_rerank.evaluation.dataset import counted
from retrieve_rerank.evaluation.results import Comparison, Latency, System
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.evaluation import Evaluation

WEAK = (
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


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the table, and what sorting by its column is by; None comes last."""

    text: str
    value: float | str | None = None


def answer(evaluation: Evaluation) -> str:
    """Return one sentence: whether re-ranking helps, by how much, at what cost."""
    summary, found = answer_parts(evaluation)
    each = "; ".join(f"{one.system!r} {_verdict(one)}: {said}" for one, said in found)
    return f"{summary}: {each}." if found else f"{summary}."


def answer_parts(evaluation: Evaluation) -> tuple[str, list[tuple[Comparison, str]]]:
    """Return the answer in parts: a summary, and what is said of each pipeline where there are several."""
    name = evaluation.measures[0]
    where = f"on {evaluation.dataset}"
    weak = " (weak questions, made from the passages themselves)" if evaluation.weak else ""
    compared = [comparison for comparison in evaluation.comparisons if comparison.measure == name]
    if not compared:
        best = max(evaluation.systems, key=lambda system: system.means[name])
        found = f"the best first stage is {best.name!r} with {name} {best.means[name]:.3f}"
        return f"Nothing was re-ranked {where}{weak}; {found}", []
    questions = counted(len(evaluation.judgements), "question")
    if len(compared) == 1:
        (only,) = compared
        said = "makes no clear difference" if only.verdict == "no clear difference" else only.verdict
        change = f"{_change(evaluation, only)}, over {questions}{_cost(evaluation, only)}"
        return f"Re-ranking {said} {where}{weak}: {change}", []
    helping = sum(comparison.verdict == "helps" for comparison in compared)
    summary = f"Re-ranking helps in {helping} of {len(compared)} pipelines {where}{weak}, over {questions}"
    return summary, [(one, f"{_change(evaluation, one)}{_cost(evaluation, one)}") for one in compared]


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
    columns, rows = table(evaluation)
    lines = [columns, ["---"] * len(columns), *([cell.text for cell in row] for row in rows)]
    shown = "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
    said = "\n".join(f"- {note}" for note in _notes(evaluation))
    return f"{evaluation.answer}\n\n{shown}\n\n{said}\n"


def html(evaluation: Evaluation) -> str:
    """Return the same as one element, with nothing to load."""
    columns, rows = table(evaluation)
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td style='text-align:{'left' if place == 0 else 'right'}'>{escaped(cell.text)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    said = "".join(f"<li>{escaped(note)}</li>" for note in _notes(evaluation))
    return (
        f"<div><p><strong>{escaped(evaluation.answer)}</strong></p><div style='overflow-x:auto'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><ul>{said}</ul></div>"
    )


def _verdict(comparison: Comparison) -> str:
    return comparison.verdict.replace("no clear", "makes no clear")


def _change(evaluation: Evaluation, comparison: Comparison) -> str:
    name = comparison.measure
    before, after = evaluation[comparison.baseline].means[name], evaluation[comparison.system].means[name]
    return (
        f"{name} goes from {before:.3f} to {after:.3f} ({comparison.difference:+.3f}, 95 % interval "
        f"{comparison.low:+.3f} to {comparison.high:+.3f}, p = {comparison.p_holm:.2g})"
    )


def _cost(evaluation: Evaluation, comparison: Comparison) -> str:
    latency = evaluation[comparison.system].rerank
    return "" if latency is None else f", at a cost of {shown_latency(latency)} a question (p50 / p95)"


def table(evaluation: Evaluation) -> tuple[list[str], list[list[Cell]]]:
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


def _row(evaluation: Evaluation, system: System, change: Comparison | None) -> list[Cell]:
    first = system if system.baseline is None else evaluation[system.baseline]
    share, rerank, ceiling = system.truncated_share, system.rerank, first.ceiling
    perfect, recall = ceiling[evaluation.measures[0]], ceiling[f"R@{first.fetch_k}"]
    none = Cell("")
    return [
        Cell(system.name, system.name.casefold()),
        *(Cell(f"{system.means[name]:.3f}", system.means[name]) for name in evaluation.measures),
        none if change is None else Cell(difference(change), change.difference),
        none if change is None else Cell(f"{change.p_holm:.4f}", change.p_holm),
        none
        if change is None
        else Cell(f"{change.wins} / {change.ties} / {change.losses}", change.wins - change.losses),
        Cell(f"{perfect:.3f}", perfect),
        Cell(f"{recall:.3f} (k = {first.fetch_k})", recall),
        Cell(f"{system.mean_unjudged:.1f}", system.mean_unjudged),
        none if share is None else Cell(f"{share:.1%}", share),
        Cell(shown_latency(system.retrieve), system.retrieve.p50),
        none if rerank is None else Cell(shown_latency(rerank), rerank.p50),
    ]


def difference(change: Comparison) -> str:
    """Return a difference with its interval."""
    return f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def _notes(evaluation: Evaluation) -> Sequence[str]:
    machine = ", ".join(f"{name} {value}" for name, value in evaluation.machine.items())
    systems = [f"{names}: {description}" for description, names in described(evaluation).items()]
    weak = [WEAK.format(weak=evaluation.weak)] if evaluation.weak else []
    return [
        f"{evaluation.dataset}: {size(evaluation)}.",
        *weak,
        *evaluation.notes,
        method(evaluation),
        *systems,
        f"Measured with {machine}.",
    ]


def size(evaluation: Evaluation) -> str:
    """Return how much was evaluated."""
    return f"{counted(len(evaluation.judgements), 'question')}, {counted(evaluation.passages, 'passage')}"


def method(evaluation: Evaluation) -> str:
    """Return how the numbers come about."""
    return _METHOD.format(resamples=evaluation.resamples, seed=evaluation.seed)


def described(evaluation: Evaluation) -> dict[str, str]:
    """Return the names of the systems by what they are."""
    names: dict[str, list[str]] = {}
    for system in evaluation.systems:
        names.setdefault(system.description, []).append(system.name)
    return {description: ", ".join(those) for description, those in names.items()}


def shown_latency(latency: Latency) -> str:
    """Return p50 and p95 as text."""
    return f"{'≈ ' if latency.estimated else ''}{shown_time(latency.p50)} / {shown_time(latency.p95)}"


def shown_time(seconds: float) -> str:
    """Return seconds in a unit that suits them."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
