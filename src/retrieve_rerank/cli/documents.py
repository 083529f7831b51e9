"""Files become documents: text with a title, and where it is from."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from retrieve_rerank.cli.html import declared_encoding, to_markdown, without_lines
from retrieve_rerank.cli.markdown import without_front_matter, words_only
from retrieve_rerank.errors import InvalidInputError, MissingDependencyError, in_one_line, require

Kind = Literal["text", "markdown", "html", "jsonl", "csv", "notebook", "office"]

KINDS: dict[str, Kind] = {
    **dict.fromkeys((".txt", ".text", ".rst"), "text"),
    **dict.fromkeys((".md", ".markdown", ".mdx"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".pdf", ".docx"), "office"),
    ".ipynb": "notebook",
}
_BINARY = (".doc", ".odt", ".epub", ".ppt", ".pptx", ".xls", ".xlsx")
RESERVED = ("source", "title", "heading", "line", "start", "end")

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MARKS = {  # the longer ones first: that of UTF-32 begins as that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MOST_PROBLEMS = 3  # lines that are named; of the others, how many there are


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
        line: Where the text begins in the file, from 1; None where lines of the text are not lines of the file.
        whole: Whether `line` is that of all the text, as of a record.
        metadata: Further facts of a record.
    """

    text: str
    kind: Literal["text", "markdown"]
    title: str | None = None
    id: str | None = None
    size: int = 0
    line: int | None = None
    whole: bool = False
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(slots=True)
class Reading:
    """What came of reading a file.

    Attributes:
        documents: In the file's order.
        problems: What could not be read, with its line: a part of the file is missing.
        notes: What a user should know all the same.
    """

    documents: list[Document] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str | None:
        """The problems in one sentence; None if there are none."""
        if not self.problems:
            return None
        more = len(self.problems) - _MOST_PROBLEMS
        return "; ".join(self.problems[:_MOST_PROBLEMS]) + (f"; and {more} lines more" if more > 0 else "")


class UnreadableError(Exception):
    """A file that cannot be read as what its name says."""


def read(
    content: bytes, name: str, fields: Fields, *, encoding: str | None = None, boilerplate: Collection[str] = ()
) -> Reading:
    """Return the documents of a file.

    Args:
        content: Of the file.
        name: Its name, whose ending says what it is; text, where the ending is unknown.
        fields: What is what in JSONL and CSV.
        encoding: Of text that does not say it; None is UTF-8.
        boilerplate: Lines that are left out of HTML.

    Raises:
        UnreadableError: If it is something else, whatever the library for it raises.
        MissingDependencyError: If a library for it is not installed.
    """
    kind = KINDS.get(Path(name).suffix.lower(), "text")
    reading = Reading()
    try:
        if kind == "office":
            reading.documents = [Document(_office(content, name), "markdown", size=len(content))]
            return reading
        text = _decoded(content, encoding, reading.notes, html=kind == "html")
        if kind in ("jsonl", "csv"):
            records = _jsonl(text) if kind == "jsonl" else _csv(text, tabs=name.lower().endswith(".tsv"))
            _take_records(records, fields, reading)
        else:
            reading.documents = [_page(text, kind, len(content), boilerplate)]
        if reading.problem is not None and not reading.documents:
            raise UnreadableError(reading.problem)
    except (UnreadableError, MissingDependencyError):
        raise
    except Exception as error:  # a parser may raise anything at what somebody made by hand: it is one file's
        raise UnreadableError(f"it cannot be read as {kind}: {in_one_line(error)}") from error
    return reading


def _page(text: str, kind: Kind, size: int, boilerplate: Collection[str]) -> Document:
    if "\0" in text and kind != "notebook":
        raise UnreadableError("it is no text file: it holds NUL characters")
    if kind == "html":
        title, text, is_markdown = to_markdown(text)
        if boilerplate and is_markdown:
            text = without_lines(text, boilerplate)
        return Document(text, "markdown" if is_markdown else "text", title, size=size)
    if kind == "notebook":
        return Document(_notebook(text), "markdown", size=size)
    if kind == "markdown":
        text, title, line = without_front_matter(text)
        return Document(words_only(text), "markdown", title, size=size, line=line)
    return Document(text, "text", size=size, line=1)


def _notebook(text: str) -> str:
    """Return the cells of a Jupyter notebook as Markdown, without their outputs."""
    notebook = json.loads(text)
    language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        cells.append(f"```{language}\n{source}\n```" if cell["cell_type"] == "code" and source else source)
    return "\n\n".join(filter(None, cells))


def _office(content: bytes, name: str) -> str:
    kind = Path(name).suffix.lower()
    # What is none would be taken for plain text.
    if (b"%PDF" not in content[:1024]) if kind == ".pdf" else not _is_docx(content):
        raise UnreadableError(f"it cannot be read as office: it is no {kind[1:]} file, whatever its name says")
    markitdown = require("markitdown", extra="documents")
    converted = markitdown.MarkItDown().convert_stream(io.BytesIO(content), file_extension=kind)
    return str(converted.text_content)


def _is_docx(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return "word/document.xml" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _decoded(content: bytes, encoding: str | None, notes: list[str], *, html: bool) -> str:
    """Decode a file by its byte order mark, or as it declares, or as the user says, or as UTF-8.

    What a declared encoding cannot mean is replaced, and said. Nothing is guessed, but for pages that declare nothing,
    which are read as browsers do.
    """
    chosen = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None) or encoding
    if chosen is None and html:
        chosen = declared_encoding(content)
    try:
        return content.decode(chosen or "utf-8")
    except UnicodeDecodeError as error:
        if chosen is None and html:
            return content.decode("cp1252", "replace")
        line = content.count(b"\n", 0, error.start) + 1
        if chosen is None:
            raise UnreadableError(
                f"line {line} is not UTF-8; say what it is with --encoding, such as cp1252"
            ) from error
        notes.append(f"line {line} is not {chosen}; what that cannot mean was replaced by \N{REPLACEMENT CHARACTER}")
        return content.decode(chosen, "replace")


Records = Iterator[tuple[int, int, dict[str, Any] | UnreadableError]]


def _take_records(records: Records, fields: Fields, reading: Reading) -> None:
    """Make documents of records with their line and size; one that cannot be used costs itself only."""
    known: dict[str, int] = {}
    for line, size, record in records:
        made = record if isinstance(record, UnreadableError) else _record(record, fields, line, size)
        if isinstance(made, Document) and made.id is not None and (first := known.setdefault(made.id, line)) != line:
            made = UnreadableError(
                f"has the id {made.id!r} of line {first}; give every record its own, or another --id-field"
            )
        if isinstance(made, Document):
            reading.documents.append(made)
        else:
            reading.problems.append(f"line {line} {made}")


def _jsonl(text: str) -> Records:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record: dict[str, Any] | UnreadableError
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                record = UnreadableError("must be a JSON object")
        except (ValueError, RecursionError) as error:
            record = UnreadableError(f"is not JSON: {error}")
        yield number, len(line) + 1, record


def _csv(text: str, *, tabs: bool) -> Records:
    head = text.split("\n", 1)[0]
    # A spreadsheet's comma depends on the country.
    delimiter = "\t" if tabs else max(",;\t", key=head.count)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Lines end at line ends only, not at the separators of paragraphs and pages that str.splitlines knows.
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    read_next = partial(next, rows, None)
    while True:
        try:
            row = read_next()
        except csv.Error as error:
            yield rows.line_num, 0, UnreadableError(f"is not CSV: {error}")
            continue
        if row is None:
            return
        if any(cell.strip() for cell in row.get(None) or ()):  # DictReader's key of what is too much
            wide = UnreadableError(f"has more cells than the header; quote a text that holds {delimiter!r}")
            yield rows.line_num, 0, wide
            continue
        record = {name: value for name, value in row.items() if isinstance(name, str) and value is not None}
        yield rows.line_num, sum(map(len, record.values())), record


def _record(record: dict[str, Any], fields: Fields, line: int, size: int) -> Document | UnreadableError:
    text = record.get(fields.text)
    if any(isinstance(part, str) and _SURROGATE.search(part) for item in record.items() for part in item):
        return UnreadableError("holds half a character (a lone surrogate such as \\ud83d), which is no text")
    if not isinstance(text, str):
        there = ", ".join(sorted(map(str, record))[:10]) or "none"
        return UnreadableError(
            f"has no text in {fields.text!r}; its fields: {there}. Name the right one with --text-field"
        )
    title, identifier = record.get(fields.title), record.get(fields.id, record.get("_id"))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    used = {fields.text, fields.title, fields.id, "_id", *RESERVED}
    facts = {
        name: value
        for name, value in record.items()
        if name not in used and isinstance(value, (str, int, float)) and not _is_endless(value)
    }
    return Document(
        text,
        "text",
        title.strip() or None if isinstance(title, str) else None,
        identifier or None if isinstance(identifier, str) else None,
        size,
        line,
        whole=True,
        metadata=facts,
    )


def _is_endless(value: object) -> bool:
    """Whether it is no number that JSON has: pandas writes NaN for what is missing."""
    return isinstance(value, float) and not math.isfinite(value)


def reads_kind(file: Path) -> bool:
    """Whether a file in a folder is read: by its ending, and if what it needs is installed."""
    kind = KINDS.get(file.suffix.lower())
    return kind is not None and (kind != "office" or find_spec("markitdown") is not None)


def check_named(file: Path) -> None:
    """Raise where a file that was named is of a kind that is not read.

    Raises:
        InvalidInputError: If no version of this package reads it.
        MissingDependencyError: If an extra is missing.
    """
    kind = file.suffix.lower()
    if kind in _BINARY:
        raise InvalidInputError(
            f"{file} cannot be indexed: {file.suffix} files are not read. Convert it to text, Markdown or HTML first"
        )
    if KINDS.get(kind) == "office":
        require("markitdown", extra="documents")
