"""Which files there are, and what they are called in an index."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieve_rerank.cli.documents import KINDS, check_named
from retrieve_rerank.errors import InvalidInputError


@dataclass(slots=True)
class Found:
    """What is under the files and folders that were given.

    Attributes:
        files: Path by source: the name of the outermost folder and the path in it, with slashes.
        roots: Those folders by name.
        left_out: How many files of each other ending there are.
        failed: What could not be looked into, with the reason.
    """

    files: dict[str, Path] = field(default_factory=dict)
    roots: dict[str, Path] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)


def find(paths: Sequence[Path], known: Mapping[str, Path], index: Path) -> Found:
    """Return the files under some paths.

    Files in folders are taken by their ending; those that are named themselves are taken whatever they are called, but
    for what cannot be read. Names that begin with a dot are left out in folders, links to folders are not followed,
    and the index is never a part of itself.

    Args:
        paths: Files and folders.
        known: Roots that the index has already; what lies in one of them keeps its source.
        index: The folder of the index.

    Raises:
        InvalidInputError: If a named file is of a kind that is not read, or two folders have one name.
    """
    found = Found(roots=dict(known))
    index = index.resolve()
    for path in sorted((path.expanduser().resolve() for path in paths), key=lambda path: len(path.parts)):
        if path.is_dir():
            name, root = _root(path, found.roots)
            _walk(path, name, root, index, found)
        else:
            check_named(path)
            name, root = _root(path.parent, found.roots)
            found.files[_source(name, root, path)] = path
    return found


def _root(folder: Path, roots: dict[str, Path]) -> tuple[str, Path]:
    """Return the name and the path of the root that a folder belongs to; a new one is entered."""
    for name, root in roots.items():
        if folder.is_relative_to(root):
            return name, root
    name = _readable(folder.name) or "root"
    if (other := roots.get(name)) is not None and other.is_dir():
        raise InvalidInputError(
            f"the index has a folder {name!r} already, {other}, and what is in {folder} would be called the same; "
            "name a folder that holds both, or make another index"
        )
    roots[name] = folder  # the other one is gone: this is where it was moved to
    return name, folder


def _walk(folder: Path, name: str, root: Path, index: Path, found: Found) -> None:
    def failed(error: OSError) -> None:
        found.failed[str(error.filename)] = error.strerror or str(error)

    for place, folders, files in os.walk(folder, onerror=failed):
        here = Path(place)
        folders[:] = sorted(sub for sub in folders if not sub.startswith(".") and here / sub != index)
        for file in sorted(files):
            path = here / file
            if file.startswith("."):
                continue
            if path.suffix.lower() not in KINDS:
                found.left_out[path.suffix.lower() or "without an ending"] += 1
            else:
                found.files[_source(name, root, path)] = path


def _source(name: str, root: Path, path: Path) -> str:
    return _readable("/".join((name, *path.relative_to(root).parts)))


def _readable(name: str) -> str:
    """Return a file name as text that can be stored: names are bytes, and need not be UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_bytes(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: If it cannot be read or is no file, such as a pipe, which would be waited for.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    return path.read_bytes()
