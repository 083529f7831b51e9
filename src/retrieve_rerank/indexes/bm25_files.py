"""A BM25 index on disk: written beside the old one, switched to in one step, read where it lies.

A directory holds `index.json`, which says what the index is and which folder its files are in: bm25s's own, and beside
them the passages and which words each has. Saving writes a new folder, forces it to the disk, and then replaces
`index.json`: whoever is killed in between leaves the old index. Files are never changed once written, so that those who
have them mapped read on. Nothing is named by what users store.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieve_rerank._files import locked, resolved, sync_file, sync_folder, write_text
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError, in_one_line, require
from retrieve_rerank.indexes.records import Record

FORMAT = 2  # 1 had a file for each of ids, texts and metadata, and its words are no longer those of today

Ints = npt.NDArray[np.integer[Any]]
Weights = dict[str, Any]  # as bm25s has them: "data", "indices" and "indptr" of a sparse matrix, and "num_docs"

_POINTER = "index.json"
_PREFIX = "generation-"
_SAVED = "saved"  # in a folder that index.json has named; of a first save that was interrupted there is none
_OURS = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}")
_BLOCK = 1 << 20  # words weighed in one go: the interim results are kept small
_read_id = json.JSONDecoder().raw_decode
_RESTORE = "Restore the directory from a copy, or delete it and add the passages again"
_ARRAYS = ("words", "lengths", "ends")
_MATRIX = ("data", "indices", "indptr")


@dataclass(frozen=True, slots=True)
class Rows:
    """Records by number, each as JSON in UTF-8: those on disk are read where they lie, new ones are kept behind them.

    Attributes:
        stored: Those on disk, one after another.
        ends: Where each of them ends.
        kept: Which of them are still there.
        new: The others.
    """

    stored: bytes | mmap.mmap = b""
    ends: Sequence[int] = ()
    kept: Sequence[int] = ()
    new: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.kept) + len(self.new)

    def __getitem__(self, number: int) -> Record:
        try:
            id_, text, metadata = json.loads(self.raw(number))
            return Record(id_, text, dict(metadata))
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidInputError(
                f"passage {number} of a BM25 index cannot be read from rows.bin: {in_one_line(error)}. {_RESTORE}"
            ) from error

    def raw(self, number: int) -> bytes:
        """Return a record as it is stored."""
        if number >= len(self.kept):
            return self.new[number - len(self.kept)]
        place = self.kept[number]
        return self.stored[self.ends[place - 1] if place else 0 : self.ends[place]]

    def id(self, number: int) -> str:
        """Return a record's id, without reading the rest of it."""
        try:
            id_: str = _read_id(self.raw(number).decode(), 1)[0]
        except (ValueError, IndexError):
            return self[number].id  # which says what is wrong
        return id_

    def append(self, record: Record) -> None:
        """Put one more record at the end."""
        self.new.append(to_row(record.id, record.text, record.metadata))

    def cut(self, count: int) -> None:
        """Forget the records from this number on, which are new."""
        del self.new[count - len(self.kept) :]

    def only(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """Return the records that are chosen, numbered anew. Who reads these rows still has them all."""
        old, new = np.split(chosen, [len(self.kept)])
        kept = _numbers(np.asarray(self.kept, np.int64)[old])
        return Rows(self.stored, self.ends, kept, [row for row, stays in zip(self.new, new, strict=True) if stays])


def to_row(id_: str, text: str, metadata: Mapping[str, Any]) -> bytes:
    """Return a record as it is stored."""
    return json.dumps([id_, text, dict(metadata)], ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Content:
    """All of an index.

    Attributes:
        facts: How its texts were cut into words.
        k1: How much a word's repetitions add.
        b: How much a passage's length takes away.
        stems: The words, by number.
        words: The words of all passages by number, one passage after another; int32. Those that make their passage no
            longer as `~number`.
        lengths: How many of them each passage has; int32.
        weights: What each word of each passage adds to a query's score; None where this is not known.
        rows: The passages.
    """

    facts: Mapping[str, str | None]
    k1: float
    b: float
    stems: Sequence[str] = ()
    words: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    lengths: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    weights: Weights | None = None
    rows: Rows = field(default_factory=Rows)


def weigh(words: Ints, lengths: Ints, stems: int, k1: float, b: float) -> Weights:
    """Return what each word of each passage adds to a query's score: BM25 as Lucene has it, in bm25s's precision.

    bm25s itself, which works on lists, needs 1.4 times as much memory for a million passages.

    Args:
        words: The words of all passages by number, one passage after another; int32, (n,). Those that make their
            passage no longer as `~number`.
        lengths: How many of them each passage has; int32, (passages,).
        stems: How many different words there are.
        k1: How much a word's repetitions add.
        b: How much a passage's length takes away.
    """
    passages = len(lengths)
    places = np.repeat(np.arange(passages, dtype=np.int32), lengths)
    long = np.bincount(places[words >= 0], minlength=passages)
    keys = _plain_numbers(words).astype(np.int64)  # in few and small steps, as there may be many
    keys <<= 32
    keys |= places
    del places
    keys.sort()
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), np.bool_), keys[1:] != keys[:-1]]))
    counts = np.diff(begins, append=len(keys)).astype(np.int32)
    keys = keys[begins]
    numbers, found = keys.astype(np.int32), np.bincount(keys >> 32, minlength=stems)
    relative = 1 - b + b * long / max(long.sum() / max(1, passages), 1e-9)
    rarity = np.log(1 + (passages - found + 0.5) / (found + 0.5)).astype(np.float32)
    data = np.empty(len(keys), np.float32)
    for start in range(0, len(data), _BLOCK):
        part = slice(start, start + _BLOCK)
        data[part] = rarity[keys[part] >> 32] * (counts[part] / (k1 * relative[numbers[part]] + counts[part]))
    indptr = np.concatenate([[0], np.cumsum(found, dtype=np.int64)])
    return {"data": data, "indices": numbers, "indptr": indptr, "num_docs": passages}


def used(content: Content, stems: Sequence[str]) -> Content:
    """Return content to be saved: with the stems in use, and not those of what was deleted or could not be stored."""
    weights: Weights = content.weights or {}
    indptr = weights["indptr"]
    used = np.diff(indptr) > 0
    numbers = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return replace(
        content,
        stems=[stem for stem, is_used in zip(stems, used.tolist(), strict=False) if is_used],
        words=numbers[_plain_numbers(content.words)] ^ (content.words >> 31),
        weights={**weights, "indptr": np.concatenate([[0], indptr[1:][used]])},
    )


def _plain_numbers(words: Ints) -> Ints:
    """Return the numbers of words also where they are complements."""
    return words ^ (words >> 31)  # the sign in every bit


class IndexFolder:
    """A directory with one index, or none yet. Knows which state of it was last read or written here.

    Args:
        path: The directory; it is made if missing.

    Raises:
        InvalidInputError: If it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolved(path, "the directory of a BM25 index")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(
                f"cannot open a BM25 index in {str(self.path)!r}: {error}. Give a directory that can be written"
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
            except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError) as error:
                if self._stamp() != seen:
                    continue  # somebody saved meanwhile, and took the old files away
                raise self._damaged(error) from error
            self._generation, self._seen = pointer["generation"], seen
            return content
        raise RetrieveRerankError(f"the index in {str(self.path)!r} is being saved over and over; try again")

    def save(self, content: Content) -> None:
        """Write an index and switch to it. Whatever happens, the directory holds the old index or the new one.

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
                pointer = {
                    "format": FORMAT,
                    "generation": folder.name,
                    "passages": len(content.rows),
                    "words": dict(content.facts),
                    "k1": content.k1,
                    "b": content.b,
                    "files": _write(folder, content),
                }
                write_text(json.dumps(pointer, indent=1), self.path / _POINTER, "the index")
                with suppress(OSError):  # it is saved
                    (folder / _SAVED).touch()
        except OSError as error:
            if not self._names(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
                if self.path.is_dir():
                    left = "What was saved before is as it was"
                else:  # and not made again: where a disk was mounted, it would be the wrong one
                    left = "The directory is gone; bring it back, or make an empty one, and save again"
                raise InvalidInputError(f"cannot save the index in {str(self.path)!r}: {error}. {left}") from error
        self._generation = folder.name
        with suppress(OSError):  # only tidying failed
            self._seen = self._stamp()
            self._tidy(folder.name)

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
            name = pointer["generation"]
            valid = name.startswith(_PREFIX) and Path(name).name == name
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(error) from error
        if newer:
            raise IndexMismatchError(
                f"the index in {str(self.path)!r} has format {pointer['format']}, written by a newer retrieve-rerank; "
                f"this one reads up to {FORMAT}. Upgrade retrieve-rerank"
            )
        if not valid:
            raise self._damaged(f"{_POINTER} names no folder of an index")
        return pointer

    def _names(self, generation: str) -> bool:
        try:
            named: bool = self._pointer()["generation"] == generation
        except RetrieveRerankError:
            return False
        return named

    def _damaged(self, why: object) -> InvalidInputError:
        return InvalidInputError(f"the index in {str(self.path)!r} is damaged: {why}. {_RESTORE}")

    def _tidy(self, current: str) -> None:
        """Remove what older and interrupted saves left. Where a file is in use and cannot go, the next save tries."""
        for folder in self.path.glob(f"{_PREFIX}*"):
            if folder.name != current and _OURS.fullmatch(folder.name):  # a user's folder may begin with the same word
                shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, content: Content) -> dict[str, int]:
    """Write the files of an index to the disk and return their sizes."""
    matrix = require("bm25s", extra="hybrid").BM25(k1=content.k1, b=content.b)
    matrix.scores, matrix.nonoccurrence_array = content.weights, None
    matrix.vocab_dict = {stem: number for number, stem in enumerate(content.stems)}
    matrix.save(folder, show_progress=False)
    rows = content.rows
    with (folder / "rows.bin").open("wb") as file:
        file.writelines(map(rows.raw, range(len(rows))))
    ends = np.cumsum([len(rows.raw(number)) for number in range(len(rows))], dtype=np.int64)
    for name, array in zip(_ARRAYS, (content.words, content.lengths, ends), strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    files = sorted(folder.iterdir())
    for path in files:
        sync_file(path)
    sync_folder(folder)
    return {path.name: path.stat().st_size for path in files}


def _read(folder: Path, pointer: Mapping[str, Any]) -> Content:
    """Map the files of an index, or raise ValueError if they are not those that were written."""
    for name, size in pointer["files"].items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes where {size} were written")
    facts, k1, b = dict(pointer["words"]), float(pointer["k1"]), float(pointer["b"])
    if pointer["format"] == 1:
        return Content(facts, k1, b, rows=Rows(new=list(_rows_of_format_1(folder))))
    words, lengths, ends = (_mapped_array(folder / f"{name}.npy") for name in _ARRAYS)
    matrix = require("bm25s", extra="hybrid").BM25.load(folder, mmap=True, show_progress=False, verbosity=0)
    weights = {**matrix.scores, **{name: _plain(matrix.scores[name]) for name in _MATRIX}}
    for array in (words, lengths, ends, weights["indices"], weights["indptr"]):
        if array.ndim != 1 or array.dtype.kind != "i":
            raise ValueError(f"it has an array of shape {array.shape} and type {array.dtype}, not one of whole numbers")
    if (
        not len(lengths) == len(ends) == weights["num_docs"] == pointer["passages"]
        or len(words) != lengths.sum(dtype=np.int64)
        or len(weights["indptr"]) != len(matrix.vocab_dict) + 1
        or not len(weights["indices"]) == len(weights["data"]) == weights["indptr"][-1]
    ):
        raise ValueError("its files do not belong together")
    stored = _mapped_bytes(folder / "rows.bin")
    for steps in (np.diff(ends, prepend=0, append=len(stored)), np.diff(weights["indptr"], prepend=0), lengths):
        if steps.min(initial=0) < 0:
            raise ValueError("its files do not belong together")
    rows = Rows(stored, _numbers(ends), range(len(ends)))
    return Content(facts, k1, b, list(matrix.vocab_dict), words, lengths, weights, rows)


def _rows_of_format_1(folder: Path) -> Iterator[bytes]:
    columns = []
    for name in ("ids", "texts", "metadata"):
        ends = np.load(folder / f"{name}.npy", allow_pickle=False).tolist()
        raw = (folder / f"{name}.bin").read_bytes()
        columns.append([raw[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)])
    for id_, text, metadata in zip(*columns, strict=True):
        yield to_row(id_, text, json.loads(metadata) if metadata else {})


def _mapped_array(path: Path) -> Any:
    return _plain(np.load(path, mmap_mode="r", allow_pickle=False))


def _plain(array: Any) -> Any:
    """Return a mapped array as a plain one: every slice of numpy's own class for it costs more than what is read."""
    return array.view(np.ndarray)


def _numbers(array: Any) -> Sequence[int]:
    """Return an array as plain numbers where it lies, which are had in half the time."""
    return memoryview(array)


def _mapped_bytes(path: Path) -> bytes | mmap.mmap:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
