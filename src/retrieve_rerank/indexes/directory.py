"""A directory of Chroma's, shared by processes: one of them writes, all see what it wrote, and no kill loses anything.

Chroma itself coordinates nothing between processes. Two that write lose vectors; one that opened before another wrote
does not find what is new, and by writing would bring the old state back; one that opens while another writes may
write, too. Hence three files of ours: a lock that a writer holds until it closes, a gate that is held for each single
write and each opening, and the generation, which every write changes.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any

from retrieve_rerank._files import FileLock
from retrieve_rerank.errors import IndexLockedError, InvalidInputError, RetrieveRerankError
from retrieve_rerank.indexes import checkpoint

_PAUSE = 0.02  # seconds between tries
_GATE_SECONDS = 120.0  # to wait for a single write of another process
_PATIENCE = 10.0  # a reader spends at most a tenth of its time on opening anew


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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = folder / "retrieve_rerank"
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
    def alone(self) -> Iterator[None]:
        """Keep every process from writing and opening; for moments only."""
        with self._guarded():
            if self._depth == 0:
                self._close_gate()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._gate.release()
                    self._sweep()

    def current(self, store: Any) -> View:
        """Return what a store has seen, after opening it anew if another one has written since."""
        view = self._view(store)
        if view.generation != self._generation() and time.monotonic() >= view.rest:
            with self.alone():
                self._renew(store, view)
        return view

    def hold(self, owner: str, seconds: float) -> None:
        """Take the writers' lock for one more owner in this process.

        Raises:
            IndexLockedError: If another process holds it for longer than `seconds`.
            InvalidInputError: If the directory cannot be written or locked.
        """
        end = time.monotonic() + seconds
        while True:
            with self._guarded():  # not while this waits: the other threads go on reading
                try:
                    return self._join(owner, seconds)
                except IndexLockedError:
                    if time.monotonic() >= end:
                        raise
            time.sleep(_PAUSE)

    def holds(self, owner: str) -> bool:
        """Whether an owner has its share in the writers' lock."""
        with self._guarded():
            self._sweep()
            return owner in self._owners and self._writer.held

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
        with self._guarded():
            self.hold(owner, 0.0)
            with self.alone():
                view = self._view(store)
                self._renew(store, view)
                try:
                    checkpoint.save(self.folder, self._copies)
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
    def _guarded(self) -> Iterator[None]:
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

    def mend(self) -> None:
        """Put right what a writer that was killed left behind."""
        with self.alone():
            if not self._copies.exists() or self._writer.held:
                return
            with suppress(OSError):
                if self._writer.acquire(0, _note()):
                    try:
                        if checkpoint.recover(self.folder, self._copies):
                            self._change()
                        checkpoint.save(self.folder, self._copies)
                    finally:
                        self._writer.release()

    def _view(self, store: Any) -> View:
        with self._guarded():
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
                    checkpoint.recover(self.folder, self._copies)
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
                checkpoint.drop(self._copies)
            self._writer.release()

    def _close_gate(self) -> None:
        try:
            self._files.mkdir(exist_ok=True)
            closed = self._gate.acquire(_GATE_SECONDS)
        except OSError:
            return  # where files cannot be locked, nobody writes: that takes a lock, too
        if not closed:
            raise IndexLockedError(
                f"another process has been in the middle of a write in {str(self.folder)!r} for {_GATE_SECONDS:g} "
                "seconds; is it stopped?"
            )

    def _generation(self) -> str:
        try:
            return (self._files / "generation").read_text()
        except OSError:
            return ""

    def _change(self) -> str:
        generation = uuid.uuid4().hex
        part = self._files / "generation.part"
        part.write_text(generation)
        part.replace(self._files / "generation")
        return generation

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / "chroma.sqlite3").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


_DIRECTORIES: dict[Path, Directory] = {}
_ONE = threading.Lock()


def directory(folder: str | os.PathLike[str]) -> Directory:
    """Return the one object for a directory, however it is spelled."""
    resolved = Path(folder).resolve()
    with _ONE:
        return _DIRECTORIES.setdefault(resolved, Directory(resolved))


def check_wait(seconds: float) -> float:
    """Return the seconds to wait for another writer, or raise InvalidInputError."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 <= seconds < math.inf:
        raise InvalidInputError(
            "lock_timeout must be a number of seconds from 0 on, to wait while another process writes the directory; "
            f"got {seconds!r}"
        )
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
