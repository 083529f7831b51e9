"""A folder that `index` made: passages in Chroma, their words in BM25, and what they were made of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from retrieve_rerank.cli.options import DEMO, has_bm25
from retrieve_rerank.cli.streams import say
from retrieve_rerank.errors import InvalidInputError, require

if TYPE_CHECKING:
    from retrieve_rerank.indexes.bm25 import BM25Index
    from retrieve_rerank.indexes.chroma import ChromaIndex
    from retrieve_rerank.types import Encoder, Hit, Passage, Retriever

_FILE = "retrieve-rerank.json"
_FORMAT = 2
_ANEW = "index the files again, into another folder"
_PAGE = 5_000  # passages read at a time


@dataclass(frozen=True, slots=True)
class File:
    """What is known of an indexed file: what it held, how it was read, and how many passages that made.

    `fields` is what its fields were called, where not as usual.
    """

    digest: str
    passages: int
    fields: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None


@dataclass(slots=True)
class Record:
    """What an index says of itself, in a file of its own.

    Attributes:
        bi_encoder: As `Models` has it.
        cross_encoder: Likewise.
        language: Of the words.
        files: By source.
        roots: Folders by the name that sources begin with.
        boilerplate: Of the pages in each root, the lines that most have in common.
        clean: False while it is written: whoever finds it so has work to finish.
        tokens: Of a passage at most, as it was asked for last.
    """

    bi_encoder: str | None
    cross_encoder: str | None
    language: str
    files: dict[str, File] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    boilerplate: dict[str, list[str]] = field(default_factory=dict)
    clean: bool = True
    tokens: int | None = None

    def path_of(self, source: str) -> Path:
        """Return where a file is."""
        name, *inside = source.split("/")
        return Path(self.roots[name]).joinpath(*inside)


class IndexFolder:
    """The folder and its record."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record

    @classmethod
    def open(cls, folder: Path) -> IndexFolder:
        """Open what `index` made.

        Raises:
            InvalidInputError: If there is nothing, or something else.
        """
        file = folder / _FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInputError(
                f"{folder} is no index; make one first: retrieve-rerank index FILES --to {folder}"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInputError(f"{file} cannot be read: {error}; {_ANEW}") from error
        found = content.pop("index_format", None) if isinstance(content, dict) else None
        if found != _FORMAT:
            raise InvalidInputError(f"{file} has format {found!r}, and this version reads {_FORMAT}; {_ANEW}")
        try:
            return cls(folder, TypeAdapter(Record).validate_json(json.dumps(content), strict=True))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            place = ".".join(map(str, fault["loc"]))
            raise InvalidInputError(f"{file} is not whole: {place}: {fault['msg']}; {_ANEW}") from error

    @classmethod
    def open_or_begin(cls, folder: Path, wanted: Record) -> IndexFolder:
        """Open an index to bring it up to date, or begin a new one. What it was made with is kept.

        An index of which no file was finished yet, whatever ended the run, is begun anew where it is wanted otherwise.

        Args:
            folder: There must be nothing else in it.
            wanted: What the user asks for; None, and an empty language, where that is as it is.

        Raises:
            InvalidInputError: If something else is in the folder, or the index was made by another model or language.
        """
        if not (folder / _FILE).is_file():
            others = [item.name for item in folder.iterdir() if item not in own_files(folder)]
            if others:
                raise InvalidInputError(
                    f"{folder} holds something else than an index, such as {min(others)}; give an empty or a new folder"
                )
            return cls._begin(folder, wanted)
        opened = cls.open(folder)
        record = opened.record
        same_model = wanted.bi_encoder in (None, record.bi_encoder)
        same_language = wanted.language in ("", record.language)
        if not record.files and not (same_model and same_language):
            return cls._begin(folder, wanted)
        if not same_model:
            raise InvalidInputError(
                f"{folder} was made with the bi-encoder {record.bi_encoder or 'that is the default'!r}, not "
                f"{wanted.bi_encoder!r}, and vectors of two models cannot be compared; index into another folder"
            )
        if not same_language:
            raise InvalidInputError(
                f"{folder} was made for the language {record.language!r}, not {wanted.language!r}; index into another "
                "folder"
            )
        record.cross_encoder = wanted.cross_encoder or record.cross_encoder
        record.tokens = wanted.tokens or record.tokens
        return opened

    @classmethod
    def _begin(cls, folder: Path, wanted: Record) -> IndexFolder:
        for place in (folder / "vectors", _words(folder)):  # of a run that finished no file
            if place.exists():
                shutil.rmtree(place)
        wanted.language = wanted.language or "en"
        wanted.clean = False
        begun = cls(folder, wanted)
        begun.save()  # first, so that the folder is known for an index, whenever the run ends
        return begun

    def save(self) -> None:
        """Write the record. Killed at any moment, it leaves the old one or the new one."""
        from retrieve_rerank._files import write_text

        content = json.dumps({"index_format": _FORMAT, **asdict(self.record)}, indent=1)
        write_text(f"{content}\n", self.folder / _FILE, "the record of the index")

    def open_vectors(self, encoder: Encoder) -> ChromaIndex:
        """Open the passages' vectors."""
        return open_vectors(self.folder, encoder)

    def open_words(self) -> BM25Index:
        """Open the passages' words."""
        return open_words(self.folder, self.record.language)

    @property
    def has_words(self) -> bool:
        """Whether the passages can be found by their words."""
        return has_bm25() and _words(self.folder).is_dir()

    def check_stages(self, names: Iterable[str]) -> None:
        """Raise InvalidInputError where a first stage needs words and there are none: it would find nothing."""
        if set(names) != {"dense"} and not self.has_words:
            require("bm25s", extra="hybrid")
            raise InvalidInputError(f"{self.folder} has no words to search for; run retrieve-rerank index again")

    def tell(self, *, cross_encoder: bool = True) -> None:
        """Say which models the folder names, which somebody else may have made, and where files may be missing.

        Args:
            cross_encoder: Whether the one that it names is used.
        """
        named = (self.record.bi_encoder, self.record.cross_encoder if cross_encoder else None)
        if models := [model for model in named if model not in (None, DEMO)]:
            say(f"note: {self.folder} names the models {' and '.join(map(str, models))}")
        if not self.record.clean:
            say(f"warning: indexing {self.folder} was broken off; run retrieve-rerank index again to finish it")


def own_files(folder: Path) -> list[Path]:
    """Return the files and folders that an index consists of: nothing else may be written there."""
    return [folder / _FILE, folder / "lock", folder / "vectors", _words(folder)]


def open_vectors(folder: Path, encoder: Encoder) -> ChromaIndex:
    """Open the vectors in a folder, which are made if missing."""
    from retrieve_rerank.indexes.chroma import ChromaIndex

    return ChromaIndex(encoder, path=folder / "vectors")


def open_words(folder: Path, language: str) -> BM25Index:
    """Open the words in a folder, which are made if missing."""
    from retrieve_rerank.indexes.bm25 import BM25Index

    return BM25Index(path=_words(folder), language=None if language == "none" else language)


def _words(folder: Path) -> Path:
    return folder / "words"


def all_passages(index: ChromaIndex) -> Iterator[Passage]:
    """Yield every passage of an index."""
    offset = 0
    while records := index.collection.read(limit=_PAGE, offset=offset):
        offset += len(records)
        yield from (record.passage for record in records)


@contextmanager
def first_stages(folder: Path, names: list[str], encoder: Encoder, language: str) -> Iterator[Mapping[str, Retriever]]:
    """Open first stages over one folder; they share what they can."""
    from retrieve_rerank import HybridRetriever

    with ExitStack() as opened:
        made: dict[str, Retriever] = {}
        if set(names) != {"bm25"}:
            made["dense"] = opened.enter_context(open_vectors(folder, encoder))
        if set(names) != {"dense"}:
            made["bm25"] = opened.enter_context(open_words(folder, language))
        if "hybrid" in names:
            made["hybrid"] = HybridRetriever([made["dense"], made["bm25"]])
        yield {name: made[name] for name in names}


def made_folder(folder: Path) -> Path:
    """Return a folder, which is made if missing.

    Raises:
        InvalidInputError: If it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"cannot make the folder {os.fspath(folder)!r}: {error}") from error
    return folder


def place(hit: Hit) -> str:
    """Return where a passage is from: its file with the line, as compilers write it, or its id."""
    metadata = hit.passage.metadata
    if "source" not in metadata:
        return hit.passage.id
    return f"{metadata['source']}:{metadata['line']}" if "line" in metadata else str(metadata["source"])


def folded(hits: Sequence[Hit]) -> list[tuple[Hit, list[str]]]:
    """Return hits, of those with one text the best, each with the places of the others."""
    first: dict[str, tuple[Hit, list[str]]] = {}
    for hit in hits:
        if hit.passage.text in first:
            first[hit.passage.text][1].append(place(hit))
        else:
            first[hit.passage.text] = (hit, [])
    return list(first.values())
