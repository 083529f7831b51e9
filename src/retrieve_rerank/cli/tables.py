"""Results as tables for a terminal. Everything from outside is cleaned here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from retrieve_rerank.cli.folder import folded, place
from retrieve_rerank.cli.streams import clean, one_line
from retrieve_rerank.evaluation.words import shown_latency

if TYPE_CHECKING:
    from rich.console import RenderableType

    from retrieve_rerank.evaluation.choosing import Tuning
    from retrieve_rerank.evaluation.results import Evaluation
    from retrieve_rerank.search_result import SearchResult
    from retrieve_rerank.types import Hit

_SNIPPET = 240  # characters of a text
_HEADINGS = 60  # of a passage's headings
_BEFORE = 40  # of them before a word of the question


def searched(result: SearchResult, top_n: int) -> Sequence[RenderableType]:
    """Return a search as a table, and what re-ranking sent away from the top."""
    title = Text(one_line(result.query, 400), style="bold")
    if not result.hits:
        return [title, Text("nothing was found", style="dim")]
    scored = any(hit.logit is not None for hit in result.hits)
    table = _table(expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    if scored:
        table.add_column("was", no_wrap=True)
    table.add_column("relevance" if scored else "score", justify="right", no_wrap=True)
    combined = _combined(table, result.hits)
    table.add_column("source", ratio=2, overflow="fold")
    table.add_column("passage", ratio=5)
    words = {word for word in re.findall(r"\w+", result.query.casefold()) if len(word) > 2}
    for hit, others in folded(result.hits)[:top_n]:
        cells: list[RenderableType] = [Text(str(hit.rank), style="bold"), *([_was(hit)] if scored else [])]
        cells.append(f"{hit.score:.3f}" + ("*" if hit.truncated else ""))
        cells += combined(hit)
        table.add_row(*cells, _source(hit, others), _snippet(hit.passage.text, words))
    return [title, table, *(_left(result, top_n) if scored else ())]


def _combined(table: Table, hits: Sequence[Hit]) -> Callable[[Hit], list[str]]:
    """Add a column of what the order is by, where both stages voted, and return what makes a hit's cell of it."""
    if all(hit.combined_score is None for hit in hits):
        return lambda hit: []
    table.add_column("combined", justify="right", no_wrap=True)
    return lambda hit: ["" if hit.combined_score is None else f"{hit.combined_score:+.2f}"]


def _snippet(text: str, words: Collection[str]) -> Text:
    """Return the part of a passage that holds most words of the question, which are set off."""
    line = one_line(text, len(text))
    found = [match for match in re.finditer(r"\w+", line) if _is_asked(match[0], words)]
    starts = [0, *(max(0, line.rfind(" ", 0, max(0, match.start() - _BEFORE)) + 1) for match in found)]
    start = max(starts, key=lambda start: (sum(start <= match.start() < start + _SNIPPET for match in found), -start))
    shown = Text(("… " if start else "") + one_line(line[start:], _SNIPPET))
    for match in re.finditer(r"\w+", shown.plain):
        if _is_asked(match[0], words):
            shown.stylize("bold", match.start(), match.end())
    return shown


def _is_asked(word: str, words: Collection[str]) -> bool:
    """Whether a word is one of the question's, but for its ending."""
    word = word.casefold()
    return len(word) > 2 and any(word.startswith(asked) or asked.startswith(word) for asked in words)


def _was(hit: Hit) -> Text:
    if hit.retrieval_rank is None:
        return Text("–", style="dim")
    up = hit.retrieval_rank - hit.rank
    move, style = (f"↑{up}", "green") if up > 0 else (f"↓{-up}", "red") if up < 0 else ("=", "dim")
    return Text.assemble(f"{hit.retrieval_rank} ", (move, style))


def _source(hit: Hit, others: Sequence[str]) -> Text:
    lines = [(clean(place(hit)), "cyan")]
    heading = hit.passage.metadata.get("heading") or hit.passage.metadata.get("title")
    if isinstance(heading, str):
        lines.append((_end_of(heading), "dim"))
    if others:
        where = one_line(others[0], 60) if len(others) == 1 else f"{len(others)} files"
        lines.append((f"also in {where}", "dim"))
    return Text("\n").join(Text(text, style) for text, style in lines)


def _end_of(heading: str) -> str:
    """Return a passage's own heading, with as many of those above as there is room for."""
    *above, shown = heading.split(" > ")
    while above and len(above[-1]) + len(shown) < _HEADINGS:
        shown = f"{above.pop()} > {shown}"
    return one_line(f"… > {shown}" if above else shown, 2 * _HEADINGS)


def _left(result: SearchResult, top_n: int) -> Sequence[RenderableType]:
    """Return a line about what was at the top before and is not any more."""
    now = {hit.passage.id: hit.rank for hit in result.hits}
    gone = [
        f"{hit.rank} → {now.get(hit.passage.id, 'left out')} {one_line(place(hit), 60)}"
        for hit in result.candidates[:top_n]
        if now.get(hit.passage.id, top_n + 1) > top_n
    ]
    return [Text("Before in the top: " + ", ".join(gone), style="dim")] if gone else []


def reranked(query: str, hits: Sequence[Hit]) -> Sequence[RenderableType]:
    """Return the passages of one line, re-ranked."""
    table = _table(expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("was", justify="right", no_wrap=True)
    table.add_column("relevance", justify="right", no_wrap=True)
    combined = _combined(table, hits)
    table.add_column("id", ratio=1, overflow="fold")
    table.add_column("passage", ratio=5)
    for hit in hits:
        table.add_row(
            Text(str(hit.rank), style="bold"),
            "" if hit.index is None else str(hit.index + 1),
            f"{hit.score:.3f}" + ("*" if hit.truncated else ""),
            *combined(hit),
            Text(one_line(hit.passage.id, 60), style="cyan"),
            Text(one_line(hit.passage.text, _SNIPPET)),
        )
    return [Text(one_line(query, 400), style="bold"), table]


def evaluated(evaluation: Evaluation) -> Sequence[RenderableType]:
    """Return an evaluation: its answer, the main columns, what to know."""
    first = evaluation.measures[0]
    changes = {change.system: change for change in evaluation.comparisons if change.measure == first}
    table = _table()
    table.add_column("system", overflow="fold")
    for name in (*evaluation.measures, f"change in {first}", "p", "better / same / worse", "p50 / p95"):
        table.add_column(name, justify="right")
    for system in evaluation.systems:
        change = changes.get(system.name)
        style = {"helps": "green", "hurts": "red"}.get("" if change is None else change.verdict, "")
        table.add_row(
            clean(system.name),
            *(f"{system.means[name]:.3f}" for name in evaluation.measures),
            "" if change is None else Text(f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]", style),
            "" if change is None else f"{change.p_holm:.4f}",
            "" if change is None else f"{change.wins} / {change.ties} / {change.losses}",
            shown_latency(system.retrieve if system.rerank is None else system.rerank),
        )
    weak = [Text(f"The questions are weak: {clean(evaluation.weak)}.", style="yellow")] if evaluation.weak else []
    notes = [Text(f"• {clean(note)}", style="dim") for note in evaluation.notes]
    return [Text(clean(evaluation.answer), style="bold"), Text(), table, *weak, *notes]


def _table(*, expand: bool = False) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=expand)


def tuned(tuning: Tuning) -> Sequence[RenderableType]:
    """Return a tuning: its answer, and the settings that nothing beats."""
    table = _table()
    table.add_column("setting", overflow="fold")
    for name in (tuning.measure, "95 % interval", "passages read", "p50 / p95"):
        table.add_column(name, justify="right")
    settings = list(tuning.frontier)
    if tuning.chosen not in settings:
        settings.append(tuning.chosen)
    for setting in settings:
        table.add_row(
            clean(setting.name),
            f"{setting.quality:.3f}",
            f"{setting.low:.3f} – {setting.high:.3f}",
            f"{setting.pairs:.0f}",
            shown_latency(setting.latency),
            style="bold green" if setting == tuning.chosen else "",
        )
    notes = [Text(f"• {clean(note)}", style="dim") for note in (tuning.reason, *tuning.notes)]
    return [Text(clean(tuning.answer), style="bold"), Text(), table, *notes]
