"""Files read line by line, so that a message can say where something is wrong."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from urllib.parse import unquote

from retrieve_rerank.errors import InvalidInputError


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a UTF-8 file that are not blank, each with its place.

    Raises:
        InvalidInputError: If the file is missing or a line is not UTF-8.
    """
    if not file.is_file():
        raise InvalidInputError(f"{file} is missing")
    # "\n" only: a text may hold U+2028 and the like. A file from a spreadsheet begins with a BOM.
    with file.open("rb") as raw:
        for number, line in enumerate(raw, start=1):
            place = f"{file}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"{place} is not UTF-8: {error}") from error
            if text.strip():
                yield place, text.rstrip("\r\n")


def columns(line: str) -> list[str]:
    """Return the cells of a line. Between tabs, cells may hold spaces; else any white space ends a cell, as in TREC."""
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def known_id(identifier: str, ids: Container[str]) -> str:
    """Return an id of a TREC file as the dataset has it: in it, `to_runs` writes white space and % as URLs do."""
    plain = unquote(identifier)
    return plain if plain in ids else identifier
