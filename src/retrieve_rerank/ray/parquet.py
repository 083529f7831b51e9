"""Passages and their vectors in a folder of Parquet files, and from there into an index.

Rows are only ever added, in new files; of the rows of one id, that of the latest run counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import ray
from tqdm.auto import tqdm

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.chroma import ChromaIndex
from retrieve_rerank.indexes.fingerprint import FORMAT, Identity, check_format, check_identity
from retrieve_rerank.indexes.records import to_record
from retrieve_rerank.ray.encoding import with_vectors
from retrieve_rerank.ray.pool import Pool, encoder_of
from retrieve_rerank.ray.sources import Passages, file_system, to_passages, to_table
from retrieve_rerank.ray.storing import store
from retrieve_rerank.ray.worker import key_of
from retrieve_rerank.types import AddReport, Encoder, Metric, Passage

_BATCH = 10_000
_MAX_FAILED = 1_000
_ENCODER, _METRIC, _FORMAT = b"retrieve_rerank:encoder", b"retrieve_rerank:metric", b"retrieve_rerank:format"

Numbers = npt.NDArray[np.uint64]


def write_parquet(
    passages: Passages,
    encoder: Encoder | Callable[[], Encoder],
    folder: str | os.PathLike[str],
    *,
    batch_size: int = _BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    max_failed: int = _MAX_FAILED,
    show_progress: bool = False,
) -> AddReport:
    """Encode passages on many workers and write them, with their vectors, to a folder of Parquet files.

    `load_parquet` puts them into an index without encoding them again; any reader of Parquet reads them. Passages that
    are in the folder already are not encoded again, so a run that was broken off is run again. A worker that is lost
    costs its batch.

    Args:
        passages: As for `index`.
        encoder: As for `index`.
        folder: A path or URI that all nodes reach; it is made if missing. Each batch is a file of its own with the
            columns `id`, `text`, `metadata` (JSON), `vector` (float32) and `digest`, and the encoder's fingerprint. A
            passage that changed is written anew; the old row stays, and the row of the latest run counts.
        batch_size: Passages encoded and written in one go: rows of a file.
        concurrency: As for `index`.
        num_cpus: As for `index`.
        num_gpus: As for `index`.
        max_failed: As for `index`.
        show_progress: Show a bar on stderr.

    Returns:
        What became of the passages.

    Raises:
        PassagesFailedError: If passages could not be written; all others were.
        IndexMismatchError: If the folder holds vectors of another encoder.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> import tempfile
        >>> from retrieve_rerank import ChromaIndex, Passage
        >>> from retrieve_rerank.ray import load_parquet, write_parquet
        >>> from retrieve_rerank.testing import LetterEncoder  # in the place of a BiEncoder
        >>> encoder = LetterEncoder()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = write_parquet([Passage("1", "abba"), Passage("2", "cab")], encoder, folder, concurrency=1)
        ...     load_parquet(folder, ChromaIndex(encoder))
        AddReport(added=2, updated=0, unchanged=0)
    """
    place = Folder.at(folder)
    place.system.create_dir(place.root, recursive=True)

    def prepare() -> Callable[[], Files]:
        files = place.files()
        keys, contents = _latest([digests for _, digests in _digests(place, files)])
        return partial(Files, encoder, place, _next_run(files), ray.put(keys), ray.put(contents))

    return store(
        passages,
        prepare,
        Pool(concurrency, num_cpus, num_gpus),
        batch_size=batch_size,
        max_failed=max_failed,
        show_progress=show_progress,
    )


def load_parquet(
    folder: str | os.PathLike[str],
    index: ChromaIndex,
    *,
    batch_size: int = 1_000,
    show_progress: bool = False,
) -> AddReport:
    """Put what `write_parquet` wrote into an index, without encoding it again.

    The result is what `index.add` makes of the same passages. It runs here, in one process, as one process at a time
    may write a Chroma directory.

    Args:
        folder: What `write_parquet` was given.
        index: An index of the same encoder.
        batch_size: Passages written in one go.
        show_progress: Show a bar on stderr.

    Returns:
        What became of the passages.

    Raises:
        IndexMismatchError: If the vectors were made by another encoder than the index's.
        InvalidInputError: If the folder holds nothing that `write_parquet` wrote.
    """
    batch_size = index.collection.batch_size(batch_size)
    place = Folder.at(folder)
    files = place.files()
    if not files:
        raise InvalidInputError(f"there are no files of `write_parquet` in {os.fspath(folder)!r}")
    by_file = _digests(place, files)
    keys, contents = _latest([digests for _, digests in by_file])
    report = AddReport()
    done: set[int] = set()  # a content that an id had, lost and has again is in two files
    with tqdm(total=len(keys), disable=not show_progress, unit="passage", desc="Loading") as bar:
        for file, digests in reversed(by_file):  # the latest first
            current = _is_current(digests, keys, contents)
            with place.system.open_input_file(file) as source:
                parquet = pyarrow.parquet.ParquetFile(source)
                _check(place, parquet.schema_arrow.metadata, index.encoder)
                start = 0
                for rows in parquet.iter_batches(batch_size):
                    mask = current[start : start + rows.num_rows].copy()
                    for row in np.flatnonzero(mask):
                        key = int(digests[start + row, 0])
                        mask[row] = key not in done
                        done.add(key)
                    start += rows.num_rows
                    report += _load(pa.table(rows.filter(pa.array(mask))), index)
                    bar.update(int(mask.sum()))
    return report


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of Parquet files."""

    system: pa.fs.FileSystem
    root: str

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Folder:
        """Return the folder at a path or URI."""
        return cls(*file_system(os.fspath(path)))

    def files(self) -> list[str]:
        """Return the files, oldest first."""
        selector = pa.fs.FileSelector(self.root, allow_not_found=True)
        names = [info.path for info in self.system.get_file_info(selector) if info.path.endswith(".parquet")]
        strange = [name for name in names if not name.rpartition("/")[2].split("-")[0].isdigit()]
        if strange:
            raise InvalidInputError(
                f"{strange[0]!r} was not written by `write_parquet`; give a folder that holds nothing else"
            )
        return sorted(names)


class Files:
    """A sink: new files in a folder, one a batch."""

    def __init__(
        self,
        encoder: Encoder | Callable[[], Encoder],
        folder: Folder,
        run: int,
        keys: ray.ObjectRef[Numbers],
        contents: ray.ObjectRef[Numbers],
    ) -> None:
        self._encoder = encoder_of(encoder)
        self._folder = folder
        self._run = run
        self._keys, self._contents = ray.get([keys, contents])
        self._facts = {
            _ENCODER: json.dumps(dict(self._encoder.fingerprint), sort_keys=True).encode(),
            _METRIC: self._encoder.metric.encode(),
            _FORMAT: str(FORMAT).encode(),
        }
        for file in folder.files()[:1]:
            with folder.system.open_input_file(file) as source:
                _check(folder, pyarrow.parquet.read_schema(source).metadata, self._encoder)

    def store(self, passages: list[Passage]) -> AddReport:
        """Write those that are not there as they are."""
        digests = _digested(passages)
        changed = np.flatnonzero(~_is_current(digests, self._keys, self._contents))
        known = int(np.isin(digests[changed, 0], self._keys).sum())
        if len(changed):
            self._write([passages[row] for row in changed], digests[changed])
        return AddReport(len(changed) - known, known, len(passages) - len(changed))

    def _write(self, passages: list[Passage], digests: Numbers) -> None:
        system, content = self._folder.system, digests.tobytes()
        name = f"{self._run:06d}-{hashlib.blake2b(content, digest_size=16).hexdigest()}.parquet"
        target = f"{self._folder.root}/{name}"
        if system.get_file_info(target).type == pa.fs.FileType.File:
            return  # by a worker that was lost before it could say so
        table = with_vectors(to_table(passages), self._encoder.encode_documents([p.text for p in passages]))
        column = pa.Array.from_buffers(pa.binary(16), len(passages), [None, pa.py_buffer(content)])
        table = table.append_column("digest", column).replace_schema_metadata(self._facts)
        # Under a name that no reader looks at until it is whole.
        partly = f"{self._folder.root}/.{name}.{os.getpid()}"
        with system.open_output_stream(partly) as out:
            pyarrow.parquet.write_table(table, out)
        system.move(partly, target)


def _digested(passages: list[Passage]) -> Numbers:
    """Return two numbers a passage: of its id, and of its text and metadata."""
    digests = []
    for passage in passages:
        content = json.dumps([passage.text, dict(passage.metadata)], sort_keys=True).encode()
        digests.append(key_of(passage.id) + hashlib.blake2b(content, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def _digests(folder: Folder, files: list[str]) -> list[tuple[str, Numbers]]:
    """Return the digests of each file, in the order of its rows."""
    found = []
    for file in files:
        with folder.system.open_input_file(file) as source:
            column = pyarrow.parquet.read_table(source, columns=["digest"])["digest"]
        found.append((file, np.frombuffer(b"".join(column.to_pylist()), np.uint64).reshape(-1, 2)))
    return found


def _latest(digests: list[Numbers]) -> tuple[Numbers, Numbers]:
    """Return the ids' numbers, sorted, and the number of the content that each had last."""
    rows = np.concatenate(digests) if digests else np.zeros((0, 2), np.uint64)
    keys, places = np.unique(rows[::-1, 0], return_index=True)
    return keys, rows[::-1, 1][places]


def _is_current(digests: Numbers, keys: Numbers, contents: Numbers) -> npt.NDArray[np.bool_]:
    """Return which rows are the latest of their ids."""
    if not len(keys):
        return np.zeros(len(digests), np.bool_)
    places = np.minimum(np.searchsorted(keys, digests[:, 0]), len(keys) - 1)
    return cast("npt.NDArray[np.bool_]", (keys[places] == digests[:, 0]) & (contents[places] == digests[:, 1]))


def _next_run(files: list[str]) -> int:
    return 1 + max((int(file.rpartition("/")[2].split("-")[0]) for file in files), default=0)


def _check(folder: Folder, facts: dict[bytes, bytes] | None, encoder: Encoder) -> None:
    """Raise if the vectors of a file were not made by this encoder."""
    if not facts or _ENCODER not in facts:
        raise InvalidInputError(f"{folder.root!r} holds a file that was not written by `write_parquet`")
    found = Identity(cast("Metric", facts[_METRIC].decode()), json.loads(facts[_ENCODER]), int(facts[_FORMAT]))
    check_format(folder.root, found)
    check_identity(folder.root, found, None, encoder.fingerprint)


def _load(rows: pa.Table, index: ChromaIndex) -> AddReport:
    passages, _ = to_passages(rows)
    records = [to_record(passage) for passage in passages]
    plan = index.collection.plan(records)
    if plan.records:
        by_id = dict(zip(rows["id"].to_pylist(), rows["vector"].to_numpy(zero_copy_only=False), strict=True))
        index.collection.write(plan.records, np.array([by_id[record.id] for record in plan.records], np.float32))
    index.collection.relabel(plan.relabelled)
    return plan.report
