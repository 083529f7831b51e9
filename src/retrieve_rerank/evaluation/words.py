"""An evaluation or a tuning in words: the answer, the tables, the notes, and an evaluation as Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from retrieve_rerank.evaluation.choosing import Setting, Tuning
from retrieve_rerank.evaluation.dataset import WEAK, counted
from retrieve_rerank.evaluation.results import Comparison, Evaluation, Latency, System

_WEAK = " (weak questions, made from the passages themselves)"
_METHOD = (
    "Intervals: 95 %, paired bootstrap over questions. p: paired randomisation test, two-sided, corrected by Holm's "
    "method for the number of re-ranked systems; {resamples} resamples, seed {seed}. Ceiling: what a perfect "
    "re-ranking of the same candidates would reach. ≈: in part from times measured earlier, for another pipeline or "
    "from the cache."
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table, what sorting by its column is by (None comes last), and whether it names what is chosen."""

    text: str
    value: float | str | None = None
    chosen: bool = False


def answer(result: Evaluation | Tuning) -> str:
    """Return one sentence: whether re-ranking helps, or which setting to take, by how much, and at what cost."""
    if isinstance(result, Tuning):
        return _tuning_answer(result)
    summary, found = answer_parts(result)
    each = "; ".join(f"{one.system!r} {_verdict(one)}: {said}" for one, said in found)
    return f"{summary}: {each}." if found else f"{summary}."


def answer_parts(evaluation: Evaluation) -> tuple[str, list[tuple[Comparison, str]]]:
    """Return the answer in parts: a summary, and what is said of each pipeline where there are several."""
    name, where = evaluation.measures[0], f"on {evaluation.dataset}{_WEAK if evaluation.weak else ''}"
    compared = _on_first_measure(evaluation)
    if not compared:
        best = max(evaluation.systems, key=lambda system: system.means[name])
        return (
            f"Nothing was re-ranked {where}; the best first stage is {best.name!r} with {name} {best.means[name]:.3f}",
            [],
        )
    questions = counted(len(evaluation.judgements), "question")
    if len(compared) == 1:
        change, cost = _change(evaluation, compared[0])
        return f"Re-ranking {_verdict(compared[0])} {where}: {change}, over {questions}{cost}", []
    helping = sum(comparison.verdict == "helps" for comparison in compared)
    summary = f"Re-ranking helps in {helping} of {len(compared)} pipelines {where}, over {questions}"
    return summary, [(one, "".join(_change(evaluation, one))) for one in compared]


def _tuning_answer(tuning: Tuning) -> str:
    chosen, measure = tuning.chosen, tuning.measure
    unmet = "" if tuning.met else "Nothing meets what was asked for; this comes closest. "
    where = f"{unmet}On {tuning.dataset}{_WEAK if tuning.weak else ''}, "
    reached = f"{measure} {chosen.quality:.3f} [{chosen.low:.3f}, {chosen.high:.3f}]"
    cost = f"{shown_latency(chosen.latency)} a question (p50 / p95), over {counted(tuning.questions, 'question')}"
    if chosen.cross_encoder is None:
        others = [setting for setting in tuning.settings if setting.cross_encoder is not None]
        best = max(others, key=lambda setting: setting.quality)
        return (
            f"{where}search with {chosen.first_stage!r} and do not re-rank: {reached}, {cost}; the best re-ranked "
            f"setting, {best.name!r}, reaches {best.quality:.3f} at a p95 of {shown_time(best.latency.p95)}."
        )
    plain = max(
        (setting for setting in tuning.settings if setting.cross_encoder is None), key=lambda setting: setting.quality
    )
    weight = "" if chosen.rerank_weight == 1 else f" with rerank_weight={chosen.rerank_weight:g}"
    return (
        f"{where}re-rank the first {chosen.fetch_k} of {chosen.first_stage!r} by {chosen.cross_encoder!r}{weight}: "
        f"{reached}, {cost}; the best first stage by itself, {plain.first_stage!r}, reaches {plain.quality:.3f}."
    )


def short(result: Evaluation | Tuning) -> str:
    """Return the representation on one line."""
    if isinstance(result, Tuning):
        chosen = result.chosen
        return (
            f"<Tuning of {counted(len(result.settings), 'setting')} on {result.dataset!r}, "
            f"{counted(result.questions, 'question')}: {chosen.name}; {result.measure} {chosen.quality:.3f}, "
            f"p95 {shown_time(chosen.latency.p95)}>"
        )
    name = result.measures[0]
    found = "; ".join(
        f"{one.system!r} {_verdict(one)}, {name} {one.difference:+.3f}" for one in _on_first_measure(result)
    )
    return (
        f"<Evaluation of {counted(len(result.systems), 'system')} on {result.dataset!r}, "
        f"{counted(len(result.judgements), 'question')}: {found or 'nothing was re-ranked'}>"
    )


def markdown(evaluation: Evaluation) -> str:
    """Return the answer, the table and the notes; whatever a name or a note holds is text, and nothing else."""
    columns, rows = table(evaluation)
    lines = [columns, *([cell.text for cell in row] for row in rows)]
    head, *shown = ["| " + " | ".join(map(_literal, line)) + " |" for line in lines]
    said = [f"- {_line(note)}" for note in notes(evaluation)]
    return "\n".join([_line(answer(evaluation)), "", head, "| --- " * len(columns) + "|", *shown, "", *said, ""])


def _literal(text: str) -> str:
    """Return text that Markdown shows as it is, on one line: no tag, no link or image, no code, no border of a cell."""
    text = escape(" ".join(text.split()), quote=False).replace("\\", "\\\\")
    # An underscore within a word is only that.
    text = re.sub(r"[`*|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return text.replace("](", "]\\(").replace("][", "]\\[")


def _line(text: str) -> str:
    """Return text that begins no heading, list or fence either."""
    return re.sub(r"^(\d*)([#+=~.)-])", r"\1\\\2", _literal(text))


def _on_first_measure(evaluation: Evaluation) -> list[Comparison]:
    return [one for one in evaluation.comparisons if one.measure == evaluation.measures[0]]


def _verdict(comparison: Comparison) -> str:
    return comparison.verdict.replace("no clear", "makes no clear")


def _change(evaluation: Evaluation, comparison: Comparison) -> tuple[str, str]:
    """Return what re-ranking changes, and what that costs."""
    name, system = comparison.measure, evaluation[comparison.system]
    before, after = evaluation[comparison.baseline].means[name], system.means[name]
    cost = "" if system.rerank is None else f", at a cost of {shown_latency(system.rerank)} a question (p50 / p95)"
    return (
        f"{name} goes from {before:.3f} to {after:.3f} ({comparison.difference:+.3f}, 95 % interval "
        f"{comparison.low:+.3f} to {comparison.high:+.3f}, p = {comparison.p_holm:.2g})",
        cost,
    )


def table(result: Evaluation | Tuning) -> tuple[list[str], list[list[Cell]]]:
    """Return the head of the table, and its rows: a system or a setting each."""
    if isinstance(result, Tuning):
        columns = ["setting", result.measure, "95 % interval", "depth", "weight"]
        columns += ["pairs read", "p50 / p95", "on the frontier"]
        return columns, [_setting_row(result, setting) for setting in listed(result)]
    first = result.measures[0]
    changes = {comparison.system: comparison for comparison in _on_first_measure(result)}
    columns = [
        "system",
        *result.measures,
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
    return columns, [_system_row(result, system, changes.get(system.name)) for system in result.systems]


def listed(tuning: Tuning) -> list[Setting]:
    """Return the settings that a table lists: those of weight 1 and of the chosen weight, and what is best."""
    shown = {1.0, tuning.weight}
    best = tuning.frontier
    return [one for one in tuning.settings if one.cross_encoder is None or one.rerank_weight in shown or one in best]


def _setting_row(tuning: Tuning, one: Setting) -> list[Cell]:
    best = one in tuning.frontier
    return [
        Cell(one.name, one.name.casefold(), chosen=one == tuning.chosen),
        Cell(f"{one.quality:.3f}", one.quality),
        Cell(f"[{one.low:.3f}, {one.high:.3f}]", one.low),
        Cell(str(one.fetch_k), one.fetch_k),
        Cell(f"{one.rerank_weight:g}", one.rerank_weight),
        Cell(f"{one.pairs:.1f}", one.pairs),
        Cell(shown_latency(one.latency), one.latency.p95),
        Cell("yes" if best else "", int(best)),
    ]


def _system_row(evaluation: Evaluation, system: System, change: Comparison | None) -> list[Cell]:
    first = system if system.baseline is None else evaluation[system.baseline]
    share, rerank, ceiling = system.truncated_share, system.rerank, first.ceiling
    perfect, recall = ceiling[evaluation.measures[0]], ceiling[f"R@{first.fetch_k}"]
    none, changed = Cell(""), [Cell("")] * 3
    if change is not None:
        changed = [
            Cell(f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]", change.difference),
            Cell(f"{change.p_holm:.4f}", change.p_holm),
            Cell(f"{change.wins} / {change.ties} / {change.losses}", change.wins - change.losses),
        ]
    return [
        Cell(system.name, system.name.casefold()),
        *(Cell(f"{system.means[name]:.3f}", system.means[name]) for name in evaluation.measures),
        *changed,
        Cell(f"{perfect:.3f}", perfect),
        Cell(f"{recall:.3f} (k = {first.fetch_k})", recall),
        Cell(f"{system.mean_unjudged:.1f}", system.mean_unjudged),
        none if share is None else Cell(f"{share:.1%}", share),
        Cell(shown_latency(system.retrieve), system.retrieve.p50),
        none if rerank is None else Cell(shown_latency(rerank), rerank.p50),
    ]


def notes(result: Evaluation | Tuning) -> list[str]:
    """Return what the numbers do not say by themselves, how they were measured, and on what."""
    if isinstance(result, Tuning):
        return [result.reason, *result.notes]
    evaluation = result
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
