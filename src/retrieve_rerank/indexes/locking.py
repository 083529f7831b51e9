"""Locks on files, between processes. The system lets go of a lock when the process that took it ends."""

from __future__ import annotations

import errno
import os
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieve_rerank.errors import IndexLockedError

if sys.platform == "win32":
    import msvcrt

    _PLACE = 2**30  # far behind what is written into the file, which others could not read otherwise

    def _take(file: int) -> None:
        os.lseek(file, _PLACE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _give_back(file: int) -> None:
        os.lseek(file, _PLACE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _give_back(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


_BUSY = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)
_PAUSE = 0.02  # seconds


class FileLock:
    """A lock on a file, which is made if missing and stays.

    Args:
        path: The file. Its content says who holds the lock, and means nothing once nobody does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, and the file is still the one that others would lock."""
        if self._file is None:
            return False
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        return False

    def acquire(self, seconds: float = 0.0, note: str = "") -> bool:
        """Take the lock and write `note` into the file.

        Returns:
            False if someone else holds it for longer than `seconds`.

        Raises:
            OSError: If the file cannot be made, or the file system knows no locks.
        """
        end = time.monotonic() + seconds
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _take(file)
            except OSError as error:
                os.close(file)
                if error.errno not in _BUSY:
                    raise
                if time.monotonic() >= end:
                    return False
                time.sleep(_PAUSE)
                continue
            self._file = file
            if not self.held:  # the directory was deleted meanwhile
                self.release()
                continue
            _HELD.add(self)
            if note:
                with suppress(OSError):  # for information only; the disk may be full
                    os.ftruncate(file, 0)
                    os.lseek(file, 0, os.SEEK_SET)
                    os.write(file, note.encode())
            return True

    def release(self) -> None:
        """Let go of the lock."""
        file, self._file = self._file, None
        _HELD.discard(self)
        if file is not None:
            with suppress(OSError):
                _give_back(file)
            os.close(file)


_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _not_inherited() -> None:
    """In a forked child: close what the parent holds, which would live on after it. Unlocking would take it away."""
    for lock in list(_HELD):
        if lock._file is not None:  # noqa: SLF001
            os.close(lock._file)  # noqa: SLF001
            lock._file = None  # noqa: SLF001
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_not_inherited)


@contextmanager
def locked(path: Path, seconds: float = 30.0) -> Iterator[None]:
    """Hold the lock on a file, which is made if missing and stays.

    Raises:
        IndexLockedError: If another process or object holds it for longer than `seconds`.
    """
    lock = FileLock(path)
    if not lock.acquire(seconds):
        raise IndexLockedError(
            f"{str(path.parent)!r} is being written by another process; try again when it has finished"
        )
    try:
        yield
    finally:
        lock.release()
