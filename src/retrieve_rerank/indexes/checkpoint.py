"""Copies of Chroma's vector files, so that a process killed while Chroma writes them loses nothing.

Chroma keeps rows and a log of what is new in SQLite, which survives a kill, and the vectors in files that it rewrites
in place, with every 1,000 changes. Killed in the middle, it leaves files that it cannot read any more, and the vectors
are nowhere else: the log holds what came since the last rewriting only. So these files are copied before a write. The
log is cut only after a rewriting has ended; a copy and the log together are therefore complete as long as it has not.

Whether it has ended can be seen: the map from ids to vectors is what is written last. The copy and the live map carry
one time stamp, which Chroma's writing changes.
"""

from __future__ import annotations

import filecmp
import os
import pickletools
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MAP = "index_metadata.pickle"  # Chroma's; never unpickled here
_SEGMENT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONG_AGO = 10**10  # nanoseconds


def save(folder: Path, copies: Path) -> None:
    """Copy the vector files of a directory's collections that Chroma has written since they were copied last.

    Args:
        folder: Chroma's directory. Nobody may write it meanwhile.
        copies: Where the copies go; it is made if missing.
    """
    copies.mkdir(parents=True, exist_ok=True)
    for segment in _segments(folder):
        if _stamp(segment) is None or _is_copied(segment, copies / segment.name):
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


def recover(folder: Path, copies: Path) -> bool:
    """Put copies back where Chroma was killed while it wrote; nobody may have the directory open for writing.

    The copies stay: the next look makes Chroma write again what its log holds, and may be killed, too. `save` them
    before it, where Chroma had ended its writing.

    Returns:
        Whether anything was changed.
    """
    changed = False
    for segment in _segments(folder):
        copy = copies / segment.name
        if _stamp(copy) is None:
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


def drop(copies: Path) -> None:
    """Delete the copies, as far as possible. The maps go first: what is left of a copy without one is no copy."""
    with suppress(OSError):
        for copy in copies.iterdir():
            (copy / _MAP).unlink(missing_ok=True)
    shutil.rmtree(copies, ignore_errors=True)


def _segments(folder: Path) -> Iterator[Path]:
    return (place for place in folder.iterdir() if _SEGMENT.fullmatch(place.name) and place.is_dir())


def _is_same(copy: Path, file: Path) -> bool:
    return file.exists() and filecmp.cmp(copy, file, shallow=False)


def _is_copied(segment: Path, copy: Path) -> bool:
    """Whether the copy is of what Chroma wrote last. One stamp is not enough: an archive may give it to all files."""
    stamp = _stamp(segment)
    return stamp is not None and stamp == _stamp(copy) and _is_same(copy / _MAP, segment / _MAP)


def _stamp(segment: Path) -> int | None:
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
