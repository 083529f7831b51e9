"""Bring an index up to date with its files, so that it may be broken off at any moment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from retrieve_rerank.cli.documents import Fields, UnreadableError, read
from retrieve_rerank.cli.finding import Found, read_bytes
from retrieve_rerank.cli.index_folder import File, Library, all_passages
from retrieve_rerank.cli.options import has_bm25
from retrieve_rerank.cli.splitting import Splitter
from retrieve_rerank.cli.streams import show_bars
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.bm25 import BM25Index
from retrieve_rerank.indexes.chroma import ChromaIndex
from retrieve_rerank.models.bi_encoder import BiEncoder
from retrieve_rerank.types import AddReport, Passage

_READING = 3  # raised where files are read or split otherwise than before: all of them are then read again
_TOGETHER = 512  # passages encoded and written in one go
_SAVE = 16  # such goes between two savings


@dataclass(slots=True)
class Outcome:
    """What became of the files."""

    files: int = 0
    passages: int = 0
    report: AddReport = field(default_factory=AddReport)
    removed: int = 0
    unchanged_files: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers by name."""
        numbers = {"files": self.files, "unchanged_files": self.unchanged_files, "failed_files": len(self.failed)}
        added = {"added": self.report.added, "updated": self.report.updated, "unchanged": self.report.unchanged}
        return {**numbers, "passages": self.passages, **added, "removed": self.removed}


def follow(
    library: Library,
    found: Found,
    paths: Sequence[Path],
    encoder: BiEncoder,
    fields: Mapping[str, str],
    tokens: int | None,
) -> Outcome:
    """Index what is new or has changed among the files found, and remove what is gone from under `paths`.

    A file counts as done once its passages are stored in both indexes and those of its former content are gone; it is
    written down after that. Broken off, the next run does again what was not written down, and encodes nothing twice.
    `fields` are names given for `Fields`; a file keeps the others that it was read with.
    """
    outcome = Outcome(failed=dict(found.failed))
    with ExitStack() as opened:
        splitter = Splitter(encoder, tokens)
        vectors = opened.enter_context(library.open_vectors(encoder))
        words = opened.enter_context(library.open_words()) if has_bm25() else None
        _Work(library, vectors, words, outcome).run(found, paths, splitter, fields)
        outcome.passages, outcome.files = vectors.count(), len(library.record.files)
    return outcome


class _Work:
    """One run: the indexes, and what waits to be written."""

    def __init__(self, library: Library, vectors: ChromaIndex, words: BM25Index | None, outcome: Outcome) -> None:
        self.record, self.index_folder = library.record, library
        self.vectors, self.words, self.outcome = vectors, words, outcome
        self.waiting: dict[str, Passage] = {}
        self.ends: list[tuple[str, File, set[str]]] = []  # files that are complete with what is waiting
        self.owners: dict[str, str] = {}  # source of each id that a record brought in this run
        self.gone: set[str] = set()  # sources that are known and were not found where they were looked for
        self.kept: set[str] = set()  # sources whose passages stay as they are
        self.new = vectors.count() == 0
        self.goes = 0
        self.splitting = version("semantic-text-splitter")  # which is looked up on the disk

    def run(self, found: Found, paths: Sequence[Path], splitter: Splitter, fields: Mapping[str, str]) -> None:
        finish = not self.record.clean or (self.words is not None and self.words.count() != self.vectors.count())
        self.record.clean = False
        self.gone = self._gone(found, paths)
        self.kept = {source for source in self.record.files if source not in found.files} - self.gone
        self.record.roots = {name: str(root) for name, root in found.roots.items()}
        self.index_folder.save()
        size = sum(map(_size, found.files.values()))
        try:
            with tqdm(total=size, disable=not show_bars(), unit="B", unit_scale=True, desc="Indexing") as bar:
                for source, path in found.files.items():
                    self._take(source, path, splitter, fields, bar)
                self._write()
            for source in self.gone:
                self._delete(self._ids_of(source))
                del self.record.files[source]
        except KeyboardInterrupt:
            self._save()  # what is done is done
            raise
        # A file that an id was taken from, and that was not read again since: what is whose is not known.
        unsettled = any(not file.digest for file in self.record.files.values())
        if finish:
            self._finish(unsettled=unsettled)
        self.record.clean = not unsettled
        self._save()

    def _take(self, source: str, path: Path, splitter: Splitter, given: Mapping[str, str], bar: tqdm[None]) -> None:
        """Split a file, if it is new or has changed, and write when enough is waiting."""
        try:
            content = read_bytes(path)
            known = self.record.files.get(source)
            names = {**({} if known is None else known.fields), **given}
            fields = Fields(**names)
            settings = json.dumps([_READING, splitter.tokens, asdict(fields), self.splitting])
            digest = sha256(settings.encode() + b"\0" + content).hexdigest()
            if known is not None and known.digest == digest:
                self.record.files[source] = replace(known, path=str(path))  # its folder may have been moved
                self.kept.add(source)
                self.outcome.unchanged_files += 1
                self.outcome.report += AddReport(unchanged=known.passages)
                bar.update(len(content))
                return
            documents = read(content, path.name, fields)
        except (OSError, UnreadableError) as error:  # its former passages stay
            self.outcome.failed[source] = getattr(error, "strerror", None) or str(error)
            self.kept.add(source)
            return
        ids: set[str] = set()
        times: Counter[str] = Counter()
        done = 0
        for document in documents:
            for passage in splitter.passages(document, source, times):
                if document.id is not None and (owner := self.owners.setdefault(passage.id, source)) != source:
                    raise _two_files(passage.id, source, owner)
                ids.add(passage.id)
                self.waiting[passage.id] = passage
            step = min(document.size, len(content) - done)
            done += step
            bar.update(step)
            if len(self.waiting) >= _TOGETHER:
                self._write()
        self.ends.append((source, File(str(path), digest, len(ids), names), ids))
        bar.update(len(content) - done)

    def _write(self) -> None:
        """Store what is waiting, then remove what is out of date of the files that are complete."""
        passages = list(self.waiting.values())
        if passages:
            if not self.new:
                self._take_over(self.vectors.get([passage.id for passage in passages]))
            self.outcome.report += self.vectors.add(passages, batch_size=_TOGETHER)
            if self.words is not None:
                self.words.add(passages)
        for source, file, ids in self.ends:
            if not self.new:
                self._delete([id_ for id_ in self._ids_of(source) if id_ not in ids])
            self.record.files[source] = file
        self.waiting, self.ends = {}, []
        self.goes += 1
        if self.goes % _SAVE == 0:
            self._save()

    def _save(self) -> None:
        if self.words is not None:
            self.words.save()  # before what says that they are there
        self.index_folder.save()

    def _take_over(self, stored: Iterable[Passage]) -> None:
        """Let what is waiting have ids that are stored of other files, unless those keep them.

        Another file may be gone, or have been read again without the id. Is its turn still to come, it is read again
        for certain: has it the id then, both have.
        """
        unsettled = False
        for passage in stored:
            owner, source = passage.metadata.get("source"), str(self.waiting[passage.id].metadata["source"])
            if owner == source:
                continue
            if not isinstance(owner, str) or owner in self.kept:
                raise _two_files(passage.id, source, str(owner))
            if (file := self.record.files.get(owner)) is not None and file.digest:
                self.record.files[owner] = replace(file, digest="")
                unsettled = True
        if unsettled:
            self.index_folder.save()  # before passages are another's: the run may be broken off

    def _gone(self, found: Found, paths: Sequence[Path]) -> set[str]:
        """Return the files that are no more: they lay under the paths, and were not found."""
        places = [path.expanduser().resolve() for path in paths]
        moved = self._moved(found)
        gone = set()
        for source, file in self.record.files.items():
            name, *inside = source.split("/")
            where = [Path(file.path)]
            if name in moved:
                where.append(found.roots[name].joinpath(*inside))  # where it would be now
            if source not in found.files and _under(where, places) and not _under(where, map(Path, found.failed)):
                gone.add(source)
        return gone

    def _moved(self, found: Found) -> set[str]:
        """Return the folders that lie elsewhere now: one of the same name has at least half of their files."""
        known, there = Counter[str](), Counter[str]()
        for source in self.record.files:
            name = source.split("/")[0]
            known[name] += 1
            there[name] += source in found.files
        return {name for name in known if name in found.roots and 2 * there[name] >= known[name]}

    def _ids_of(self, source: str) -> list[str]:
        return [record.id for record in self.vectors.collection.read(where={"source": source})]

    def _delete(self, ids: list[str]) -> None:
        if ids:
            self.vectors.delete(ids)
            if self.words is not None:
                self.words.delete(ids)
            self.outcome.removed += len(ids)

    def _finish(self, *, unsettled: bool) -> None:
        """After a run that was broken off: remove what no file stands for, and make the words anew."""
        if not unsettled:
            lost = [
                passage.id
                for passage in all_passages(self.vectors)
                if passage.metadata.get("source") not in self.record.files
            ]
            self._delete(lost)
        if self.words is not None:
            self.words.clear()
            self.words.add(all_passages(self.vectors))


def _under(paths: Sequence[Path], places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places for path in paths)


def _two_files(id_: str, source: str, owner: str) -> InvalidInputError:
    one, other = sorted((source, owner))
    return InvalidInputError(
        f"id {id_!r} is in {one} and in {other}; give every record an id of its own, or name another field with "
        "--id-field"
    )


def _size(file: Path) -> int:
    """Return a file's bytes; 0 where it cannot be looked at, which reading it will say."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
