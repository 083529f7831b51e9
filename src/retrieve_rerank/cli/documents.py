"""Files become documents: text with a title, and where it is from."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retrieve_rerank.errors import InvalidInputError, require

Kind = Literal["text", "markdown", "html", "jsonl", "csv"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys((".txt", ".text", ".rst"), "text"),
    **dict.fromkeys((".md", ".markdown", ".mdx"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
}
BINARY = (".pdf", ".doc", ".docx", ".odt", ".epub", ".ppt", ".pptx", ".xls", ".xlsx")
RESERVED = ("source", "title", "heading", "start", "end")

_FRONT = re.compile(r"---[ \t]*\r?\n(.{1,20000}?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NO_TEXT = ("title", "script", "style", "noscript", "template", "svg", "nav")


@dataclass(frozen=True, slots=True)
class Fields:
    """What the columns of JSONL and CSV files are called. `id` is looked for as `_id` too."""

    text: str = "text"
    title: str = "title"
    id: str = "id"


@dataclass(frozen=True, slots=True)
class Document:
    """What is split into passages: a file, or a record of one.

    Attributes:
        text: Without what is there for a browser only.
        kind: "markdown" or "text": how to split it.
        title: Of the document, if it has one.
        id: Of the record, if it has one.
        size: Bytes of the file that it stands for; for progress.
        metadata: Further facts of a record.
    """

    text: str
    kind: Kind
    title: str | None = None
    id: str | None = None
    size: int = 0
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class UnreadableError(Exception):
    """A file that cannot be read as what its name says."""


def read(content: bytes, name: str, fields: Fields) -> list[Document]:
    """Return the documents of a file.

    Args:
        content: Of the file.
        name: Its name, whose ending says what it is; text, where the ending is unknown.
        fields: What is what in JSONL and CSV.

    Raises:
        UnreadableError: If it is something else.
        MissingDependencyError: If a library for it is not installed.
    """
    kind = KINDS.get(Path(name).suffix.lower(), "text")
    if kind == "html":
        return [_html(content)]
    if kind == "jsonl":
        return _each_once(_jsonl(content, fields))
    text = _decoded(content)
    if kind == "csv":
        return _each_once(_csv(text, fields, tabs=name.lower().endswith(".tsv")))
    if "\0" in text:
        raise UnreadableError("it is no text file: it holds NUL characters")
    title, text = _without_front(text) if kind == "markdown" else (None, text)
    return [Document(text, kind, title, size=len(content))]


def _without_front(text: str) -> tuple[str | None, str]:
    """Return the title that a Markdown file's front matter names, and the text without what is for machines.

    Title and description stay as paragraphs: often nothing else says what the page is about. What is no YAML mapping
    is no front matter, but text between two thematic breaks.
    """
    front = _FRONT.match(text)
    if front is None:
        return None, text
    yaml = require("yaml", extra="cli")
    try:
        said = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError of a date that there is not
        return None, text
    if not isinstance(said, dict):
        return None, text
    title, description = (
        # YAML leaves the halves of a character, as JSON writes them, in two.
        str(said[name]).strip().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(said.get(name), (str, int, float))
        else ""
        for name in ("title", "description")
    )
    return title or None, "\n\n".join(filter(None, (title, description, text[front.end() :])))


def _each_once(records: Iterator[Document]) -> list[Document]:
    documents = list(records)
    times = Counter(document.id for document in documents if document.id is not None)
    if twice := next((id_ for id_, count in times.items() if count > 1), None):
        raise UnreadableError(f"id {twice!r} occurs twice; give every record its own, or another --id-field")
    return documents


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"line {line} is not UTF-8; convert the file to UTF-8") from error


def _html(content: bytes) -> Document:
    bs4 = require("bs4", extra="cli")
    markdownify = require("markdownify", extra="cli")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the page is like
        try:
            page = bs4.BeautifulSoup(content, "html.parser")  # which finds the encoding out
        except bs4.ParserRejectedMarkup as error:
            raise UnreadableError(f"it is no HTML that can be read: {error}") from error
        title = page.title.get_text() if page.title is not None else ""
        for element in page(_NO_TEXT):
            element.decompose()
        try:
            converter = markdownify.MarkdownConverter(
                heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
            )
            text, kind = str(converter.convert_soup(page)), KINDS[".md"]
        except (RecursionError, ValueError):  # elements in one another by the hundred; a list that begins at "½"
            text, kind = str(page.get_text("\n")), KINDS[".txt"]
    return Document(text, kind, " ".join(title.split()) or None, size=len(content))


def _jsonl(content: bytes, fields: Fields) -> Iterator[Document]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f"line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UnreadableError(f"line {number} must be a JSON object")
        yield _record(record, fields, f"line {number}", len(line) + 1)


def _csv(text: str, fields: Fields, *, tabs: bool) -> Iterator[Document]:
    head = text.split("\n", 1)[0]
    # A spreadsheet's comma depends on the country.
    delimiter = "\t" if tabs else max(",;\t", key=head.count)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Lines end at line ends only, not at the separators of paragraphs and pages that str.splitlines knows.
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if any(cell.strip() for cell in row.get(None) or ()):
                raise UnreadableError(
                    f"line {rows.line_num} has more cells than the header; quote a text that holds {delimiter!r}"
                )
            record = {name: value for name, value in row.items() if isinstance(name, str) and value is not None}
            yield _record(record, fields, f"line {rows.line_num}", sum(map(len, record.values())))
    except csv.Error as error:
        raise UnreadableError(f"line {rows.line_num} is not CSV: {error}") from error


def _record(record: dict[str, Any], fields: Fields, place: str, size: int) -> Document:
    text = record.get(fields.text)
    if any(isinstance(part, str) and _SURROGATE.search(part) for item in record.items() for part in item):
        raise UnreadableError(f"{place} holds half a character (a lone surrogate such as \\ud83d), which is no text")
    if not isinstance(text, str):
        there = ", ".join(sorted(map(str, record))[:10]) or "none"
        raise UnreadableError(
            f"{place} has no text in {fields.text!r}; its fields: {there}. Name the right one with --text-field"
        )
    title, identifier = record.get(fields.title), record.get(fields.id, record.get("_id"))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    used = {fields.text, fields.title, fields.id, "_id", *RESERVED}
    facts = {
        name: value
        for name, value in record.items()
        if name not in used and isinstance(value, (str, int, float)) and not _endless(value)
    }
    return Document(
        text,
        "text",
        title.strip() or None if isinstance(title, str) else None,
        identifier or None if isinstance(identifier, str) else None,
        size,
        facts,
    )


def _endless(value: object) -> bool:
    """Whether it is no number that JSON has: pandas writes NaN for what is missing."""
    return isinstance(value, float) and not math.isfinite(value)


def check_named(file: Path) -> None:
    """Raise InvalidInputError where a file that was named is of a kind that is not read."""
    if file.suffix.lower() in BINARY:
        raise InvalidInputError(
            f"{file} cannot be indexed: {file.suffix} files are not read. Convert it to text, Markdown or HTML first"
        )
