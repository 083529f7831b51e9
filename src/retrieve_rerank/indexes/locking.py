"""One writer at a time in a directory, across processes. The system lets go of a lock when its process ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retrieve_rerank.errors import IndexLockedError

if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _give_back(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _give_back(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def locked(path: Path, seconds: float = 30.0) -> Iterator[None]:
    """Hold the lock on a file, which is made if missing and stays.

    Raises:
        IndexLockedError: If another process or object holds it for longer than `seconds`.
    """
    end = time.monotonic() + seconds
    with path.open("ab") as file:
        while True:
            try:
                _take(file)
                break
            except OSError as error:
                if time.monotonic() >= end:
                    raise IndexLockedError(
                        f"{str(path.parent)!r} is being written by another process; try again when it has finished"
                    ) from error
                time.sleep(0.02)
        try:
            yield
        finally:
            _give_back(file)
