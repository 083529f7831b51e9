"""One worker: stores batch after batch in a sink that it opens once, and never raises."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from retrieve_rerank.errors import RemoteError, in_one_line
from retrieve_rerank.ray.outcome import Fault, Outcome
from retrieve_rerank.ray.sources import to_passages
from retrieve_rerank.types import AddReport, Passage

_TRIES = 5  # of a batch whose worker was lost
_FAILED_CALLS = 24  # of a batch's parts: enough to find two among a thousand that the others need not suffer for


class Sink(Protocol):
    """Where passages go."""

    def store(self, passages: list[Passage]) -> AddReport:
        """Store passages with distinct ids; what is stored already is left alone."""


class Attempts:
    """Counts how often a batch was begun: Ray repeats for ever what kills every worker that it is given to."""

    def __init__(self) -> None:
        self._begun: dict[bytes, int] = {}

    def begin(self, batch: bytes) -> bool:
        """Return whether to try a batch; not if its worker was lost too often."""
        self._begun[batch] = self._begun.get(batch, 0) + 1
        return self._begun[batch] <= _TRIES

    def end(self, batch: bytes) -> None:
        """Forget a batch that was done."""
        self._begun.pop(batch, None)


class Storing:
    """What runs in each of Ray's actors.

    Args:
        make: Opens the sink.
        attempts: An actor of `Attempts`.
    """

    def __init__(self, make: Callable[[], Sink], attempts: ActorHandle[Attempts]) -> None:
        self._make = make
        self._attempts = attempts
        self._sink: Sink | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Store a batch; return one row: its outcome, a key of each id, and how many rows it had."""
        keys: list[bytes] = []
        said: list[tuple[str, str]] = []
        with _recorded(said):
            outcome = self._stored(table, keys)
        text = outcome.to_json(said[0] if said else None)
        return pa.table({"outcome": [text], "keys": [b"".join(keys)], "rows": [table.num_rows]})

    def _stored(self, table: pa.Table, keys: list[bytes]) -> Outcome:
        try:
            passages, failures = to_passages(table)
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return Outcome(fault=Fault.of(error))
        known = {passage.id: key_of(passage.id) for passage in passages}
        # An id that is in the batch twice, too: its rows come in no order that the caller knows.
        keys += [known[id_] for id_ in table["id"].to_pylist() if id_ in known]
        batch = hashlib.blake2b(b"".join(keys), digest_size=16).digest()
        if not ray.get(self._attempts.begin.remote(batch)):
            reason = f"the worker was lost {_TRIES} times while it had the batch; it may lack memory for its texts"
            return Outcome(failures={**failures, **{passage.id: reason for passage in passages}})
        try:
            if self._sink is None:  # after `begin`: loading a model may be what the worker is lost for
                self._sink = self._make()
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return Outcome(fault=Fault.of(error))
        try:
            return _stored_in_parts(self._sink, passages, failures)
        finally:
            self._attempts.end.remote(batch)


def _stored_in_parts(sink: Sink, passages: list[Passage], failures: dict[str, str]) -> Outcome:
    """Store a batch; where it fails, its halves, and theirs, so that one passage does not keep out the others."""
    report, failures = AddReport(), dict(failures)
    left, calls, reason = [passages], 0, ""
    while left and calls < _FAILED_CALLS:
        part = left.pop()
        try:
            report += sink.store(part)
        except Exception as error:  # noqa: BLE001 - whatever the model or the store raises; the driver reports it
            reason, calls = in_one_line(error), calls + 1
            if isinstance(error, RemoteError):  # it is away, for all of them
                left.append(part)
                break
            middle = len(part) // 2
            if middle:
                left += [part[middle:], part[:middle]]
            else:
                failures.update((passage.id, reason) for passage in part)
    failures.update((passage.id, reason) for part in left for passage in part)
    return Outcome(report, failures)


def opened(make: Callable[[], Sink]) -> str:
    """Open a sink once before all others do, so that it is made once, and say what came of it."""
    said: list[tuple[str, str]] = []
    with _recorded(said):
        try:
            make()
            outcome = Outcome()
        except Exception as error:  # noqa: BLE001 - the driver raises it
            outcome = Outcome(fault=Fault.of(error))
    return outcome.to_json(said[0] if said else None)


def key_of(id_: str) -> bytes:
    """Return 8 bytes that stand for an id."""
    return hashlib.blake2b(id_.encode(), digest_size=8).digest()


@contextmanager
def _recorded(said: list[tuple[str, str]]) -> Iterator[None]:
    """Collect what is warned of for the user: kind and message."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said += [(item.category.__name__, str(item.message)) for item in caught if issubclass(item.category, UserWarning)]
