"""`retrieve-rerank index`: files into an index, which follows them."""

from __future__ import annotations

import json as jsons
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieve_rerank.cli.documents import Fields, Reading, UnreadableError, read
from retrieve_rerank.cli.files import Filters, Found, find, is_html, read_bytes
from retrieve_rerank.cli.folder import File, IndexFolder, Record, all_passages, made_folder
from retrieve_rerank.cli.html import common_lines
from retrieve_rerank.cli.options import (
    BiEncoderName,
    CrossEncoderName,
    Debug,
    Demo,
    Device,
    Json,
    Language,
    Models,
    PrecisionName,
    PrecisionOption,
    check_language,
    has_bm25,
    model_name,
)
from retrieve_rerank.cli.streams import for_people, guarded, put, result, say, show_bars, with_examples
from retrieve_rerank.errors import InvalidInputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from retrieve_rerank.cli.splitting import Splitter
    from retrieve_rerank.indexes.bm25 import BM25Index
    from retrieve_rerank.indexes.chroma import ChromaIndex
    from retrieve_rerank.types import AddReport, Passage

HELP = with_examples(
    "Index files, or bring an index up to date.\n\n"
    "Text (.txt, .rst), Markdown, HTML, notebooks, JSONL and CSV are read, in folders by their endings; PDF and docx "
    "with the extra 'documents'. Files are split into passages at headings, paragraphs and sentences, none longer than "
    "the bi-encoder reads. Run it again after files have changed: only what is new is encoded, and passages of files "
    "that are gone go, too. The index knows its models, so that searching names none.",
    "retrieve-rerank index docs --to my-index --demo",
    "retrieve-rerank index docs --to my-index              # again, after changes",
    "retrieve-rerank index faq.jsonl --to faq-index --demo --text-field answer --title-field question",
)

_READING = 5  # raised where files are read or split otherwise than before: all of them are then read again
_TOGETHER = 512  # passages encoded and written in one go
_SAVE = 16  # such goes between two savings


@guarded
def index(
    paths: Annotated[
        list[Path], typer.Argument(exists=True, metavar="FILES", help="Files and folders.", show_default=False)
    ],
    *,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the index, made if missing.")],
    demo: Demo = False,
    bi_encoder: BiEncoderName = None,
    cross_encoder: CrossEncoderName = None,
    device: Device = None,
    precision: PrecisionOption = PrecisionName.AUTO,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--passage-tokens", min=1, metavar="N", help="Of a passage at most; at first 256, or what the model reads."
        ),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field of the text in JSONL and CSV; at first text, then kept.")
    ] = None,
    title_field: Annotated[str | None, typer.Option(metavar="NAME", help="Field of the title; likewise.")] = None,
    id_field: Annotated[str | None, typer.Option(metavar="NAME", help="Field of the id; likewise, and _id.")] = None,
    encoding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of files that do not say theirs, such as cp1252; left out: UTF-8."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave out of folders, as in a .gitignore; may be repeated."),
    ] = None,
    gitignore: Annotated[
        bool, typer.Option("--gitignore/--no-gitignore", help="Leave out what a .gitignore names.")
    ] = True,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links that lead out of a folder.")
    ] = False,
    language: Language = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Index files, or bring an index up to date."""
    from retrieve_rerank._files import locked

    check_language(language)
    _check_encoding(encoding)
    wanted = Record(
        model_name(bi_encoder, demo=demo), model_name(cross_encoder, demo=demo), language or "", tokens=tokens
    )
    made_folder(to)
    with locked(to / "lock", 0.0):
        folder = IndexFolder.open_or_begin(to, wanted)
        record = folder.record
        filters = Filters(exclude or (), gitignore, follow_links)
        found = find(paths, {name: Path(root) for name, root in record.roots.items()}, to, filters)
        if not found.files:
            raise InvalidInputError(_nothing(paths, found))
        named = {"text": text_field, "title": title_field, "id": id_field}
        fields = {name: field for name, field in named.items() if field is not None}
        outcome = _follow(folder, found, paths, Models(record.bi_encoder, None, device, precision), fields, encoding)
    result(lambda: _report(outcome, found, folder, json=json))
    if outcome.failed:
        raise typer.Exit(1)


def _check_encoding(name: str | None) -> None:
    try:
        "".encode(name or "utf-8")
    except LookupError:
        raise typer.BadParameter(f"{name!r} is no encoding that Python knows; write cp1252, utf-16, …") from None


def _nothing(paths: list[Path], found: Found) -> str:
    there = ", ".join(str(path) for path in paths)
    notes = "".join(f" ({note})" for note in found.notes())
    return (
        f"there is nothing to index in {there}{notes}; expected text, Markdown, HTML, notebooks, JSONL or CSV files. "
        "Nothing was changed"
    )


@dataclass(slots=True)
class Outcome:
    """What became of the files."""

    files: int = 0
    passages: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    unchanged_files: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(self, report: AddReport) -> None:
        """Take what became of passages."""
        self.added += report.added
        self.updated += report.updated
        self.unchanged += report.unchanged


def _report(outcome: Outcome, found: Found, folder: IndexFolder, *, json: bool) -> None:
    for name, reason in outcome.failed.items():
        say(f"warning: {name}: {reason}; left out")
    for note in (*outcome.notes, *found.notes()):
        say(f"note: {note}")
    if not has_bm25():
        say('note: passages are found by their vectors only; for words, too: pip install "retrieve-rerank[hybrid]"')
    if not for_people(json=json):
        counts = {name: value for name, value in asdict(outcome).items() if isinstance(value, int)}
        put({"index": str(folder.folder), **counts, "failed_files": len(outcome.failed)})
        return
    say(
        f"{outcome.files} files, {outcome.passages} passages in {folder.folder}: {outcome.added} passages added, "
        f"{outcome.updated} updated, {outcome.removed} removed, {outcome.unchanged} unchanged"
    )


def _follow(
    folder: IndexFolder,
    found: Found,
    paths: Sequence[Path],
    models: Models,
    fields: Mapping[str, str],
    encoding: str | None,
) -> Outcome:
    """Index what is new or has changed among the files found, and remove what is gone from under `paths`."""
    from retrieve_rerank.cli.splitting import Splitter

    with ExitStack() as opened:
        encoder = opened.enter_context(models.make_bi_encoder())
        splitter = Splitter(encoder, folder.record.tokens)
        vectors = opened.enter_context(folder.open_vectors(encoder))
        words = opened.enter_context(folder.open_words()) if has_bm25() else None
        run = _Run(folder, found, vectors, words)
        run.follow(paths, splitter, fields, encoding)
        run.outcome.passages, run.outcome.files = vectors.count(), len(folder.record.files)
    return run.outcome


class _Run:
    """One run: the indexes, and what waits to be written.

    A file counts as done once its passages are stored in both indexes and those of its former content are gone; it is
    written down after that. Broken off, the next run does again what was not written down, and encodes nothing twice.
    """

    def __init__(self, folder: IndexFolder, found: Found, vectors: ChromaIndex, words: BM25Index | None) -> None:
        self.folder, self.record, self.found = folder, folder.record, found
        self.vectors, self.words = vectors, words
        self.outcome = Outcome(failed=dict(found.failed))
        self.waiting: dict[str, Passage] = {}
        self.ends: list[tuple[str, File, set[str]]] = []  # files that are complete with what is waiting
        self.gone: set[str] = set()
        self.new = vectors.count() == 0
        self.goes = 0
        self.splitting = version("semantic-text-splitter")  # which is looked up on the disk

    def follow(
        self, paths: Sequence[Path], splitter: Splitter, fields: Mapping[str, str], encoding: str | None
    ) -> None:
        from tqdm import tqdm

        unfinished = not self.record.clean or (self.words is not None and self.words.count() != self.vectors.count())
        self.record.clean = False
        self.record.roots = {name: str(root) for name, root in self.found.roots.items()}
        self.gone = self._gone([path.expanduser().resolve() for path in paths])
        self.folder.save()
        reader = _Reader(self.record, splitter.tokens, self.splitting, fields, encoding)
        reader.learn_boilerplate(self.found.files, self.gone)
        size = sum(map(_size, self.found.files.values()))
        try:
            with tqdm(total=size, disable=not show_bars(), unit="B", unit_scale=True, desc="Indexing") as bar:
                for source, path in self.found.files.items():
                    self._take(source, path, reader, splitter, bar)
                self._write()
            for source in self.gone:
                self._delete(self._ids_of(source))
                del self.record.files[source]
        except KeyboardInterrupt:
            self._save()  # what is done is done
            raise
        if unfinished:
            self._finish()
        self.record.clean = True
        self._save()

    def _take(self, source: str, path: Path, reader: _Reader, splitter: Splitter, bar: tqdm[None]) -> None:
        """Split a file, if it is new or has changed, and write when enough is waiting."""
        try:
            content = read_bytes(path)
            file = reader.facts(source, path, content)
            known = self.record.files.get(source)
            if known is not None and known.digest == file.digest:
                self.outcome.unchanged_files += 1
                self.outcome.unchanged += known.passages
                bar.update(len(content))
                return
            reading = reader.read(source, path, content, file)
            passages = list(_passages(reading, source, splitter))
        except (OSError, UnreadableError) as error:  # its former passages stay
            self.outcome.failed[source] = getattr(error, "strerror", None) or str(error)
            return
        self.outcome.notes += [f"{source}: {note}" for note in reading.notes]
        if reading.problem is not None:
            self.outcome.failed[source] = reading.problem
            file = replace(file, digest="")  # so that the next run says it, too
        ids: set[str] = set()
        for passage in self._of_their_own(source, passages):
            ids.add(passage.id)
            self.waiting[passage.id] = passage
            if len(self.waiting) >= _TOGETHER:
                self._write()
        self.ends.append((source, replace(file, passages=len(ids)), ids))
        bar.update(len(content))

    def _of_their_own(self, source: str, passages: Sequence[Passage]) -> Iterator[Passage]:
        """Yield a file's passages; an id that another file's passage has names its file."""
        named = [passage.id for passage in passages if not passage.id.startswith(f"{source}#")]
        stored = self.vectors.get(named) if named and self.record.files else []
        owners = {passage.id: passage.metadata.get("source") for passage in (*stored, *self.waiting.values())}
        for passage in passages:
            if owners.get(passage.id, source) in (source, *self.gone):
                yield passage
            else:
                yield replace(passage, id=f"{source}#{passage.id}")

    def _write(self) -> None:
        """Store what is waiting, then remove what is out of date of the files that are complete."""
        if passages := list(self.waiting.values()):
            self.outcome.count(self.vectors.add(passages, batch_size=_TOGETHER))
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
        self.folder.save()

    def _gone(self, places: Sequence[Path]) -> set[str]:
        """Return the files that are no more: they lay under the paths that were given, and were not found."""
        failed = [Path(name) for name in self.found.failed]
        return {
            source
            for source in set(self.record.files) - set(self.found.files)
            if _is_under(path := self.record.path_of(source), places) and not _is_under(path, failed)
        }

    def _ids_of(self, source: str) -> list[str]:
        return [record.id for record in self.vectors.collection.read(where={"source": source})]

    def _delete(self, ids: list[str]) -> None:
        if ids:
            self.vectors.delete(ids)
            if self.words is not None:
                self.words.delete(ids)
            self.outcome.removed += len(ids)

    def _finish(self) -> None:
        """After a run that was broken off: remove what no file stands for, and make the words anew."""
        files = self.record.files
        self._delete(
            [passage.id for passage in all_passages(self.vectors) if passage.metadata.get("source") not in files]
        )
        if self.words is not None:
            self.words.clear()
            self.words.add(all_passages(self.vectors))


@dataclass(frozen=True, slots=True)
class _Reader:
    """How files are read in this run, and whether that is as before."""

    record: Record
    tokens: int
    splitting: str
    fields: Mapping[str, str]
    encoding: str | None

    def facts(self, source: str, path: Path, content: bytes) -> File:
        """Return what would be known of a file; it keeps the fields and the encoding that it was read with."""
        known = self.record.files.get(source, File("", 0))
        fields, encoding = {**known.fields, **self.fields}, self.encoding or known.encoding
        common = self.record.boilerplate.get(source.split("/")[0], []) if is_html(path) else []
        settings = jsons.dumps([_READING, self.tokens, asdict(Fields(**fields)), self.splitting, encoding, common])
        return File(sha256(settings.encode() + b"\0" + content).hexdigest(), 0, fields, encoding)

    def read(self, source: str, path: Path, content: bytes, file: File) -> Reading:
        """Return a file's documents."""
        common = self.record.boilerplate.get(source.split("/")[0], [])
        return read(content, path.name, Fields(**file.fields), encoding=file.encoding, boilerplate=common)

    def learn_boilerplate(self, files: Mapping[str, Path], gone: Iterable[str]) -> None:
        """Find out what most pages of each root have in common, where a page of it is new, has changed or is gone."""
        pages: dict[str, dict[str, Path]] = {}
        for source, path in files.items():
            if is_html(path):
                pages.setdefault(source.split("/")[0], {})[source] = path
        lost = {source.split("/")[0] for source in gone}
        for root, paths in pages.items():
            if root in lost or any(self._is_new(source, path) for source, path in paths.items()):
                self.record.boilerplate[root] = common_lines(self._texts(paths))

    def _is_new(self, source: str, path: Path) -> bool:
        try:
            known = self.record.files.get(source)
            return known is None or known.digest != self.facts(source, path, read_bytes(path)).digest
        except OSError:
            return False

    def _texts(self, paths: Mapping[str, Path]) -> Iterator[str]:
        for path in paths.values():
            try:
                reading = read(read_bytes(path), path.name, Fields(), encoding=self.encoding)
            except (OSError, UnreadableError):  # which is said when its turn comes
                continue
            yield from (document.text for document in reading.documents)


def _passages(reading: Reading, source: str, splitter: Splitter) -> Iterator[Passage]:
    times: Counter[str] = Counter()
    for document in reading.documents:
        yield from splitter.passages(document, source, times)


def _is_under(path: Path, places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _size(file: Path) -> int:
    """Return a file's bytes; 0 where it cannot be looked at, which reading it will say."""
    try:
        return file.stat().st_size
    except OSError:
        return 0
