"""Scores that outlive the process: an evaluation can be broken off, and a further pipeline costs only what is new."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256

from retrieve_rerank._files import check_path
from retrieve_rerank.checks import number_of
from retrieve_rerank.errors import InvalidInputError

_FORMAT = 1
_TABLE = (
    "CREATE TABLE scores (pair BLOB PRIMARY KEY, logit REAL NOT NULL, truncated INTEGER NOT NULL, "
    "seconds REAL NOT NULL) WITHOUT ROWID"
)
_PATIENCE = 60.0  # seconds that another process may hold the file


@dataclass(frozen=True, slots=True)
class Score:
    """What a cross-encoder said of one pair of question and text."""

    logit: float  # what ranking is by
    truncated: bool  # whether it did not read the text to its end
    seconds: float  # the pair's share of the time of its call


class ScoreStore:
    """Scores in an SQLite file, by cross-encoder, question and text. Made by `open_store`."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path

    def get(self, fingerprint: str, query: str, texts: Sequence[str]) -> dict[str, Score]:
        """Return what is stored of some texts.

        Raises:
            InvalidInputError: If the file cannot be read.
        """
        found = {}
        with _named(self._path):
            for text in texts:
                row = self._connection.execute(
                    "SELECT logit, truncated, seconds FROM scores WHERE pair = ?", (_pair(fingerprint, query, text),)
                ).fetchone()
                if row is None:
                    continue
                if any(math.isnan(number_of(value)) for value in row):  # SQLite keeps a text in a REAL column
                    raise sqlite3.DatabaseError("it holds scores that are no numbers")
                found[text] = Score(row[0], bool(row[1]), row[2])
        return found

    def put(self, fingerprint: str, query: str, scores: Mapping[str, Score]) -> None:
        """Store scores by text, at once and for good.

        Raises:
            InvalidInputError: If the file cannot be written.
        """
        rows = [
            (_pair(fingerprint, query, text), score.logit, score.truncated, score.seconds)
            for text, score in scores.items()
        ]
        with _named(self._path), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)


@contextmanager
def open_store(path: str | os.PathLike[str]) -> Iterator[ScoreStore]:
    """Open a store, which is made if missing; its folder must be there.

    Raises:
        InvalidInputError: If the file cannot be opened or is something else.
    """
    name = str(check_path(path, "cache"))
    with _named(name):
        connection = sqlite3.connect(name, timeout=_PATIENCE)
    with closing(connection):
        with _named(name):
            _prepare(connection)
        yield ScoreStore(connection, name)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Name the file in SQLite's errors."""
    try:
        yield
    except (sqlite3.Error, UnicodeEncodeError) as error:
        raise InvalidInputError(f"cache={path!r} cannot be used: {error}; give another path") from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the table, unless it is there."""
    if _state(connection) == (_FORMAT, {"scores"}):
        return
    with connection:
        # Table and format at once, and by one process: outside, another may come between what is looked at.
        connection.execute("BEGIN IMMEDIATE")
        state = _state(connection)
        if state == (0, set()):
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        elif state != (_FORMAT, {"scores"}):
            raise sqlite3.DatabaseError("it is a database of something else")


def _state(connection: sqlite3.Connection) -> tuple[int, set[str]]:
    """Return the format and the names of the tables."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return found, {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def key_of(name: str, cross_encoder: object, scale: str) -> str:
    """Return what tells this cross-encoder's scores, read on a scale, from another's.

    Raises:
        InvalidInputError: If it does not say.
    """
    fingerprint = getattr(cross_encoder, "fingerprint", None)
    if not isinstance(fingerprint, Mapping) or not fingerprint:
        raise InvalidInputError(
            f"cache needs a cross-encoder that says which it is, and {type(cross_encoder).__name__} of {name!r} has no "
            "`fingerprint`, a dict of what its scores depend on; add one, or leave cache out"
        )
    return json.dumps([scale, dict(fingerprint)], sort_keys=True, default=str)


def _pair(fingerprint: str, query: str, text: str) -> bytes:
    return sha256(json.dumps([fingerprint, query, text]).encode()).digest()
