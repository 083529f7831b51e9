"""Which files there are, and what they are called in an index."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from retrieve_rerank.cli.documents import KINDS, check_named, reads_kind
from retrieve_rerank.errors import InvalidInputError, require

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Filters:
    """What is left out of folders.

    Attributes:
        exclude: Patterns as in a `.gitignore`, from the folder that was given.
        gitignore: Whether files that a `.gitignore` names are left out.
        follow_links: Whether links that lead out of a folder are followed.
    """

    exclude: Sequence[str] = ()
    gitignore: bool = True
    follow_links: bool = False


@dataclass(slots=True)
class Found:
    """What is under the files and folders that were given.

    Attributes:
        files: Path by source: the name of the outermost folder and the path in it, with slashes.
        roots: Those folders by name.
        left_out: How many files of each other ending there are.
        ignored: How many files and folders were left out by a pattern.
        links: Links that lead out of the folders, and were not followed.
        failed: What could not be looked into, with the reason.
    """

    files: dict[str, Path] = field(default_factory=dict)
    roots: dict[str, Path] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    links: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def notes(self) -> Iterator[str]:
        """Yield what a user should know of what was left out, a sentence each."""
        if self.left_out:
            kinds = ", ".join(f"{ending} ({count})" for ending, count in self.left_out.most_common(8))
            office = {".pdf", ".docx"} & set(self.left_out)
            cure = '; for PDF and docx: pip install "retrieve-rerank[documents]"' if office else ""
            yield f"files left out, by ending: {kinds}{cure}"
        if self.ignored:
            yield f"{self.ignored} files and folders left out by .gitignore or --exclude"
        if self.links:
            more = ", …" if len(self.links) > _SHOWN else ""
            yield (
                f"{len(self.links)} links lead out of the folder and were not followed: "
                f"{', '.join(self.links[:_SHOWN])}{more}; --follow-links follows them"
            )


def find(paths: Sequence[Path], known: Mapping[str, Path], index: Path, filters: Filters | None = None) -> Found:
    """Return the files under some paths.

    Files in folders are taken by their ending; those that are named themselves are taken whatever they are called, but
    for what cannot be read. Names that begin with a dot are left out in folders, and the index is never a part of
    itself.

    Args:
        paths: Files and folders.
        known: Roots that the index has already; what lies in one of them keeps its source.
        index: The folder of the index.
        filters: What else is left out of folders; None is the usual.

    Raises:
        InvalidInputError: If a named file is of a kind that is not read, or two folders have one name.
        MissingDependencyError: If patterns are used and the extra `cli` is not installed.
    """
    found = Found(roots=dict(known))
    for path in sorted((path.expanduser().resolve() for path in paths), key=lambda path: len(path.parts)):
        if path.is_dir():
            _Walk(path, index.resolve(), filters or Filters(), found).run()
        else:
            check_named(path)
            name, root = _root(path.parent, found.roots)
            found.files[source_of(name, root, path)] = path
    return found


def _root(folder: Path, roots: dict[str, Path]) -> tuple[str, Path]:
    """Return the name and the path of the root that a folder belongs to; a new one is entered."""
    for name, root in roots.items():
        if folder.is_relative_to(root):
            return name, root
    name = _readable(folder.name) or "root"
    if (other := roots.get(name)) is not None:
        raise InvalidInputError(
            f"the index has a folder {name!r} already, {other}, and what is in {folder} would be called the same; "
            "name a folder that holds both, or make another index"
        )
    roots[name] = folder
    return name, folder


class _Walk:
    """One folder that was given, looked through."""

    def __init__(self, folder: Path, index: Path, filters: Filters, found: Found) -> None:
        self.folder, self.index, self.filters, self.found = folder, index, filters, found
        self.name, self.root = _root(folder, found.roots)
        self.specs: dict[Path, GitIgnoreSpec] = {}  # by the folder that its patterns start from
        if filters.gitignore:
            for parent in _checkout_above(folder):
                self._read_gitignore(parent)
        if filters.exclude:
            spec = require("pathspec", extra="cli").GitIgnoreSpec.from_lines(filters.exclude)
            self.excluded: GitIgnoreSpec | None = spec
        else:
            self.excluded = None

    def run(self) -> None:
        seen = {self.folder.resolve()}  # a link may lead back
        for place, folders, files in os.walk(self.folder, onerror=self._failed, followlinks=self.filters.follow_links):
            here = Path(place)
            if self.filters.gitignore:
                self._read_gitignore(here)
            folders[:] = [name for name in sorted(folders) if self._enters(here / name, seen)]
            for name in sorted(files):
                self._take(here / name)

    def _enters(self, folder: Path, seen: set[Path]) -> bool:
        if folder.name.startswith(".") or folder == self.index or self._ignored(folder, "/"):
            return False
        if folder.is_symlink():
            target = folder.resolve()
            if target in seen or not self._follows(folder, target):
                return False
            seen.add(target)
        return True

    def _take(self, file: Path) -> None:
        if file.name.startswith(".") or self._ignored(file, ""):
            return
        if not reads_kind(file):
            self.found.left_out[file.suffix.lower() or "without an ending"] += 1
        elif not file.is_symlink() or not file.exists() or self._follows(file, file.resolve()):
            self.found.files[source_of(self.name, self.root, file)] = file

    def _follows(self, link: Path, target: Path) -> bool:
        if self.filters.follow_links or target.is_relative_to(self.folder):
            return True
        self.found.links.append(source_of(self.name, self.root, link))
        return False

    def _ignored(self, path: Path, end: str) -> bool:
        """Whether a pattern leaves out a path; of several `.gitignore`s the nearest decides, as in git."""
        relative = f"{path.relative_to(self.folder).as_posix()}{end}"
        verdict = self.excluded.match_file(relative) if self.excluded is not None else False
        for folder in () if verdict else path.parents:
            if (spec := self.specs.get(folder)) is not None:
                decided = spec.check_file(f"{path.relative_to(folder).as_posix()}{end}").include
                if decided is not None:
                    verdict = decided
                    break
        self.found.ignored += verdict
        return verdict

    def _read_gitignore(self, folder: Path) -> None:
        file = folder / ".gitignore"
        if file.is_file():
            pathspec = require("pathspec", extra="cli")
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            self.specs[folder] = pathspec.GitIgnoreSpec.from_lines(lines)

    def _failed(self, error: OSError) -> None:
        self.found.failed[str(error.filename)] = error.strerror or str(error)


def _checkout_above(folder: Path) -> list[Path]:
    """Return the folders above one, up to that of the git checkout that it lies in; none outside of one."""
    above: list[Path] = []
    for parent in folder.parents:
        if (folder / ".git").exists():
            return above
        above.append(parent)
        if (parent / ".git").exists():
            return above
    return []


def source_of(name: str, root: Path, path: Path) -> str:
    """Return what a file is called in an index: the root's name, and the path in it with slashes."""
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


def is_html(path: Path) -> bool:
    """Whether a file is read as HTML."""
    return KINDS.get(path.suffix.lower()) == "html"
