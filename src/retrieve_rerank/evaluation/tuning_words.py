"""A tuning in words, in code to paste and as a file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from retrieve_rerank import __version__
from retrieve_rerank.evaluation.dataset import counted
from retrieve_rerank.evaluation.measuring import measure as measured
from retrieve_rerank.evaluation.measuring import notes as notes_on
from retrieve_rerank.evaluation.presenting import WEAK, shown_latency, shown_time
from retrieve_rerank.retrieval.saved import SavedSetting
from retrieve_rerank.view import escaped

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.choosing import HeldOut
    from retrieve_rerank.evaluation.dataset import Dataset
    from retrieve_rerank.evaluation.trying import Plan
    from retrieve_rerank.evaluation.tuned import Setting, Tuning

_UNSURE = 0.01  # of the measure: what the choice may lose on other questions before a reader is told
_CUT = 0.01  # share of the pairs that were not read to the end, below which nothing is said


def answer(tuning: Tuning) -> str:
    """Return one sentence: which setting to take, what it reaches and what it costs."""
    chosen, measure = tuning.chosen, tuning.measure
    unmet = "" if tuning.met else "Nothing meets what was asked for; this comes closest. "
    where = (
        f"{unmet}On {tuning.dataset}{' (weak questions, made from the passages themselves)' if tuning.weak else ''}, "
    )
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
    return (
        f"{where}re-rank the first {chosen.fetch_k} of {chosen.first_stage!r} by {chosen.cross_encoder!r}: {reached}, "
        f"{cost}; the best first stage by itself, {plain.first_stage!r}, reaches {plain.quality:.3f}."
    )


def notes(plan: Plan, dataset: Dataset, measure: str, chosen: Setting, held_out: HeldOut | None) -> tuple[str, ...]:
    """Return what the numbers do not say by themselves."""
    deepest = plan.depths[-1]
    firsts = [stage for (_, depth), stage in plan.firsts.items() if depth == deepest]
    rows = [measured(stage, dataset, [measure]) for stage in firsts]
    said = [*dataset.notes, *notes_on(firsts, rows, [measure], dataset)]
    if dataset.weak:
        said.append(WEAK.format(weak=dataset.weak))
    if held_out is None:
        said.append("The questions are too few to check the choice on some that it was not made on.")
    else:
        said += _notes_on_choice(held_out)
    if chosen.cross_encoder is not None and chosen.fetch_k == deepest:
        said.append(f"The deepest that was tried is chosen: try deeper than {deepest}.")
    for (name, model, depth), stage in plan.reranked.items():
        if depth == deepest and stage.truncated > _CUT * stage.pairs:
            share = stage.truncated / stage.pairs
            said.append(f"{model!r} did not read {share:.0%} of what {name!r} found to the end.")
    said.append(
        "≈: computed from the times of the pairs, which were read for the deepest candidates, and the cost of a call."
    )
    said += [
        f"All scores of {model!r} came from the cache: its times are those of when they were made, maybe on another "
        "machine, and hold nothing of a call's own cost."
        for model, reader in plan.readers.items()
        if reader.pairs and not reader.fresh
    ]
    return tuple(said)


def _notes_on_choice(held_out: HeldOut) -> list[str]:
    splits = f"means of {held_out.splits} random splits"
    same = f"It was the setting chosen here in {held_out.agreement:.0%}."
    if held_out.target is not None:  # the fastest that is good enough was wanted, and not the best
        return [
            f"Chosen on one half of the questions, the setting taken reached {held_out.quality:.3f} on the other half "
            f"({splits}), and the {held_out.target:g} that was asked for in {held_out.reached:.0%} of them. {same}"
        ]
    said = [
        f"Chosen on one half of the questions, the setting taken reached {held_out.quality:.3f} on the other half, "
        f"{held_out.regret:.3f} below the best one there ({splits}; nine of ten were at most {held_out.spread:.3f} "
        f"below). {same}"
    ]
    if held_out.regret > _UNSURE:
        said.append("So these questions are too few to tell the best settings apart: more would.")
    return said


def short(tuning: Tuning) -> str:
    """Return the representation on one line."""
    chosen = tuning.chosen
    return (
        f"<Tuning of {counted(len(tuning.settings), 'setting')} on {tuning.dataset!r}, "
        f"{counted(tuning.questions, 'question')}: {chosen.name}; {tuning.measure} {chosen.quality:.3f}, "
        f"p95 {shown_time(chosen.latency.p95)}>"
    )


def code(tuning: Tuning, setting: Setting) -> str:
    """Return Python code that makes the pipeline of a setting, the first stage being a variable of its name."""
    first = _variable(setting.first_stage)
    head = f"# {setting.name}: {tuning.measure} {setting.quality:.3f} on {tuning.dataset}\n"
    if setting.cross_encoder is None:
        # As deep as it was measured: what a hybrid finds first depends on how deep it looks.
        call = f"{first}.retrieve(query, k={setting.fetch_k})[:10]"
        return f"{head}# It does not re-rank: the first stage by itself.\nhits = {call}\n"
    arguments = tuning.models.get(setting.cross_encoder)
    if arguments:
        imports = "from retrieve_rerank import CrossEncoder, RetrieveRerank\n\n"
        model = f"CrossEncoder({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    else:
        imports, model = "from retrieve_rerank import RetrieveRerank\n\n", _variable(setting.cross_encoder)
    scale = "" if arguments or tuning.scores == "logits" else f", scores={tuning.scores!r}"
    return f"{imports}{head}search = RetrieveRerank({first}, {model}, fetch_k={setting.fetch_k}{scale})\n"


def saved(tuning: Tuning, setting: Setting) -> SavedSetting:
    """Return a setting as it is kept in a file, with where it comes from."""
    return SavedSetting(
        first_stage=setting.first_stage,
        fetch_k=setting.fetch_k,
        cross_encoder=setting.cross_encoder,
        model=None if setting.cross_encoder is None else tuning.models.get(setting.cross_encoder) or None,
        measured={
            "dataset": tuning.dataset,
            "weak": tuning.weak,
            "measure": tuning.measure,
            "questions": tuning.questions,
            "quality": setting.quality,
            "low": setting.low,
            "high": setting.high,
            "p50": setting.latency.p50,
            "p95": setting.latency.p95,
            "pairs": setting.pairs,
            "retrieve-rerank": __version__,
        },
    )


def html(tuning: Tuning) -> str:
    """Return the answer, the frontier and the notes as one element, with nothing to load."""
    frontier = tuning.frontier
    shown = [one for one in tuning.settings if one in frontier or one.cross_encoder is None or one == tuning.chosen]
    columns = ("setting", tuning.measure, "95 % interval", "pairs", "p50 / p95", "")
    rows = [
        (
            setting.name,
            f"{setting.quality:.3f}",
            f"[{setting.low:.3f}, {setting.high:.3f}]",
            f"{setting.pairs:.0f}",
            shown_latency(setting.latency),
            " ".join(
                word
                for word, applies in (("chosen", setting == tuning.chosen), ("frontier", setting in frontier))
                if applies
            ),
        )
        for setting in sorted(shown, key=lambda one: one.latency.p95)
    ]
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td style='text-align:{'left' if place in (0, 5) else 'right'}'>{escaped(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    notes = "".join(f"<li>{escaped(note)}</li>" for note in (tuning.reason, *tuning.notes))
    return (
        f"<div><p><strong>{escaped(tuning.answer)}</strong></p><div style='overflow-x:auto'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div><ul>{notes}</ul>"
        f"<pre>{escaped(tuning.code())}</pre></div>"
    )


def _variable(name: str) -> str:
    return re.sub(r"\W|^(?=\d)", "_", name)
