"""Passages from wherever they are, and with their vectors, as a Ray Dataset; and the workers that make them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import ray
import ray.data

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, in_one_line
from retrieve_rerank.indexes.records import check_passage, check_passages, to_record
from retrieve_rerank.types import Encoder, Passage

Passages: TypeAlias = "ray.data.Dataset | Iterable[Passage] | str | os.PathLike[str]"

BATCH = 1_000
_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("metadata", pa.large_string())])
_CHUNK = 1_000  # passages in a block
_FILES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")


def encode(
    passages: Passages,
    encoder: Encoder | Callable[[], Encoder],
    *,
    batch_size: int = BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
) -> ray.data.Dataset:
    """Encode passages on many workers, as a lazy step of a Ray pipeline.

    Use `index` to store them: it goes on where it was broken off, and reports what failed. Here an error ends the
    pipeline, as in any other of its steps. `encode(…).write_parquet(folder)` keeps the vectors.

    Args:
        passages: As for `index`.
        encoder: As for `index`.
        batch_size: Passages encoded in one go. Equal ids of one batch are one passage: the last.
        concurrency: As for `index`.
        num_cpus: As for `index`.
        num_gpus: As for `index`.

    Returns:
        A Dataset with the columns `id`, `text`, `metadata` (JSON) and `vector` (float32, all of one length).

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import Passage
        >>> from retrieve_rerank.ray import encode
        >>> from retrieve_rerank.testing import LetterEncoder  # in the place of a BiEncoder
        >>> encoded = encode([Passage("1", "abba")], LetterEncoder(), concurrency=1)
        >>> [(row["id"], list(row["vector"])) for row in encoded.take_all()]
        [('1', [2.0, 2.0, 0.0, 1.0])]
    """
    check_picklable(encoder, "the encoder")
    options = worker_options(concurrency, num_cpus, num_gpus)
    return in_batches(to_dataset(passages), _Encoding, [encoder], check_count(batch_size, "batch_size"), options)


class _Encoding:
    """What runs in each of Ray's actors."""

    def __init__(self, encoder: Encoder | Callable[[], Encoder]) -> None:
        self._encoder = made(encoder)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return a batch with its vectors."""
        passages, failures = to_passages(table)
        if failures:
            raise InvalidInputError("; ".join(f"{id_!r}: {reason}" for id_, reason in failures.items()))
        try:
            vectors = np.ascontiguousarray(self._encoder.encode_documents([p.text for p in passages]), np.float32)
        except Exception as error:
            ids = f"{passages[0].id!r} to {passages[-1].id!r}"
            raise RetrieveRerankError(f"passages {ids} could not be encoded: {in_one_line(error)}") from error
        if vectors.ndim != 2 or len(vectors) != len(passages) or not np.isfinite(vectors).all():
            raise InvalidInputError(
                f"expected finite vectors of shape ({len(passages)}, dimension) from the encoder, got {vectors.shape}"
            )
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return to_table(passages).append_column("vector", column)


def made(encoder: Encoder | Callable[[], Encoder]) -> Encoder:
    """Return an encoder, made by the function if it is one."""
    return cast("Encoder", encoder) if hasattr(encoder, "encode_documents") else cast("Any", encoder)()


def check_picklable(thing: object, what: str) -> None:
    """Raise InvalidInputError if `thing` cannot be sent to a worker."""
    try:
        cast("Any", ray.cloudpickle).dumps(thing)
    except Exception as error:  # whatever a class raises that cannot be pickled
        raise InvalidInputError(
            f"{what} cannot be sent to the workers: {in_one_line(error)}. Give a function that makes it there"
        ) from error


def worker_options(
    concurrency: int | tuple[int, int] | None, num_cpus: float | None, num_gpus: float
) -> dict[str, Any]:
    """Return Ray's options for a pool of workers, as `index` takes them.

    Raises:
        InvalidInputError: If the cluster has no room for the least workers: Ray would wait for ever.
    """
    if not ray.is_initialized():
        ray.init()
    there: dict[str, float] = cast("Any", ray.cluster_resources)()
    room = {"CPUs": max(0.0, there.get("CPU", 0.0) - 1), "GPUs": there.get("GPU", 0.0)}
    each = {"CPUs": min(1.0, room["CPUs"]) if num_cpus is None else num_cpus, "GPUs": num_gpus}
    if isinstance(concurrency, tuple):
        least, most = (check_count(number, "concurrency") for number in concurrency)
    else:
        fitting = [room[kind] / each[kind] for kind in ("GPUs", "CPUs") if each[kind]]
        least, most = 1, max(1, int(fitting[0])) if concurrency is None and fitting else 1
        most = most if concurrency is None else check_count(concurrency, "concurrency")
    if least > most:
        raise InvalidInputError(f"concurrency must be (least, most), got {concurrency!r}")
    for kind, free in room.items():
        if least * each[kind] > free:
            raise InvalidInputError(
                f"{least} workers of {each[kind]:g} {kind} are more than the {free:g} of the cluster's "
                f"{there.get(kind[:-1], 0.0):g} that are free when one CPU is kept to read the passages with: give "
                "less concurrency, or a smaller num_cpus or num_gpus"
            )
    pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most)
    return {"compute": pool, "num_cpus": each["CPUs"], "num_gpus": num_gpus}


def in_batches(
    dataset: ray.data.Dataset, worker: type, arguments: Iterable[object], size: int, options: Mapping[str, Any]
) -> ray.data.Dataset:
    """Return what workers make of the dataset's batches, each a task of its own: what a lost worker costs.

    Ray starts a lost worker again, and its task, as often as it takes.
    """
    mapped: ray.data.Dataset = dataset.repartition(target_num_rows_per_block=size).map_batches(
        worker, fn_constructor_args=tuple(arguments), batch_size=size, batch_format="pyarrow", **options
    )
    return mapped


def blocks_of(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Yield the blocks of a dataset as they are done.

    Raises:
        RetrieveRerankError: If Ray fails, or what runs there.
    """
    dataset.context.enable_progress_bars = False
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except ray.exceptions.RayError as error:
        raise as_ours(error) from error


def as_ours(error: ray.exceptions.RayError) -> RetrieveRerankError:
    """Return what was raised in the other process where it is ours, else an error of ours that says it in one line."""
    cause: BaseException = error
    while isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, RetrieveRerankError):
        inner = getattr(cause, "cause", None) or cause.__cause__
        if inner is None:
            return RetrieveRerankError(f"Ray failed: {in_one_line(cause)}")
        cause = inner
    return cause


def to_dataset(passages: Passages) -> ray.data.Dataset:
    """Return passages as a Dataset with the columns `id`, `text` and, where there is any, `metadata`.

    Raises:
        InvalidInputError: If it is nothing that `index` takes, or if a passage of an iterable cannot be stored.
    """
    if isinstance(passages, ray.data.Dataset):
        return passages
    if isinstance(passages, (str, os.PathLike)):
        return _from_files(os.fspath(passages))
    check_passages(passages)
    # The record checks everything here, where the caller can see it, and turns metadata into what JSON can say.
    checked = (to_record(check_passage(passage, position)).passage for position, passage in enumerate(passages))
    blocks: list[Any] = [ray.put(table) for table in _tables(checked)]
    return ray.data.from_arrow_refs(blocks) if blocks else ray.data.from_arrow(_SCHEMA.empty_table())


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
    found: dict[str, Passage] = {}
    failures: dict[str, str] = {}
    for row in table.select([name for name in _SCHEMA.names if name in table.column_names]).to_pylist():
        id_, text = row["id"], row["text"]
        try:
            passage = Passage(id_, text, _metadata(row.get("metadata"), id_))
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
    return pa.Table.from_pylist([dict(zip(_SCHEMA.names, row, strict=True)) for row in rows], schema=_SCHEMA)


def _tables(passages: Iterable[Passage]) -> Iterator[pa.Table]:
    passages = iter(passages)
    while chunk := list(islice(passages, _CHUNK)):
        yield to_table(chunk)


def _metadata(value: object, id_: object) -> Mapping[str, Any]:
    if isinstance(value, list):  # a map
        return dict(value)
    try:
        read = json.loads(value) if isinstance(value, str) else {} if value is None else value
    except ValueError:
        read = None
    if not isinstance(read, Mapping):
        raise InvalidInputError(
            f"the metadata of passage {id_!r} must be a JSON object, a struct or a map, got {value!r:.80}"
        )
    return read if isinstance(value, str) else {key: item for key, item in read.items() if item is not None}


def _from_files(path: str) -> ray.data.Dataset:
    try:
        local = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
        system, root = pa.fs.FileSystem.from_uri(path) if "://" in path else (pa.fs.LocalFileSystem(), local)
        info = system.get_file_info(root)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise InvalidInputError(f"cannot use the path {path!r}: {error}") from error
    if info.type == pa.fs.FileType.NotFound:
        raise InvalidInputError(f"there is no {path!r}; give a JSON lines or Parquet file, or a folder of such")
    inside = [info] if info.type == pa.fs.FileType.File else system.get_file_info(pa.fs.FileSelector(root))
    files = sorted(file.path for file in inside if file.type == pa.fs.FileType.File and file.base_name[0] not in "._")
    if not files or not all(file.endswith(_FILES) for file in files):
        raise InvalidInputError(
            f"expected files that end in one of {', '.join(_FILES)}, got {files[:3] or 'none'} in {path!r}"
        )
    names = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    read: Any = _read  # Ray's types know no further arguments
    return names.map_batches(read, batch_size=1, batch_format="pyarrow", fn_kwargs={"system": system})


def _read(batch: pa.Table, system: pa.fs.FileSystem) -> Iterator[pa.Table]:
    """Yield the passages of files; a file is never held whole, and each is read by its own columns."""
    for file in batch["file"].to_pylist():
        if not file.endswith(".parquet"):
            yield from _tables(_lines(file, system))
            continue
        try:
            with system.open_input_file(file) as source:
                parquet = pyarrow.parquet.ParquetFile(source)
                names = [name for name in _SCHEMA.names if name in parquet.schema_arrow.names]
                for rows in parquet.iter_batches(_CHUNK, columns=names):
                    yield pa.Table.from_batches([rows])
        except (pa.ArrowException, OSError) as error:
            raise InvalidInputError(f"{file} cannot be read: {in_one_line(error)}") from error


def _lines(file: str, system: pa.fs.FileSystem) -> Iterator[Passage]:
    number = 0
    try:
        with system.open_input_stream(file, compression="detect") as stream:
            for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
                number += 1
                if line.strip():
                    row = json.loads(line)
                    yield to_record(Passage(row["id"], row["text"], row.get("metadata") or {})).passage
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InvalidInputError(f"{file} cannot be read after line {number}: {in_one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # our own are ValueErrors, too
        raise InvalidInputError(
            f"{file}, line {number}: expected an object with the strings id and text, and metadata if there are any: "
            f"{in_one_line(error)}"
        ) from error
