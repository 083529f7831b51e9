"""A directory of Chroma's, shared by processes: one of them writes, all see what it wrote, and no kill loses anything.

Chroma itself coordinates nothing between processes. Two that write lose vectors; one that opened before another wrote
does not find what is new, and by writing would bring the old state back; one that opens while another writes may
write, too. Hence three files of ours: a lock that a writer holds until it closes, a gate that is held for each single
write and each opening, and the generation, which every write changes.

Nor does it survive a kill in the middle of a write. It keeps rows and a log of what is new in SQLite, which does, and
the vectors in files that it rewrites in place, with every 1,000 changes. Killed in the middle, it leaves files that it
cannot read any more, and the vectors are nowhere else: the log holds what came since the last rewriting only. So these
files are copied before a write (`save_vectors`). The log is cut only after a rewriting has ended; a copy and the log
together are therefore complete as long as it has not. Whether it has ended can be seen: the map from ids to vectors is
what is written last. The copy and the live map carry one time stamp, which Chroma's writing changes.
"""

from __future__ import annotations

import filecmp
import json
import math
import os
import pickletools
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from retrieve_rerank._files import FileLock, resolved, write_text
from retrieve_rerank.checks import number_of
from retrieve_rerank.errors import IndexLockedError, InvalidInputError, RetrieveRerankError, shown

DATABASE = "chroma.sqlite3"  # Chroma's

_PAUSE = 0.02  # seconds between tries
_GATE_SECONDS = 120.0  # that a writer waits for a single write of another process
READER_SECONDS = 10.0  # that a reader does
_PATIENCE = 10.0  # a reader spends at most a tenth of its time on opening anew
_OURS = "retrieve_rerank"  # the folder of our files
_MAP = "index_metadata.pickle"  # Chroma's, the last of a collection's vector files; never unpickled here
_SEGMENT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONG_AGO = 10**10  # nanoseconds


def one_spelling(path: str | os.PathLike[str]) -> Path:
    """Return the one spelling of a directory that Chroma is ever given."""
    return resolved(path, "the directory of an index")


@dataclass
class View:
    """What one of Chroma's stores in this process has seen of a directory.

    Attributes:
        epoch: Changes when the store is opened anew, and everything in it must be looked at again.
        generation: What it has seen, or None if nothing is known.
        stamp: Time and size of Chroma's database then.
        rest: When it may be opened anew next, by the monotonic clock.
        writes: How many this process has ended: what is read during one is neither the old state nor the new.
    """

    epoch: int = 0
    generation: str | None = None
    stamp: tuple[int, int] | None = None
    rest: float = 0.0
    writes: int = 0

    def opened_again(self, seconds: float) -> None:
        """Take a rest for having been opened anew, which took `seconds`; the first opening needs none."""
        if self.epoch > 1:
            self.rest = max(self.rest, time.monotonic() + _PATIENCE * seconds)


class Directory:
    """One directory, in this process. See `directory`.

    Args:
        folder: Its resolved path.
        read_only: Why it cannot be written, where that is known.
    """

    def __init__(self, folder: Path, read_only: str | None = None) -> None:
        self.folder = folder
        self.read_only = read_only
        self._files = folder / _OURS
        self._copies = self._files / "checkpoint"
        self._guard = threading.RLock()  # the threads of this process; the files below do the same for processes
        self._writer = FileLock(self._files / "writer.lock")
        self._gate = FileLock(self._files / "gate.lock")
        self._depth = 0
        self._owners: set[str] = set()
        self._leaving: deque[str] = deque()
        self._failed = False
        self._views: weakref.WeakKeyDictionary[Any, View] = weakref.WeakKeyDictionary()

    @contextmanager
    def alone(self, seconds: float = _GATE_SECONDS) -> Iterator[None]:
        """Keep every process from writing and opening; for moments only.

        Raises:
            IndexLockedError: If another process is in the middle of a write for longer than `seconds`.
        """
        with self.guarded():
            if self._depth == 0:
                self._close_gate(seconds)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._gate.release()
                    self._sweep()

    def current(self, store: Any) -> View:
        """Return what a store has seen, after opening it anew if another one has written since.

        It stays as it is while a process is stopped in the middle of a write: reading needs no lock.
        """
        view = self._view(store)
        if view.generation != self._generation() and time.monotonic() >= view.rest:
            begin = time.monotonic()
            try:
                with self.alone(READER_SECONDS):
                    self._renew(store, view)
            except IndexLockedError:
                if view.epoch == 0:
                    raise
                view.opened_again(time.monotonic() - begin)
        return view

    def hold(self, owner: str, seconds: float) -> None:
        """Take the writers' lock for one more owner in this process.

        Raises:
            IndexLockedError: If another process holds it for longer than `seconds`.
            InvalidInputError: If the directory cannot be written or locked.
        """
        if self.read_only is not None:
            raise InvalidInputError(self.read_only)
        end = time.monotonic() + seconds
        while True:
            with self.guarded():  # not while this waits: the other threads go on reading
                try:
                    return self._join(owner, seconds)
                except IndexLockedError:
                    if time.monotonic() >= end:
                        raise
            time.sleep(_PAUSE)

    def _join(self, owner: str, seconds: float) -> None:
        self._sweep()
        self._owners.add(owner)  # first: the garbage collector may let the last other one go at any moment
        if not self._writer.held:
            self._writer.release()  # of a directory that was deleted
            self._failed = True  # until what a killed writer left is mended, its copies stay
            try:
                self._take(seconds)
            except BaseException:
                self._owners.discard(owner)
                self._sweep()
                raise

    @contextmanager
    def writing(self, store: Any, owner: str, seconds: float) -> Iterator[View]:
        """Hold everything that one write of Chroma's needs; see `hold` for what it raises."""
        self.hold(owner, seconds)
        with self.guarded():
            self.hold(owner, 0.0)
            with self.alone():
                view = self._view(store)
                self._renew(store, view)
                try:
                    save_vectors(self.folder, self._copies)
                    view.generation = self._change()
                except OSError as error:
                    raise RetrieveRerankError(f"cannot write in {str(self.folder)!r}: {error}") from error
                try:
                    yield view
                except BaseException:
                    self._failed = True
                    raise
                finally:
                    view.stamp = self._stamp()
                    view.writes += 1

    def let_go(self, owner: str, process: int) -> None:
        """Give an owner's share in the writers' lock back. Never fails and never waits, as the garbage collector calls.

        Args:
            owner: Who; one that holds nothing is no error.
            process: The process that the owner belongs to; elsewhere, nothing is done.
        """
        if os.getpid() != process:
            return
        self._leaving.append(owner)
        self._sweep_if_free()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep the other threads of this process from writing and opening."""
        try:
            with self._guard:
                yield
        finally:
            self._sweep_if_free()  # those who left meanwhile, and found the guard taken

    def _sweep_if_free(self) -> None:
        while self._leaving and self._guard.acquire(blocking=False):  # else whoever has it sweeps
            try:
                if self._depth > 0:  # this thread is in the middle of something, and sweeps at its end
                    return
                self._sweep()
            finally:
                self._guard.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the writer for the block; see `hold` for what it raises."""
        owner = uuid.uuid4().hex
        self.hold(owner, 0.0)
        try:
            yield
        finally:
            self.let_go(owner, os.getpid())

    def mend(self) -> None:
        """Put right what a writer that was killed left behind."""
        with self.alone():
            if not self._copies.exists() or self._writer.held or self.read_only is not None:
                return
            with suppress(OSError):
                if self._writer.acquire(0, _note()):
                    try:
                        if restore_vectors(self.folder, self._copies):
                            self._change()
                        save_vectors(self.folder, self._copies)
                    finally:
                        self._writer.release()

    def _view(self, store: Any) -> View:
        with self.guarded():
            return self._views.setdefault(store, View())

    def _renew(self, store: Any, view: View) -> None:
        generation = self._generation()
        if view.generation == generation:
            return
        begin = time.monotonic()
        self.mend()
        # Replaces Chroma's store behind all clients and collections that use it; calls under way end on the old one.
        store.start()
        view.generation, view.stamp, view.epoch = self._generation(), self._stamp(), view.epoch + 1
        view.opened_again(time.monotonic() - begin)

    def _take(self, seconds: float) -> None:
        try:
            self._files.mkdir(exist_ok=True)
            taken = self._writer.acquire(0.0, _note())
        except OSError as error:
            raise InvalidInputError(
                f"cannot write in {str(self.folder)!r}: {error}. Give a directory that can be written, on a file "
                "system that knows locks, or let Chroma's server write: client=chromadb.HttpClient(…)"
            ) from error
        if not taken:
            raise IndexLockedError(self._held_by(seconds))
        with self.alone():
            if self._copies.exists():
                try:
                    restore_vectors(self.folder, self._copies)
                    self._change()  # whatever was seen of what the killed writer did
                except OSError as error:
                    raise RetrieveRerankError(
                        f"cannot mend {str(self.folder)!r}, which a killed writer left: {error}"
                    ) from error
            self._failed = False
            stamp = self._stamp()
            for view in self._views.values():
                if view.stamp != stamp:  # also by someone who does not know of generations
                    view.generation = None

    def _held_by(self, seconds: float) -> str:
        try:
            holder = json.loads(self._writer.note)
            who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        waited = f" Waited {seconds:g} seconds for it." if seconds else ""
        return (
            f"{str(self.folder)!r} is being written by {who}; one process at a time may.{waited} "
            "Reading needs no lock. To write, either wait until the other one closes its index or ends, with "
            "lock_timeout=60 (seconds), or let all processes write through Chroma's server: start "
            f"`chroma run --path {str(self.folder)!r}` when nobody has it open, and give client=chromadb.HttpClient()"
        )

    def _sweep(self) -> None:
        while self._leaving:
            self._owners.discard(self._leaving.popleft())
        if not self._owners and self._writer.held:
            if not self._failed:
                drop_vectors(self._copies)
            self._writer.release()

    def _close_gate(self, seconds: float) -> None:
        try:
            self._files.mkdir(exist_ok=True)
            closed = self._gate.acquire(seconds)
        except OSError:
            return  # where files cannot be locked, nobody writes: that takes a lock, too
        if not closed:
            raise IndexLockedError(
                f"another process has been in the middle of a write in {str(self.folder)!r} for {seconds:g} seconds; "
                "is it stopped?"
            )

    def _generation(self) -> str:
        try:
            return (self._files / "generation").read_text()
        except OSError:
            return ""

    def _change(self) -> str:
        generation = uuid.uuid4().hex
        write_text(generation, self._files / "generation", durable=False)
        return generation

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / DATABASE).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


_DIRECTORIES: dict[Path, Directory] = {}
_ONE = threading.Lock()


def directory(folder: str | os.PathLike[str]) -> Directory:
    """Return the one object for a directory, however it is spelled."""
    place = Path(folder).resolve()
    with _ONE:
        return _DIRECTORIES.setdefault(place, Directory(place))


def check_wait(seconds: float, name: str, for_what: str) -> float:
    """Return seconds to wait, which may be none, or raise InvalidInputError."""
    if not 0 <= number_of(seconds) < math.inf:
        raise InvalidInputError(f"{name} must be a number of seconds from 0 on, {for_what}; got {shown(seconds)}")
    return float(seconds)


def _note() -> str:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})


def _begin_anew() -> None:
    """In a forked child: threads that held the locks are not there, and what the parent holds is not ours."""
    global _ONE
    _ONE = threading.Lock()
    _DIRECTORIES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


# A copy to read, where the directory itself cannot be opened


def snapshot(folder: Path, reason: str) -> Path:
    """Return a new directory with what a directory holds now, which Chroma can open: it writes even to read.

    For a medium that cannot be written, or one on which a process is stopped in the middle of a write. Who writes to
    the copy is told why it cannot be.

    Args:
        folder: Chroma's directory.
        reason: Why it is not opened itself.

    Raises:
        OSError: If there is no room for the copy.
        sqlite3.Error: If the database cannot be read.
    """
    place = Path(tempfile.mkdtemp(prefix="retrieve-rerank-"))
    try:
        with (
            closing(
                sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode=ro", uri=True, timeout=READER_SECONDS)
            ) as old,
            closing(sqlite3.connect(place / DATABASE)) as new,
        ):
            old.backup(new)
        for segment in _segments(folder):
            stamp: object = "none yet"
            while stamp != (seen := _map_stamp(segment)):  # not while it is rewritten
                stamp = seen
                shutil.copytree(segment, place / segment.name, copy_function=shutil.copy2, dirs_exist_ok=True)
        if (copies := folder / _OURS / "checkpoint").is_dir():  # what is copied may be torn
            restore_vectors(place, copies)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    with _ONE:
        _DIRECTORIES[place.resolve()] = Directory(
            place.resolve(),
            f"{str(folder)!r} cannot be written: {reason}. It was opened to be searched, as it was then; open it "
            "again when it can be written",
        )
    return place.resolve()


def drop_snapshot(place: Path, process: int) -> None:
    """Delete a snapshot, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(place, ignore_errors=True)


# Copies of the vector files


def save_vectors(folder: Path, copies: Path) -> None:
    """Copy the vector files of a directory's collections that Chroma has written since they were copied last.

    Args:
        folder: Chroma's directory. Nobody may write it meanwhile.
        copies: Where the copies go; it is made if missing.
    """
    copies.mkdir(parents=True, exist_ok=True)
    for segment in _segments(folder):
        if _map_stamp(segment) is None or _is_copied(segment, copies / segment.name):
            continue
        part, old = copies / f"{segment.name}.part", copies / f"{segment.name}.old"
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(segment, part, copy_function=shutil.copy2)
        before = time.time_ns() - _LONG_AGO  # no later writing can have this stamp, however coarse the clock
        for place in (segment, part):
            os.utime(place / _MAP, ns=(before, before))
        if (copies / segment.name).exists():
            (copies / segment.name).rename(old)
        part.rename(copies / segment.name)
        shutil.rmtree(old, ignore_errors=True)


def restore_vectors(folder: Path, copies: Path) -> bool:
    """Put copies back where Chroma was killed while it wrote; nobody may have the directory open for writing.

    The copies stay: the next look makes Chroma write again what its log holds, and may be killed, too. `save_vectors`
    before it, where Chroma had ended its writing.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for segment in _segments(folder):
        copy = copies / segment.name
        if _map_stamp(copy) is None:
            if not _is_whole(segment):
                # Killed in its first writing: the log still holds everything.
                shutil.rmtree(segment)
                changed = True
        elif _is_copied(segment, copy) or not _is_whole(segment):
            torn = [file for file in copy.iterdir() if not _is_same(file, segment / file.name)]
            if torn:
                # The map goes first and comes back last, with its stamp: killed in between, this is done again.
                (segment / _MAP).unlink(missing_ok=True)
                for file in sorted({*torn, copy / _MAP}, key=lambda file: file.name == _MAP):
                    shutil.copy2(file, segment / file.name)
                changed = True
    return changed


def drop_vectors(copies: Path) -> None:
    """Delete the copies, as far as possible. The maps go first: what is left of a copy without one is no copy."""
    with suppress(OSError):
        for copy in copies.iterdir():
            (copy / _MAP).unlink(missing_ok=True)
    shutil.rmtree(copies, ignore_errors=True)


def _segments(folder: Path) -> list[Path]:
    return [place for place in folder.iterdir() if _SEGMENT.fullmatch(place.name) and place.is_dir()]


def _is_same(copy: Path, file: Path) -> bool:
    return file.exists() and filecmp.cmp(copy, file, shallow=False)


def _is_copied(segment: Path, copy: Path) -> bool:
    """Whether the copy is of what Chroma wrote last. One stamp is not enough: an archive may give it to all files."""
    stamp = _map_stamp(segment)
    return stamp is not None and stamp == _map_stamp(copy) and _is_same(copy / _MAP, segment / _MAP)


def _map_stamp(segment: Path) -> int | None:
    try:
        return (segment / _MAP).stat().st_mtime_ns
    except OSError:
        return None


def _is_whole(segment: Path) -> bool:
    """Whether the map ends where its content does. The content is read as marks, not as objects."""
    try:
        with (segment / _MAP).open("rb") as file:
            for _ in pickletools.genops(file):
                pass
            return file.read(1) == b""
    except (OSError, ValueError):
        return False
