"""Files that are written whole, and files that processes lock.

Whoever reads a file that was written here, and whatever happens, finds the old content or the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from retrieve_rerank.errors import IndexLockedError, InvalidInputError, shown

if TYPE_CHECKING:
    import filelock

_SYSTEM = (Path("/dev"), Path("/proc"))  # whose links stand for what a process has open, such as /dev/stdout
_LONGEST_NAME, _LONGEST_PATH = 255, 4_095  # bytes
_MOST_LINKS = 40  # as Linux follows


def check_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path`, or raise InvalidInputError if no file can be called so; it need not be there."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name:
        raise InvalidInputError(f"{what} must be a path, got {shown(path)}")
    name = str.__str__(name)  # of a subclass, the value
    try:
        written = os.fsencode(name)
    except UnicodeEncodeError:
        written = b"\0"
    longest = max(map(len, written.split(os.fsencode(os.sep))))
    if b"\0" in written or longest > _LONGEST_NAME or len(written) > _LONGEST_PATH:
        raise InvalidInputError(f"{what} must be a path, and no file can be called {shown(name)}")
    return Path(name)


def resolved(path: str | os.PathLike[str], what: str) -> Path:
    """Return the one spelling of `path`, or raise InvalidInputError if no file can be called so."""
    checked = check_path(path, what)
    try:
        return checked.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, or a user that there is not
        raise InvalidInputError(f"{what} cannot be {shown(str(checked))}: {error}") from error


@contextmanager
def atomic_write(path: str | os.PathLike[str], what: str = "the file", *, durable: bool = True) -> Iterator[Path]:
    """Give a path to write a new file to, which takes the place of `path` at once when the block ends.

    The new file has the permissions of the old one. A link stays a link, and what it points to is replaced. What cannot
    be replaced is written in place: a pipe, a device, and a file in a folder where no file can be made.

    Args:
        path: Of the file; its folder must be there.
        what: The name of the content, for errors, such as "the setting".
        durable: Whether the content is on the disk, and not in the system's memory only, when the block ends.

    Yields:
        A path with the same file name.

    Raises:
        OSError: If the file cannot be written. What was there before is as it was, unless the message says otherwise.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "notes.txt", "the notes") as new:
        ...         written = new.write_text("new")
        ...     (Path(folder) / "notes.txt").read_text()
        'new'
    """
    target = _target(check_path(path, f"the file of {what}"))
    try:
        if target is None:
            yield Path(path)
            return
        with TemporaryDirectory(prefix=".writing-", dir=target.parent, ignore_cleanup_errors=True) as folder:
            new = Path(folder) / target.name
            yield new
            if target.exists():
                shutil.copymode(target, new)
            if durable:
                sync_file(new)
            new.replace(target)
        if durable:
            sync_folder(target.parent)
    except OSError as error:
        left = "; it was written in place, so it may be broken" if target is None and Path(path).is_file() else ""
        if error.errno is None:
            raise OSError(f"cannot write {what} {os.fspath(path)!r}: {error}{left}") from error
        raise OSError(error.errno, f"cannot write {what}: {error.strerror}{left}", os.fspath(path)) from error


def write_text(text: str, path: str | os.PathLike[str], what: str = "the file", *, durable: bool = True) -> None:
    """Write a text as UTF-8, with the same line ends on every system; see `atomic_write`."""
    # A lone surrogate, as of a file name, is nothing that UTF-8 can hold: it is written as JSON's escape of it.
    with atomic_write(path, what, durable=durable) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    _sync(path, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Force a folder's list of files to the disk, where the system can."""
    with suppress(OSError):
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _target(path: Path) -> Path | None:
    """Return the file to replace, which links lead to, or None where it has to be written in place."""
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            break
        if any(path.absolute().is_relative_to(folder) for folder in _SYSTEM):
            return None
        path = path.parent / path.readlink()
    else:
        return None  # links in a circle: the system says so when it opens them
    # A file that may not be written refuses as ever, though its folder would let it be replaced.
    plain = not path.exists() or (path.is_file() and os.access(path, os.W_OK))
    return path if plain and path.name and os.access(path.parent, os.W_OK) else None


class FileLock:
    """A lock between processes, on a file that is made if missing and stays. It goes with the process that holds it.

    Args:
        path: The file. Beside it, where a holder says who it is, lies a file of the same name with the ending `.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: filelock.BaseFileLock | None = None
        self._taken: tuple[int, int] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, and the file is still the one that others would lock."""
        return self._taken is not None and self._taken == self._identity()

    @property
    def note(self) -> str:
        """What the last holder said of itself."""
        return self.path.with_suffix(".json").read_text(encoding="utf-8")

    def acquire(self, seconds: float = 0.0, note: str = "") -> bool:
        """Take the lock, and write down what the holder says of itself.

        Returns:
            False if someone else holds it for longer than `seconds`.

        Raises:
            OSError: If the file cannot be made, or the file system knows no locks.
        """
        import filelock  # only who writes pays for it

        if not self.path.parent.is_dir():  # which would be made
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        lock = filelock.FileLock(self.path, timeout=seconds, thread_local=False)
        try:
            lock.acquire(poll_interval=0.02)
        except filelock.Timeout:
            return False
        self._lock, self._taken = lock, self._identity()
        if note:
            with suppress(OSError):  # for information only; the disk may be full
                write_text(note, self.path.with_suffix(".json"), durable=False)
        return True

    def release(self) -> None:
        """Let go of the lock."""
        lock, self._lock, self._taken = self._lock, None, None
        if lock is not None:
            with suppress(OSError):  # the system lets go in any case
                lock.release(force=True)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


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
