"""Markdown becomes the words of its page: without front matter, HTML and lists of links."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from retrieve_rerank.cli.html import is_elsewhere, nearly_all, size_of
from retrieve_rerank.errors import require

_FRONT = re.compile(r"---[ \t]*\r?\n(.{1,20000}?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)|</?[a-z][^>]*>", re.DOTALL | re.IGNORECASE)
_WITHIN_WORDS = re.compile(r"</?(?:a|b|i|u|em|strong|code|span|sub|sup|kbd|tt|font|small|mark)\b", re.IGNORECASE)
_ANCHOR = re.compile(r"[ \t]*\{[#.][^{}\n]*\}[ \t]*(?=\r?\n|\Z)")  # {#install} at the end of a heading
_END = re.compile(r"\r\n?|\n")
_FEWEST_LINKS = {"paragraph": 3, "list": 1}  # of navigation


def without_front_matter(text: str) -> tuple[str, str | None, int]:
    """Return a Markdown text of whose front matter title and description stay, and nothing that is for machines.

    They stay as paragraphs: often nothing else says what the page is about. What is no YAML mapping is no front matter,
    but text between two thematic breaks.

    Returns:
        The text, its title if it says one, and the line of the file at which the text would begin, from 1.
    """
    if (front := _FRONT.match(text)) is None:
        return text, None, 1
    yaml = require("yaml", extra="cli")
    try:
        said = yaml.safe_load(front[1])
        if not isinstance(said, dict):
            return text, None, 1
        title, description = (
            # YAML leaves the halves of a character, as JSON writes them, in two.
            str(said[name]).strip().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if isinstance(said.get(name), (str, int, float))
            else ""
            for name in ("title", "description")
        )
    except Exception:  # noqa: BLE001 - PyYAML lets out whatever a value's constructor raises
        return text, None, 1
    head = "".join(f"{part}\n\n" for part in (title, description) if part)
    return head + text[front.end() :], title or None, front[0].count("\n") - head.count("\n") + 1


def words_only(text: str) -> str:
    """Return a Markdown text without comments, tags, anchors and lists of links; every line stays at its number."""
    lines = _END.split(text)
    starts = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    tokens = require("markdown_it", extra="cli").MarkdownIt("commonmark").parse(text)
    changes: list[tuple[int, int, str]] = []
    gone = 0  # the line up to which a list of links was left out
    for position, token in enumerate(tokens):
        if token.map is None or token.map[0] < gone:
            continue
        first, last = (starts[min(line, len(lines))] for line in token.map)
        if token.type == "html_block":
            changes += [(first + at, first + end, with_) for at, end, with_ in _tags(text[first:last])]
        elif token.type == "inline":
            changes += _inline_tags(text, first, last, token.children)
            if tokens[position - 1].type == "heading_open" and (anchor := _ANCHOR.search(text, first, last)):
                changes.append((*anchor.span(), ""))
        elif _is_navigation(token, tokens[position + 1 :]):
            gone = token.map[1]
            changes.append((first, last, "\n" * text.count("\n", first, last)))
    parts, done = [], 0
    for begin, end, instead in sorted(changes):
        if begin >= done:
            parts += [text[done:begin], instead]
            done = end
    return "".join([*parts, text[done:]])


def _tags(html: str) -> Iterator[tuple[int, int, str]]:
    """Yield where tags and comments are, and what stands in their place: line ends, or a border of words."""
    for tag in _TAG.finditer(html):
        yield *tag.span(), "\n" * tag[0].count("\n") or ("" if _WITHIN_WORDS.match(tag[0]) else " ")


def _inline_tags(text: str, first: int, last: int, children: Sequence[Any]) -> Iterator[tuple[int, int, str]]:
    for child in children:
        if child.type in ("html_inline", "code_inline") and (found := text.find(child.content, first, last)) >= 0:
            first = found + len(child.content)
            if child.type == "html_inline":
                yield from ((found + at, found + end, instead) for at, end, instead in _tags(child.content))


def _is_navigation(token: Any, following: Sequence[Any]) -> bool:
    """Whether a list or a paragraph consists of links to places in its page or beside it."""
    kind = "list" if token.type in ("bullet_list_open", "ordered_list_open") else token.type.removesuffix("_open")
    if kind not in _FEWEST_LINKS:
        return False
    links, words = list[int](), 0
    for inside in following:
        if inside.level == token.level and inside.nesting < 0:
            break
        if inside.type in ("fence", "code_block", "html_block"):
            return False
        within = None
        for child in inside.children or ():
            if child.type == "link_open":
                within = not is_elsewhere(str(child.attrGet("href")))
                links += [0] if within else []
            elif child.type == "link_close":
                within = None
            elif child.type in ("text", "code_inline"):
                words += size_of(child.content)
                if within:
                    links[-1] += size_of(child.content)
    return nearly_all(links, words, _FEWEST_LINKS[kind])
