"""Results as tables for a terminal. Everything from outside is cleaned here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from retrieve_rerank.cli.texts import clean, one_line
from retrieve_rerank.evaluation.words import shown_latency

if TYPE_CHECKING:
    from rich.console import RenderableType

    from retrieve_rerank.evaluation.choosing import Tuning
    from retrieve_rerank.evaluation.results import Evaluation
    from retrieve_rerank.types import Hit, SearchResult

_SNIPPET = 240  # characters of a text


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
    table.add_column("source", ratio=2, overflow="fold")
    table.add_column("passage", ratio=5)
    for hit in result.hits[:top_n]:
        _add(table, hit, scored=scored)
    return [title, table, *(_left(result, top_n) if scored else ())]


def _add(table: Table, hit: Hit, *, scored: bool) -> None:
    cells: list[RenderableType] = [Text(str(hit.rank), style="bold")]
    if scored:
        cells.append(_was(hit))
    cells.append(f"{hit.score:.3f}" + ("*" if hit.truncated else ""))
    cells += [_source(hit), Text(one_line(hit.passage.text, _SNIPPET))]
    table.add_row(*cells)


def _was(hit: Hit) -> Text:
    if hit.retrieval_rank is None:
        return Text("–", style="dim")
    up = hit.retrieval_rank - hit.rank
    move, style = (f"↑{up}", "green") if up > 0 else (f"↓{-up}", "red") if up < 0 else ("=", "dim")
    return Text.assemble(f"{hit.retrieval_rank} ", (move, style))


def _source(hit: Hit) -> Text:
    source = _place(hit)
    heading = hit.passage.metadata.get("heading") or hit.passage.metadata.get("title")
    if not isinstance(heading, str):
        return Text(clean(source), style="cyan")
    return Text.assemble((clean(source), "cyan"), "\n", (one_line(heading, 120), "dim"))


def _place(hit: Hit) -> str:
    return str(hit.passage.metadata.get("source", hit.passage.id))


def _left(result: SearchResult, top_n: int) -> Sequence[RenderableType]:
    """Return a line about what was at the top before and is not any more."""
    now = {hit.passage.id: hit.rank for hit in result.hits}
    gone = [
        f"{hit.rank} → {now.get(hit.passage.id, 'left out')} {one_line(_place(hit), 60)}"
        for hit in result.candidates[:top_n]
        if now.get(hit.passage.id, top_n + 1) > top_n
    ]
    return [Text("Before in the top: " + ", ".join(gone), style="dim")] if gone else []


def reranked(query: str, hits: Sequence[Hit], positions: Sequence[int]) -> Sequence[RenderableType]:
    """Return the passages of one line, re-ranked."""
    table = _table(expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("was", justify="right", no_wrap=True)
    table.add_column("relevance", justify="right", no_wrap=True)
    table.add_column("id", ratio=1, overflow="fold")
    table.add_column("passage", ratio=5)
    for hit, position in zip(hits, positions, strict=True):
        table.add_row(
            Text(str(hit.rank), style="bold"),
            str(position + 1),
            f"{hit.score:.3f}" + ("*" if hit.truncated else ""),
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
