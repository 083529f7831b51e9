"""Passages from wherever they are, as a Ray Dataset of id, text and metadata; and a batch of it as passages again."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import ray
import ray.data

from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, in_one_line
from retrieve_rerank.indexes.records import check_passage, check_passages, to_record
from retrieve_rerank.types import Passage

Passages: TypeAlias = "ray.data.Dataset | Iterable[Passage] | str | os.PathLike[str]"

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("metadata", pa.large_string())])
_CHUNK = 1_000  # passages in a block
_READERS = 16  # footers of files read at once


def to_dataset(passages: Passages) -> ray.data.Dataset:
    """Return passages as a Dataset with the columns `id`, `text` and, where there is any, `metadata`.

    Args:
        passages: A Dataset that has these columns; the path or URI of a JSON lines or Parquet file or of a folder of
            such; or any iterable of Passage, which is read once, into Ray's object store.

    Raises:
        InvalidInputError: If it is none of these, or if a passage of an iterable cannot be stored.
    """
    if isinstance(passages, ray.data.Dataset):
        return passages
    if isinstance(passages, (str, os.PathLike)):
        return _from_files(os.fspath(passages))
    check_passages(passages)
    blocks: list[Any] = [ray.put(table) for table in _tables(_rows(passages))]
    return ray.data.from_arrow_refs(blocks) if blocks else ray.data.from_arrow(SCHEMA.empty_table())


def to_passages(table: pa.Table) -> tuple[list[Passage], dict[str, str]]:
    """Return the passages of a batch, of equal ids the last one, and why others cannot be stored, by id.

    Metadata are JSON, or a struct or map, in which null is a key that is not there.

    Raises:
        InvalidInputError: If a column is missing, so that no batch can be read.
    """
    missing = {"id", "text"} - set(table.column_names)
    if missing:
        raise InvalidInputError(
            f"the passages have no column {' and no column '.join(map(repr, sorted(missing)))}; there are "
            f"{table.column_names}. Rename them: dataset.rename_columns({{'body': 'text'}})"
        )
    columns = [table[name].to_pylist() for name in ("id", "text")]
    metadatas = table["metadata"].to_pylist() if "metadata" in table.column_names else [None] * table.num_rows
    found: dict[str, Passage] = {}
    failures: dict[str, str] = {}
    for id_, text, metadata in zip(*columns, metadatas, strict=True):
        try:
            passage = Passage(id_, text, _metadata(metadata, id_))
            to_record(passage)
        except RetrieveRerankError as error:
            # Many have no id that names them: their texts do.
            failures[id_ if isinstance(id_, str) and id_ else f"{id_!r} ({text!r:.60})"] = str(error)
            continue
        found.pop(passage.id, None)
        found[passage.id] = passage
    return list(found.values()), failures


def to_table(passages: Iterable[Passage]) -> pa.Table:
    """Return passages as a batch, with their metadata as JSON."""
    rows = [(passage.id, passage.text, json.dumps(dict(passage.metadata))) for passage in passages]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table(dict(zip(SCHEMA.names, map(list, columns), strict=True)), schema=SCHEMA)


def file_system(path: str) -> tuple[pa.fs.FileSystem, str]:
    """Return where a path or URI is, and its path there."""
    try:
        if "://" in path:
            system, root = pa.fs.FileSystem.from_uri(path)
            return system, root
        return pa.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InvalidInputError(f"cannot use the path {path!r}: {error}") from error


def _metadata(value: object, id_: object) -> Mapping[str, Any]:
    if value is None or isinstance(value, Mapping):
        return {key: item for key, item in (value or {}).items() if item is not None}
    if isinstance(value, list):  # a map
        return dict(value)
    try:
        read = json.loads(value) if isinstance(value, str) else None
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise InvalidInputError(
            f"the metadata of passage {id_!r} must be a JSON object, a struct or a map, got {value!r:.80}"
        )
    return read


def _rows(passages: Iterable[Passage]) -> Iterator[Passage]:
    for position, passage in enumerate(passages):
        # The record checks everything here, where the caller can see it, and turns metadata into what JSON can say.
        yield to_record(check_passage(passage, position)).passage


def _tables(passages: Iterator[Passage]) -> Iterator[pa.Table]:
    while chunk := list(islice(passages, _CHUNK)):
        yield to_table(chunk)


def _from_files(path: str) -> ray.data.Dataset:
    system, root = file_system(path)
    info = system.get_file_info(root)
    if info.type == pa.fs.FileType.NotFound:
        raise InvalidInputError(f"there is no {path!r}; give a JSON lines or Parquet file, or a folder of such")
    inside = [info] if info.type == pa.fs.FileType.File else system.get_file_info(pa.fs.FileSelector(root))
    files = sorted(file.path for file in inside if file.type == pa.fs.FileType.File and file.base_name[0] not in "._")
    if files and all(file.endswith(".parquet") for file in files):
        there = _columns(files, system)
        dataset = ray.data.read_parquet(files, filesystem=system)
        return dataset.select_columns([name for name in SCHEMA.names if name in there])
    if files and all(file.removesuffix(".gz").endswith((".jsonl", ".json")) for file in files):
        names = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
        read: Any = _read_lines  # Ray's types know no further arguments
        return names.map_batches(read, batch_size=1, batch_format="pyarrow", fn_kwargs={"system": system})
    raise InvalidInputError(
        f"expected files that all end in .parquet, or all in .jsonl or .jsonl.gz, got {files[:3] or 'none'} in {path!r}"
    )


def _columns(files: list[str], system: pa.fs.FileSystem) -> set[str]:
    """Return which of our columns the files have: all the same, as Ray looks at a few and drops what others have."""

    def columns(file: str) -> frozenset[str]:
        with system.open_input_file(file) as source:
            return frozenset(pyarrow.parquet.read_schema(source).names) & frozenset(SCHEMA.names)

    try:
        with ThreadPoolExecutor(_READERS) as pool:
            found = dict(zip(files, pool.map(columns, files), strict=True))
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInputError(f"cannot read the Parquet files: {in_one_line(error)}") from error
    first = found[files[0]]
    other = next((file for file in files if found[file] != first), None)
    if other is not None:
        raise InvalidInputError(
            f"{files[0]} has the columns {sorted(first)} and {other} has {sorted(found[other])}; give files that have "
            "the same of id, text and metadata"
        )
    return set(first)


def _read_lines(batch: pa.Table, system: pa.fs.FileSystem) -> Iterator[pa.Table]:
    """Yield the passages of files of JSON lines; a file is never held whole."""
    for file in batch["file"].to_pylist():
        with system.open_input_stream(file, compression="detect") as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
            yield from _tables(_parsed(_whole(lines, file), file))


def _whole(lines: Iterable[str], file: str) -> Iterator[str]:
    """Yield the lines of a file; say which it is if it cannot be read to its end."""
    number = 0
    try:
        for line in lines:
            number += 1
            yield line
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InvalidInputError(f"{file} cannot be read after line {number}: {in_one_line(error)}") from error


def _parsed(lines: Iterable[str], file: str) -> Iterator[Passage]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield to_record(Passage(row["id"], row["text"], row.get("metadata") or {})).passage
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # our own are ValueErrors, too
            raise InvalidInputError(
                f"{file}, line {number}: expected an object with the strings id and text, and metadata if there are "
                f"any: {in_one_line(error)}"
            ) from error
