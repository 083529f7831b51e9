"""The last resort for a directory whose vectors Chroma cannot read any more, or dies of: texts without the vectors.

Chroma keeps texts and metadata in an SQLite file, and the vectors in files of a folder of their own. Two writers can
leave the latter so that every call fails, even one that counts. Without that folder, Chroma starts with no vectors, and
all texts are there.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError
from retrieve_rerank.indexes.client import one_spelling
from retrieve_rerank.indexes.directory import directory

_SUFFIX = ".damaged"


@contextmanager
def recovering(path: str | os.PathLike[str], collection: str) -> Iterator[None]:
    """Rename the folder that holds a collection's vectors, and delete it when the body has made new ones.

    A body that fails before it has written any, as for a wrong encoder, finds everything as it was.

    Nobody may have the directory open. A collection that never had many vectors has no such folder.

    Raises:
        InvalidInputError: If there is no such collection.
        IndexLockedError: If another process writes the directory.
        RetrieveRerankError: If Chroma's file is not one that is known here. Nothing is changed.
    """
    folder = one_spelling(path)
    file = folder / "chroma.sqlite3"
    if not file.is_file():
        raise InvalidInputError(f"there is no Chroma index in {str(path)!r}; give the directory of one")
    query = (
        "SELECT segments.id FROM segments JOIN collections ON segments.collection = collections.id "
        "WHERE collections.name = ? AND segments.scope = 'VECTOR'"
    )
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            segments = [str(row[0]) for row in database.execute(query, [collection])]
    except sqlite3.Error as error:
        raise RetrieveRerankError(
            f"cannot read which folder of {str(path)!r} holds the vectors of {collection!r}: {error}"
        ) from error
    if not segments:
        raise InvalidInputError(f"there is no collection {collection!r} in {str(path)!r}; check the name")
    vectors = folder / segments[0]
    if vectors.parent != folder:  # an id that is a path, which Chroma never writes
        raise RetrieveRerankError(f"{str(file)!r} names {segments[0]!r} as a folder of its own; nothing was changed")
    aside = vectors.with_name(vectors.name + _SUFFIX)
    with _writer_of(folder):
        if vectors.is_dir():
            shutil.rmtree(aside, ignore_errors=True)  # of a recovery that was killed
            vectors.rename(aside)
    try:
        yield
    except BaseException:
        with _writer_of(folder):
            if aside.is_dir() and not vectors.exists():  # else new vectors have been written, and `repair` goes on
                aside.rename(vectors)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _writer_of(folder: Path) -> Iterator[None]:
    shared, owner = directory(folder), uuid.uuid4().hex
    shared.hold(owner, 0.0)
    try:
        yield
    finally:
        shared.let_go(owner, os.getpid())
