"""Whose turn it is to write a collection: among threads, or among the processes that share a directory, too."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from retrieve_rerank.indexes.directory import Directory, View


class Threads:
    """Whose turn it is to write where no directory is shared with other processes: in memory, or at a server.

    Args:
        knows: Whether everybody who writes is known here, so that it can be told that nobody has.
    """

    def __init__(self, *, knows: bool = True) -> None:
        self._lock = threading.RLock()
        self._knows = knows
        self._writes = 0  # that have ended: what is read during one is neither the old state nor the new

    @contextmanager
    def reading(self, look: Callable[[], object]) -> Iterator[object]:
        """Read; gives the state of what is stored: None if it is not known, else equal until somebody writes."""
        yield self._writes if self._knows else None

    @contextmanager
    def writing(self, look: Callable[[], object] | None = None) -> Iterator[object]:
        """Do one write while nobody else does; gives the state before it."""
        with self._lock:
            try:
                yield self._writes if self._knows else None
            finally:
                self._writes += 1

    def alone(self) -> AbstractContextManager[object]:
        """Do several writes while nobody else does one."""
        return self._lock

    def hold(self, seconds: float | None = None) -> None:
        """Become a writer, before anything is made for it."""

    def let_go(self) -> None:
        """Be a writer no more."""


class Share:
    """One object's part in a directory: what it has seen, and whether it is among those that write. As `Threads`.

    Args:
        shared: The directory.
        store: Chroma's.
        seconds: To wait while another process writes, at the first write.

    Raises:
        IndexLockedError: Of `writing`, `alone` and `hold`: if another process writes for longer than that.
        InvalidInputError: Of the same: if the directory cannot be written or locked.
    """

    def __init__(self, shared: Directory, store: Any, seconds: float) -> None:
        self.folder = shared.folder
        self._shared, self._store, self._seconds = shared, store, seconds
        self._owner, self._process, self._epoch = uuid.uuid4().hex, os.getpid(), -1
        shared.current(store)

    @contextmanager
    def reading(self, look: Callable[[], object]) -> Iterator[object]:
        """Read what is there now, whoever wrote it; `look` brings Chroma's store up to date, and may write."""
        view = self._shared.current(self._store)
        self._look(view, look)
        yield view.epoch, view.writes

    @contextmanager
    def writing(self, look: Callable[[], object] | None = None) -> Iterator[object]:
        """Do one write while nobody else does, on top of what is there now."""
        with self._shared.writing(self._store, self._owner, self._seconds) as view:
            if look is not None:
                self._look(view, look)
            yield view.epoch, view.writes

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do several writes while nobody else does one."""
        self.hold()
        with self._shared.guarded():
            yield

    def hold(self, seconds: float | None = None) -> None:
        """Become a writer of the directory, before anything is made for it; `seconds` to wait, if not as usual."""
        self._shared.hold(self._owner, self._seconds if seconds is None else seconds)

    def let_go(self) -> None:
        """Be a writer no more; the lock goes with the last one of this process."""
        self._shared.let_go(self._owner, self._process)

    def _look(self, view: View, look: Callable[[], object]) -> None:
        if self._epoch != view.epoch:
            begin = time.monotonic()
            with self._shared.alone():
                look()
                self._epoch = view.epoch
            view.opened_again(time.monotonic() - begin)
