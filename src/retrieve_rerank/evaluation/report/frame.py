"""The page around a report, and its simple parts: sections, the table that can be sorted, facts."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files

from retrieve_rerank.evaluation.presenting import Cell
from retrieve_rerank.view import CSS, cut, escaped, minus

_SHORT = 15  # characters of a cell that are not broken

# The page runs its own script and no other, whatever a text in it holds.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def whole(title: str, body: str) -> str:
    """Return a page."""
    folder = files("retrieve_rerank.evaluation.report")
    script = (folder / "report.js").read_text(encoding="utf-8")
    return _PAGE.format(
        digest=b64encode(sha256(script.encode()).digest()).decode(),
        title=escaped(cut(title, 120)),
        style=CSS + (folder / "report.css").read_text(encoding="utf-8"),
        body=body,
        script=script,
    )


def section(name: str, title: str, content: str, said: str = "") -> str:
    """Return a part of the page, with what helps to read it."""
    about = f'<p class="soft">{prose(said)}</p>' if said else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{about}{content}'
        "</section>"
    )


def table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], *, caption: str) -> str:
    """Return a table that can be sorted.

    Args:
        columns: Heads.
        rows: HTML of the first cell, which names the row, and all cells.
        caption: What it shows.
    """
    head = "".join(f'<th scope="col">{escaped(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row" data-value="{_value(cells[0])}">{name}</th>{"".join(map(_cell, cells[1:]))}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(cut(caption, 80))}">'
        f'<table class="sortable"><caption><span>{prose(caption)}</span></caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def notice(title: str, said: Iterable[str]) -> str:
    """Return a box with what a reader must know; empty if that is nothing."""
    items = "".join(f"<li>{escaped(one)}</li>" for one in said)
    return f'<div class="notice"><strong>{title}</strong><ul>{items}</ul></div>' if items else ""


def facts(found: Mapping[str, object], kind: str = "wide") -> str:
    """Return names with what is said of them."""
    items = (f"<div><dt>{escaped(name)}</dt><dd>{escaped(str(said))}</dd></div>" for name, said in found.items())
    return f'<dl class="{kind}">{"".join(items)}</dl>'


def machine(found: Mapping[str, object]) -> str:
    """Return the machine and the versions."""
    return f"<h3>Machine and versions</h3>{facts(found, 'narrow')}"


def prose(text: str) -> str:
    """Return text for a page in which no line ends before a per cent sign."""
    return escaped(text).replace(" %", "\u00a0%")


def _cell(cell: Cell) -> str:
    text = minus(cell.text) if isinstance(cell.value, float) else cell.text
    short = ' class="short"' if len(text) <= _SHORT else ""
    return f'<td{short} data-value="{_value(cell)}">{escaped(text)}</td>'


def _value(cell: Cell) -> str:
    return "" if cell.value is None else escaped(str(cell.value))
