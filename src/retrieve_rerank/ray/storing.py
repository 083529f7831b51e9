"""The driver's side: batches to the workers, and what they say added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError
from tqdm.auto import tqdm

from retrieve_rerank import errors
from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import InvalidInputError, warn_caller
from retrieve_rerank.ray.outcome import Outcome, failed
from retrieve_rerank.ray.pool import Pool, blocks, check_travels, translated
from retrieve_rerank.ray.sources import Passages, to_dataset, to_passages
from retrieve_rerank.ray.worker import Attempts, Sink, Storing, key_of, opened
from retrieve_rerank.types import AddReport, Passage


def store(
    passages: Passages,
    prepare: Callable[[], Callable[[], Sink]],
    pool: Pool,
    *,
    batch_size: int,
    max_failed: int,
    show_progress: bool,
    trial: Callable[[], Sink] | None = None,
) -> AddReport:
    """Store passages in sinks in the workers; of equal ids the last wins, wherever the two are.

    Args:
        passages: What to store.
        prepare: Called before each pass; returns what opens a sink in a worker.
        pool: The workers.
        batch_size: Passages in a task.
        max_failed: How many passages may fail before it stops.
        show_progress: Show a bar on stderr.
        trial: Opens a sink before there are workers, as they do if it is None; it need not wait for a server.

    Raises:
        PassagesFailedError: If passages could not be stored.
        RetrieveRerankError: If the sink cannot be opened or the passages cannot be read.
    """
    check_count(batch_size, "batch_size")
    if isinstance(max_failed, bool) or not hasattr(max_failed, "__index__") or max_failed.__index__() < 0:
        raise InvalidInputError(f"max_failed must be a whole number >= 0, got {max_failed!r}")
    make = prepare()
    check_travels(make, "what encodes or stores")
    dataset = to_dataset(passages)
    tally = _Tally(max_failed)
    _open(trial or make, pool, tally)
    attempts = ray.remote(Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    with tqdm(disable=not show_progress, unit="passage", desc="Indexing") as bar:
        for block in blocks(pool.over(dataset, Storing, [make, attempts], batch_size)):
            bar.update(tally.add(block))
            if tally.stopped:
                break
        twice = tally.twice()
        if len(twice) and not tally.stopped:
            # Which of the batches with such an id came last, nobody knows: the last passage of each goes once more.
            for block in blocks(pool.over(_last(dataset, twice), Storing, [prepare(), attempts], batch_size)):
                tally.add(block, again=True)
    tally.finish()
    return tally.report


class _Tally:
    """What the workers said."""

    def __init__(self, max_failed: int) -> None:
        self.report = AddReport()
        self._max_failed = max_failed
        self._failures: dict[str, str] = {}
        self._keys: list[npt.NDArray[np.uint64]] = []
        self._warned: dict[str, list[str]] = {}

    @property
    def stopped(self) -> bool:
        """Whether too much failed to go on."""
        return len(self._failures) > self._max_failed

    def add(self, block: pa.Table, *, again: bool = False) -> int:
        """Add outcomes; return how many passages they are of. `again`: of passages that were counted before."""
        for text, keys in zip(block["outcome"].to_pylist(), block["keys"].to_pylist(), strict=True):
            outcome = self.take(text)
            # What was added at the second pass had failed at the first.
            self.report += replace(outcome.report, unchanged=0) if again else outcome.report
            self._failures.update(outcome.failures)
            self._keys.append(np.frombuffer(keys, np.uint64))
        return int(sum(block["rows"].to_pylist()))

    def take(self, text: str) -> Outcome:
        """Return an outcome, its warning noted; raise the error that ended it."""
        outcome, warning = Outcome.from_json(text)
        if warning is not None:
            self._warned.setdefault(warning[0], []).append(warning[1])
        if outcome.fault is not None:
            raise outcome.fault.error()
        return outcome

    def twice(self) -> npt.NDArray[np.uint64]:
        """Return the keys, sorted, of the ids that came more than once."""
        if not self._keys:
            return np.zeros(0, np.uint64)
        keys, counts = np.unique(np.concatenate(self._keys), return_counts=True)
        return keys[counts > 1]

    def finish(self) -> None:
        """Warn of what the workers warned of, and raise if something failed."""
        for kind, messages in self._warned.items():
            times = f" (and in {len(messages) - 1} other batches)" if len(messages) > 1 else ""
            warn_caller(f"{messages[0]}{times}", getattr(errors, kind, UserWarning))
        if self._failures:
            raise failed(self._failures, self.report, stopped=self.stopped)


def _open(make: Callable[[], Sink], pool: Pool, tally: _Tally) -> None:
    """Open a sink once, in a worker's place: a new collection is made once, and what cannot work shows at once."""
    _, _, cpus = pool.sized()
    task = ray.remote(opened).options(num_cpus=cpus, num_gpus=pool.num_gpus)
    try:
        tally.take(ray.get(task.remote(make)))
    except RayError as error:
        raise translated(error) from error


def _last(dataset: ray.data.Dataset, keys: npt.NDArray[np.uint64]) -> ray.data.Dataset:
    """Return the last passage of each id with one of these keys."""
    only: Any = _only  # Ray's types know no further arguments
    chosen = dataset.map_batches(only, batch_format="pyarrow", batch_size=None, fn_kwargs={"keys": ray.put(keys)})
    chosen.context.execution_options.preserve_order = True
    last: dict[str, Passage] = {}
    for block in blocks(chosen):
        if block.num_rows:
            last.update((passage.id, passage) for passage in to_passages(block)[0])
    return to_dataset(last.values())


def _only(table: pa.Table, keys: ray.ObjectRef[npt.NDArray[np.uint64]]) -> pa.Table:
    """Return the rows whose ids have one of these keys."""
    wanted = ray.get(keys)
    given = np.frombuffer(b"".join(_keys(table["id"].to_pylist())), np.uint64)
    places = np.minimum(np.searchsorted(wanted, given), len(wanted) - 1)
    return table.filter(pa.array(wanted[places] == given))


def _keys(ids: Iterable[object]) -> Iterator[bytes]:
    for id_ in ids:
        yield key_of(id_) if isinstance(id_, str) else bytes(8)
