"""Last resorts: what is put right in Chroma's own file, where every call of Chroma's fails.

Chroma keeps texts, metadata and a log in an SQLite file, and the vectors in files of a folder of their own. A record
with more metadata than Chroma can apply stays in the log; two writers can leave the vectors so that not even counting
works, or that Chroma dies of them. The texts are all there.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from retrieve_rerank.checks import check_query
from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, shown
from retrieve_rerank.indexes.directory import DATABASE, directory, one_spelling
from retrieve_rerank.indexes.records import fit_to_log, fits_log
from retrieve_rerank.indexes.store import ChromaCollection

_DAMAGED = ".damaged"  # the ending of a folder of vectors that is put aside


def stuck_in_log(collection: ChromaCollection) -> dict[int, str]:
    """Return the ids of the records in Chroma's log that it cannot apply, by their place in it; none at a server."""
    if collection.directory is None:
        return {}
    with _database(collection.directory) as database:
        return {place: id_ for place, id_, metadata in _logged(database, collection) if not fits_log(metadata)}


def mend_log(collection: ChromaCollection) -> None:
    """Move the metadata that Chroma cannot apply, in its log, to where `Record` keeps such."""
    folder = collection.directory
    if folder is None:
        raise InvalidInputError(f"collection {collection.name!r} is in no directory: its log cannot be changed")
    with collection.alone(), _database(folder, "rw") as database:
        for place, _, metadata in _logged(database, collection):
            if not fits_log(metadata):
                new = json.dumps(fit_to_log(metadata))
                database.execute("UPDATE embeddings_queue SET metadata = ? WHERE seq_id = ?", [new, place])
        database.commit()


def _logged(database: sqlite3.Connection, collection: ChromaCollection) -> list[tuple[int, str, dict[str, Any]]]:
    """Return what is logged and not applied: place, id and metadata."""
    query = (
        "SELECT seq_id, id, metadata FROM embeddings_queue WHERE topic LIKE '%/' || ?1 AND metadata IS NOT NULL AND "
        "seq_id > COALESCE((SELECT MAX(max_seq_id.seq_id) FROM max_seq_id JOIN segments ON "
        "segments.id = max_seq_id.segment_id WHERE segments.collection = ?1 AND segments.scope = 'METADATA'), 0)"
    )
    rows = database.execute(query, [str(collection.handle.id)]).fetchall()
    return [(place, id_, json.loads(metadata)) for place, id_, metadata in rows]


@contextmanager
def _database(folder: Path, mode: str = "ro") -> Iterator[sqlite3.Connection]:
    """Open Chroma's file itself."""
    try:
        with closing(sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode={mode}", uri=True)) as database:
            yield database
    except sqlite3.Error as error:
        raise RetrieveRerankError(
            f"cannot read {str(folder / DATABASE)!r}, which is none that is known here: {error}. Nothing was changed"
        ) from error


@contextmanager
def recovering(path: str | os.PathLike[str], collection: str) -> Iterator[None]:
    """Rename the folder that holds a collection's vectors, and delete it when the body has made new ones.

    The last resort for a directory whose vectors Chroma cannot read any more, or dies of. It keeps texts and metadata
    in an SQLite file; without the folder of the vectors, it starts with none, and all texts are there. A body that
    fails before it has written any, as for a wrong encoder, finds everything as it was.

    Nobody may have the directory open. A collection that never had many vectors has no such folder.

    Raises:
        InvalidInputError: If there is no such collection.
        IndexLockedError: If another process writes the directory.
        RetrieveRerankError: If Chroma's file is not one that is known here. Nothing is changed.
    """
    folder = stored_in(path)
    query = (
        "SELECT segments.id FROM segments JOIN collections ON segments.collection = collections.id "
        "WHERE collections.name = ? AND segments.scope = 'VECTOR'"
    )
    with _database(folder) as database:
        found = database.execute(query, [check_query(collection, "the name of a collection")])
        segments = [str(row[0]) for row in found]
    if not segments:
        raise InvalidInputError(f"there is no collection {shown(collection)} in {str(folder)!r}; check the name")
    vectors = folder / segments[0]
    if vectors.parent != folder:  # an id that is a path, which Chroma never writes
        raise RetrieveRerankError(f"{str(folder)!r} names {segments[0]!r} as a folder of its own; nothing was changed")
    aside = vectors.with_name(vectors.name + _DAMAGED)
    with directory(folder).held():
        if vectors.is_dir():
            shutil.rmtree(aside, ignore_errors=True)  # of a recovery that was killed
            vectors.rename(aside)
    try:
        yield
    except BaseException:
        with directory(folder).held():
            if aside.is_dir() and not vectors.exists():  # else new vectors have been written, and `repair` goes on
                aside.rename(vectors)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def stored_in(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a Chroma index that is there, or raise InvalidInputError."""
    folder = one_spelling(path)
    if not (folder / DATABASE).is_file():
        raise InvalidInputError(f"there is no Chroma index in {str(folder)!r}; give the directory of one")
    return folder
