"""A BM25 index on disk: written beside the old one, switched to in one step, read where it lies.

A directory holds `index.json`, which says what the index is and which folder its files are in. Saving writes a new
folder, forces it to the disk, and then replaces `index.json`: whoever is killed in between leaves the old index. Files
are never changed once written, so that those who have them mapped read on. Nothing is named by what users store.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from retrieve_rerank._files import locked
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError
from retrieve_rerank.indexes.packed import Ints, PackedTexts
from retrieve_rerank.indexes.postings import Postings
from retrieve_rerank.indexes.records import Record, user_metadata
from retrieve_rerank.types import Passage

FORMAT = 1

_POINTER = "index.json"
_PREFIX = "generation-"
_SAVED = "saved"  # in a folder that index.json has named; of a first save that was interrupted there is none
_OURS = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}")
_COLUMNS = ("ids", "texts", "metadata")
_ARRAYS = ("starts", "slots", "counts", "weights")


@dataclass(frozen=True, slots=True)
class Columns:
    """The passages, by slot: their ids, their texts, and their metadata as JSON, empty where there is none."""

    ids: PackedTexts
    texts: PackedTexts
    metadata: PackedTexts

    @classmethod
    def empty(cls) -> Columns:
        """Return columns of nothing."""
        return cls(PackedTexts(), PackedTexts(), PackedTexts())

    def kept(self, slots: Ints) -> Columns:
        """Return columns of the records in `slots` alone, in memory."""
        return Columns(
            *(
                PackedTexts(b"".join(column.kept(slots.tolist())), column.ends(slots))
                for column in (self.ids, self.texts, self.metadata)
            )
        )

    def append(self, record: Record) -> None:
        """Give a record the next slot."""
        self.ids.append(record.id)
        self.texts.append(record.text)
        self.metadata.append(json.dumps(dict(record.metadata)) if record.metadata else "")

    def cut(self, slots: int) -> None:
        """Forget the records from this slot on, which are not saved."""
        for column in (self.ids, self.texts, self.metadata):
            column.cut(slots)

    def record(self, slot: int) -> Record:
        """Return what was stored."""
        metadata = self.metadata[slot]
        return Record(self.ids[slot], self.texts[slot], json.loads(metadata) if metadata else {})

    def passage(self, slot: int) -> Passage:
        """Return what was stored as a passage with the user's own metadata."""
        metadata = self.metadata[slot]
        return Passage(self.ids[slot], self.texts[slot], user_metadata(json.loads(metadata)) if metadata else {})


@dataclass(frozen=True, slots=True)
class Content:
    """All of an index: how its words were cut and weighed, the words, where they are, and the passages.

    What is saved has no dead slots, and its postings are weighed.
    """

    facts: Mapping[str, str | None]
    k1: float
    b: float
    stems: Sequence[str]
    postings: Postings
    columns: Columns


class IndexFolder:
    """A directory with one index, or none yet. Knows which state of it was last read or written here.

    Args:
        path: The directory; it is made if missing.

    Raises:
        InvalidInputError: If it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            if not os.fspath(path):
                raise ValueError("the path is empty")
            self.path = Path(path).expanduser().resolve()
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"cannot open a BM25 index in {str(path)!r}: {error}. Give a directory that can be written"
            ) from error
        self._generation: str | None = None
        self._seen: tuple[int, ...] | None = None

    def changed(self) -> bool:
        """Return whether somebody else has saved since this object read or wrote."""
        return self._stamp() not in (None, self._seen)

    def load(self) -> Content | None:
        """Return the index with its files mapped into memory, or None if there is none.

        Raises:
            IndexMismatchError: If a newer version wrote it.
            InvalidInputError: If it is damaged.
        """
        for _ in range(10):
            seen = self._stamp()
            if seen is None:
                if any(_OURS.fullmatch(mark.parent.name) for mark in self.path.glob(f"{_PREFIX}*/{_SAVED}")):
                    raise self._damaged(f"{_POINTER} is missing, and the files of an index are there")
                return None
            pointer = self._pointer()
            try:
                content = _read(self.path / pointer["generation"], pointer)
            except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
                if self._stamp() != seen:
                    continue  # somebody saved meanwhile, and took the old files away
                raise self._damaged(error) from error
            self._generation, self._seen = pointer["generation"], seen
            return content
        raise RetrieveRerankError(f"the index in {str(self.path)!r} is being saved over and over; try again")

    def save(self, content: Content, alive: Ints | None) -> None:
        """Write an index and switch to it. Whatever happens, the directory holds the old index or the new one.

        Args:
            content: What to write; its postings count the passages that are alive only.
            alive: The slots to write, or None for all.

        Raises:
            IndexLockedError: If another process is saving.
            IndexMismatchError: If another object has saved since this one read; its changes would be lost.
            InvalidInputError: If the directory cannot be written.
        """
        folder = self.path / f"{_PREFIX}{uuid.uuid4().hex}"
        try:
            with locked(self.path / "index.lock"):
                if self._stamp() is not None and self._pointer()["generation"] != self._generation:
                    raise IndexMismatchError(
                        f"the index in {str(self.path)!r} was saved by another process or object after this one read "
                        "it, and saving now would undo that. Open the index again, in another object, and repeat the "
                        "changes there"
                    )
                folder.mkdir()
                sizes = _write(folder, content, alive)
                pointer = {
                    "format": FORMAT,
                    "generation": folder.name,
                    "passages": int(len(content.columns.ids) if alive is None else len(alive)),
                    "words": dict(content.facts),
                    "k1": content.k1,
                    "b": content.b,
                    "files": sizes,
                }
                with _synced(self.path / f"{_POINTER}.new") as file:
                    file.write(json.dumps(pointer, indent=1).encode())
                os.replace(self.path / f"{_POINTER}.new", self.path / _POINTER)  # noqa: PTH105 - the one step
                self._generation = folder.name
                _sync_folder(self.path)
                (folder / _SAVED).touch()
                self._seen = self._stamp()
                self._tidy(folder.name)
        except OSError as error:
            if self._generation == folder.name:  # it is saved; only tidying or unlocking failed
                return
            shutil.rmtree(folder, ignore_errors=True)
            if self.path.is_dir():
                left = "What was saved before is as it was"
            else:  # and not made again: where a disk was mounted, it would be the wrong one
                left = "The directory is gone; bring it back, or make an empty one, and save again"
            raise InvalidInputError(f"cannot save the index in {str(self.path)!r}: {error}. {left}") from error

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = (self.path / _POINTER).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _pointer(self) -> dict[str, Any]:
        try:
            pointer: dict[str, Any] = json.loads((self.path / _POINTER).read_bytes())
            newer = pointer["format"] > FORMAT
            valid = (
                pointer["generation"].startswith(_PREFIX) and Path(pointer["generation"]).name == pointer["generation"]
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error
        if newer:
            raise IndexMismatchError(
                f"the index in {str(self.path)!r} has format {pointer['format']}, written by a newer retrieve-rerank; "
                f"this one reads up to {FORMAT}. Upgrade retrieve-rerank"
            )
        if not valid:
            raise self._damaged("index.json names no folder of an index")
        return pointer

    def _damaged(self, why: object) -> InvalidInputError:
        return InvalidInputError(
            f"the index in {str(self.path)!r} is damaged: {why}. Restore the directory from a copy, or delete it and "
            "add the passages again"
        )

    def _tidy(self, current: str) -> None:
        """Remove what older and interrupted saves left. Where a file is in use and cannot go, the next save tries."""
        for folder in self.path.glob(f"{_PREFIX}*"):
            if folder.name != current and _OURS.fullmatch(folder.name):  # a user's folder may begin with the same word
                shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, content: Content, alive: Ints | None) -> dict[str, int]:
    """Write the files of an index and return their sizes."""
    with _synced(folder / "stems.json") as file:
        file.write(json.dumps(list(content.stems), ensure_ascii=False).encode())
    for name in _ARRAYS:
        with _synced(folder / f"{name}.npy") as file:
            np.save(file, getattr(content.postings, name), allow_pickle=False)
    for name in _COLUMNS:
        column: PackedTexts = getattr(content.columns, name)
        with _synced(folder / f"{name}.bin") as file:
            file.writelines(column.kept(None if alive is None else alive.tolist()))
        with _synced(folder / f"{name}.npy") as file:
            np.save(file, column.ends(alive), allow_pickle=False)
    _sync_folder(folder)
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def _read(folder: Path, pointer: Mapping[str, Any]) -> Content:
    """Map the files of an index, or raise ValueError if they are not those that were written."""
    for name, size in pointer["files"].items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes where {size} were written")
    stems = json.loads((folder / "stems.json").read_bytes())
    arrays = {name: _mapped_array(folder / f"{name}.npy") for name in _ARRAYS}
    columns = {
        name: PackedTexts(_mapped_bytes(folder / f"{name}.bin"), _mapped_array(folder / f"{name}.npy"))
        for name in _COLUMNS
    }
    entries = len(arrays["slots"])
    if (
        len(arrays["starts"]) != len(stems) + 1
        or arrays["starts"][-1] != entries
        or any(len(arrays[name]) != entries for name in ("counts", "weights"))
        or any(len(column) != pointer["passages"] for column in columns.values())
    ):
        raise ValueError("its files do not belong together")
    return Content(
        dict(pointer["words"]), float(pointer["k1"]), float(pointer["b"]), stems, Postings(**arrays), Columns(**columns)
    )


def _mapped_array(path: Path) -> Any:
    # As a plain array: every slice of numpy's own class for mapped files costs more than what is read.
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _mapped_bytes(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing; it is on the disk when this ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Force a directory's list of files to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
