"""Passages straight into a store: a Chroma server, or any vector store of LangChain's.

The driver sends batches to workers, adds up what they say became of them, and sends once more what came twice.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import tenacity
from ray.actor import ActorHandle
from tqdm.auto import tqdm

from retrieve_rerank import errors
from retrieve_rerank.checks import check_count, check_flag
from retrieve_rerank.errors import InvalidInputError, RemoteError, RetrieveRerankError, in_one_line, warn_caller
from retrieve_rerank.indexes.chroma import ChromaIndex
from retrieve_rerank.ray.encoding import (
    BATCH,
    Passages,
    as_ours,
    blocks_of,
    check_picklable,
    in_batches,
    made,
    to_dataset,
    to_passages,
    worker_options,
)
from retrieve_rerank.types import AddReport, Encoder, Metric, Passage

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

# Where passages with distinct ids go; what is stored already is left alone.
_Sink: TypeAlias = Callable[[list[Passage]], AddReport]

_MAX_FAILED = 1_000
_SHOWN = 5  # failures in a message
_BATCH_TRIES = 5  # of a batch whose worker was lost
_FAILED_CALLS = 24  # of a batch's parts: enough to find two among a thousand that the others need not suffer for
# A worker may come, or come back, while the server is being started again: it waits half a minute, or up to twice that.
_SERVER_TRIES = 12
_FIRST_TRIES = 3  # before there are workers


class PassagesFailedError(RetrieveRerankError):
    """Some passages could not be stored; all others were. Run it again: what is stored is not encoded again.

    Attributes:
        failures: Why, by the id of each passage that failed.
        report: What became of the others.
    """

    def __init__(self, message: str, failures: Mapping[str, str], report: AddReport) -> None:
        super().__init__(message)
        self.failures = failures
        self.report = report

    def __reduce__(self) -> tuple[type[PassagesFailedError], tuple[str, Mapping[str, str], AddReport]]:
        return PassagesFailedError, (str(self), self.failures, self.report)


def index(
    passages: Passages,
    encoder: Encoder | Callable[[], Encoder],
    *,
    collection: str = "passages",
    host: str = "localhost",
    port: int = 8000,
    ssl: bool = False,
    headers: Mapping[str, str] | None = None,
    tenant: str = "default_tenant",
    database: str = "default_database",
    metric: Metric | None = None,
    assume_compatible: bool = False,
    batch_size: int = BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    max_failed: int = _MAX_FAILED,
    show_progress: bool = False,
) -> AddReport:
    """Encode passages on many workers and store them in a collection of a Chroma server.

    The collection is the one that `ChromaIndex(encoder, collection, client=...).add(passages)` makes: the same ids,
    texts, metadata and vectors, metric and encoder's fingerprint. Passages that are stored already are not encoded
    again, so a run that was broken off is run again. A worker that is lost costs its batch, which another one repeats;
    passages that it had stored by then count as unchanged. While the server is away the workers wait for it, as
    `ChromaIndex` does.

    Args:
        passages: A Ray Dataset with the string columns `id` and `text` and, if there are any, `metadata` (a JSON
            object, a struct or a map; in a struct, null is a key that is not there), where further columns are
            ignored; or the path or URI of a `.jsonl`, `.jsonl.gz` or `.parquet` file with these fields, or of a folder
            of such; or any iterable of Passage, which is read once, into Ray's object store. Of equal ids the last
            wins; a Dataset that has such ids is read a second time.
        encoder: A `BiEncoder`, which each worker loads once; anything of its shape that can be pickled; or a function
            that makes one. A token, a key and `trust_remote_code` that it was made with stay here, as in any pickle:
            set HF_TOKEN, or RETRIEVE_RERANK_API_KEY and beside it RETRIEVE_RERANK_ENDPOINT, on the nodes; or give a
            function.
        collection: Name of the collection; it is made if missing.
        host: The Chroma server, as every node of the cluster reaches it.
        port: Its port.
        ssl: Whether to speak HTTPS.
        headers: Sent with every request, such as a token.
        tenant: The server's tenant.
        database: The server's database.
        metric: "cosine", "dot" or "euclidean", instead of the encoder's.
        assume_compatible: Write into a collection of another encoder or metric all the same.
        batch_size: Passages encoded and written in one go.
        concurrency: How many workers at most, or at least and at most; they start as there is work. None takes as many
            as there is room for when one CPU is kept to read the passages with.
        num_cpus: CPUs of each worker, which are also the threads that it computes on; None is one, or none where the
            cluster has only one.
        num_gpus: GPUs of each worker; 0.5 puts two on one.
        max_failed: It stops when more passages than this have failed.
        show_progress: Show a bar on stderr.

    Returns:
        What became of the passages.

    Raises:
        PassagesFailedError: If passages could not be stored; all others were.
        IndexMismatchError: If the collection was made by another encoder or with another metric.
        RemoteError: If the server cannot be reached.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import BiEncoder, Passage
        >>> from retrieve_rerank.ray import index
        >>> passages = [Passage("1", "Paris is the capital of France."), Passage("2", "Bread is baked.")]
        >>> index(passages, BiEncoder(bi_encoder_path), host="127.0.0.1", port=chroma_port, concurrency=1)
        AddReport(added=2, updated=0, unchanged=0)
    """

    def opened() -> _Sink:
        where = {"host": host, "port": port, "ssl": ssl, "headers": dict(headers or {})}
        client = _client(**where, tenant=tenant, database=database)
        there = ChromaIndex(
            made(encoder), collection, client=client, metric=metric, assume_compatible=assume_compatible
        )
        return lambda passages: there.add(passages, batch_size=max(1, len(passages)))

    options = worker_options(concurrency, num_cpus, num_gpus)
    return _store(passages, opened, options, batch_size, max_failed, show_progress=show_progress)


def index_store(
    passages: Passages,
    store: Callable[[], TextStore],
    *,
    batch_size: int = BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    max_failed: int = _MAX_FAILED,
    show_progress: bool = False,
) -> AddReport:
    """Store passages, on many workers, in a vector store of LangChain's, which encodes them itself.

    Each worker makes the store once and calls its `add_texts` with ids, so the store must be one that several
    processes may write, and that replaces what has an id, as LangChain's interface says. A store that has
    `get_by_ids` is asked first, and passages that it returns as they are, text and metadata, are not encoded again.
    With any other store all passages are, at every run, and count as added.

    Args:
        passages: As for `index`.
        store: Makes the store in a worker, with its embeddings.
        batch_size: Passages given to the store in one go.
        concurrency: As for `index`.
        num_cpus: As for `index`.
        num_gpus: As for `index`.
        max_failed: As for `index`.
        show_progress: Show a bar on stderr.

    Returns:
        What became of the passages.

    Raises:
        PassagesFailedError: If passages could not be stored; all others were.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> import chromadb
        >>> from retrieve_rerank import Passage
        >>> from retrieve_rerank.langchain import ChromaVectorStore
        >>> from retrieve_rerank.ray import index_store
        >>> from retrieve_rerank.testing import EncoderEmbeddings, LetterEncoder
        >>> def store():  # any vector store, with any embeddings
        ...     client = chromadb.HttpClient(host="127.0.0.1", port=chroma_port)
        ...     return ChromaVectorStore("texts", EncoderEmbeddings(LetterEncoder()), client=client)
        >>> index_store([Passage("1", "Paris is the capital of France.")], store, concurrency=1)
        AddReport(added=1, updated=0, unchanged=0)
    """
    if not callable(store):
        raise InvalidInputError(
            f"store must be a function that makes the store in a worker, got {type(store).__name__}"
        )

    def opened() -> _Sink:
        return partial(_add_texts, store())

    options = worker_options(concurrency, num_cpus, num_gpus)
    return _store(passages, opened, options, batch_size, max_failed, show_progress=show_progress)


class TextStore(Protocol):
    """What is asked of a vector store of LangChain's."""

    def add_texts(self, texts: Any, metadatas: Any = None, *, ids: Any = None) -> list[str]:
        """Store texts under ids."""


def _client(**where: Any) -> ClientAPI:
    import chromadb  # slow to import

    try:
        return chromadb.HttpClient(**where)
    except Exception as error:  # of many libraries, and what is wrong with the server is in their words
        raise RemoteError(
            f"cannot open the Chroma server at {where['host']}:{where['port']}: {in_one_line(error)}. Check that "
            "it runs and that the nodes of the cluster can reach it under this name"
        ) from error


def _add_texts(store: TextStore, passages: list[Passage]) -> AddReport:
    """Add the passages that the store does not have as they are."""
    ids = [passage.id for passage in passages]
    try:
        found: list[Any] = getattr(store, "get_by_ids", lambda _: [])(ids) if ids else []
    except NotImplementedError:  # as LangChain's own base class
        found = []
    stored = {document.id: _content(document.page_content, document.metadata or {}) for document in found}
    changed = [p for p in passages if stored.get(p.id) != _content(p.text, p.metadata)]
    if changed:
        store.add_texts(
            [passage.text for passage in changed],
            [dict(passage.metadata) for passage in changed],
            ids=[passage.id for passage in changed],
        )
    updated = sum(passage.id in stored for passage in changed)
    return AddReport(len(changed) - updated, updated, len(passages) - len(changed))


def _content(text: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
    # As JSON: 1 == True, and NaN equals nothing.
    return text, json.dumps(dict(metadata), sort_keys=True, default=repr)


class _Attempts:
    """Counts how often a batch was begun: Ray repeats for ever what kills every worker that it is given to."""

    def __init__(self) -> None:
        self._begun: dict[bytes, int] = {}

    def begin(self, batch: bytes) -> bool:
        """Return whether to try a batch; not if its worker was lost too often."""
        self._begun[batch] = self._begun.get(batch, 0) + 1
        return self._begun[batch] <= _BATCH_TRIES

    def end(self, batch: bytes) -> None:
        """Forget a batch that was done."""
        self._begun.pop(batch, None)


class _Worker:
    """What runs in each of Ray's actors: stores batch after batch in a sink that it opens once.

    Args:
        make: Opens the sink.
        attempts: An actor of `_Attempts`.
    """

    def __init__(self, make: Callable[[], _Sink], attempts: ActorHandle[_Attempts]) -> None:
        self._make = make
        self._attempts = attempts
        self._sink: _Sink | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Store a batch; return one row: what became of it, a key of each id, and how many rows it had."""
        passages, failures = to_passages(table)
        known = [passage.id for passage in passages]
        distinct = set(known)
        # An id that is in the batch twice, too: its rows come in no order that the caller knows.
        keys = b"".join(_key(id_) for id_ in table["id"].to_pylist() if id_ in distinct)
        batch, report = hashlib.blake2b(keys, digest_size=16).digest(), AddReport()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if ray.get(self._attempts.begin.remote(batch)):
                if self._sink is None:  # after `begin`: loading a model may be what the worker is lost for
                    self._sink = _opened(self._make, _SERVER_TRIES, Exception)  # it could be opened before
                try:
                    report, failed = _stored_in_parts(self._sink, passages)
                finally:
                    self._attempts.end.remote(batch)
            else:
                reason = f"the worker was lost {_BATCH_TRIES} times while it had the batch; it may lack memory for it"
                failed = dict.fromkeys(known, reason)
        told = [(w.category.__name__, str(w.message)) for w in caught if issubclass(w.category, UserWarning)]
        outcome = {"report": asdict(report), "failures": {**failures, **failed}, "warned": told[:1]}
        return pa.table({"outcome": [json.dumps(outcome)], "keys": [keys], "rows": [table.num_rows]})


def _stored_in_parts(sink: _Sink, passages: list[Passage]) -> tuple[AddReport, dict[str, str]]:
    """Store a batch; where it fails, its halves, and theirs, so that one passage does not keep out the others."""
    report, failures = AddReport(), dict[str, str]()
    left, calls, reason = [passages], 0, ""
    while left and calls < _FAILED_CALLS:
        part = left.pop()
        try:
            report += sink(part)
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
    return report, failures


def _store(
    passages: Passages,
    make: Callable[[], _Sink],
    options: Mapping[str, Any],
    batch_size: int,
    max_failed: int,
    *,
    show_progress: bool,
) -> AddReport:
    """Store passages in sinks in the workers; of equal ids the last wins, wherever the two are.

    Args:
        passages: What to store.
        make: Opens a sink in a worker; once before there are workers, as a new collection is made once, and what cannot
            work shows at once.
        options: The workers, as Ray takes them.
        batch_size: Passages in a task.
        max_failed: How many passages may fail before it stops.
        show_progress: Show a bar on stderr.
    """
    check_count(batch_size, "batch_size")
    check_flag(show_progress, "show_progress")
    if isinstance(max_failed, bool) or not hasattr(max_failed, "__index__") or max_failed.__index__() < 0:
        raise InvalidInputError(f"max_failed must be a whole number >= 0, got {max_failed!r}")
    check_picklable(make, "what encodes or stores")
    dataset, outcomes = to_dataset(passages), _Outcomes(max_failed)
    task = ray.remote(_trial).options(num_cpus=options["num_cpus"], num_gpus=options["num_gpus"])
    try:
        ray.get(task.remote(make))
    except ray.exceptions.RayError as error:
        raise as_ours(error) from error
    attempts = ray.remote(_Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    with tqdm(disable=not show_progress, unit="passage", desc="Indexing") as bar:
        for block in blocks_of(in_batches(dataset, _Worker, [make, attempts], batch_size, options)):
            bar.update(outcomes.add(block))
            if outcomes.stopped:
                break
    twice = outcomes.twice()
    if len(twice) and not outcomes.stopped:
        # Which of the batches with such an id came last, nobody knows: the last passage of each goes once more.
        last = to_dataset(_last(dataset, twice))
        for block in blocks_of(in_batches(last, _Worker, [make, attempts], batch_size, options)):
            outcomes.add(block, again=True)
    return outcomes.finish()


def _trial(make: Callable[[], _Sink]) -> None:
    _opened(make, _FIRST_TRIES, RemoteError)


def _opened(make: Callable[[], _Sink], tries: int, passing: type[Exception]) -> _Sink:
    """Open a sink, and again after a while where it fails for what may pass."""
    wait = tenacity.wait_random_exponential(0.5, max=8)
    again = tenacity.retry_if_exception_type(passing)
    return tenacity.Retrying(stop=tenacity.stop_after_attempt(tries), wait=wait, retry=again, reraise=True)(make)


class _Outcomes:
    """What the workers said, added up."""

    def __init__(self, max_failed: int) -> None:
        self._max_failed = max_failed
        self._report = AddReport()
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
            outcome = json.loads(text)
            report = AddReport(**outcome["report"])
            # What was added at the second pass had failed at the first.
            self._report += replace(report, unchanged=0) if again else report
            self._failures.update(outcome["failures"])
            self._keys.append(np.frombuffer(keys, np.uint64))
            for kind, message in outcome["warned"]:
                self._warned.setdefault(kind, []).append(message)
        return int(sum(block["rows"].to_pylist()))

    def twice(self) -> npt.NDArray[np.uint64]:
        """Return the keys, sorted, of the ids that came more than once."""
        keys, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *self._keys]), return_counts=True)
        return keys[counts > 1]

    def finish(self) -> AddReport:
        """Return what became of all; warn of what the workers warned of, and raise if something failed."""
        for kind, messages in self._warned.items():
            times = f" (and in {len(messages) - 1} other batches)" if len(messages) > 1 else ""
            warn_caller(f"{messages[0]}{times}", getattr(errors, kind, UserWarning))
        if not self._failures:
            return self._report
        shown = "; ".join(f"{id_!r}: {reason}" for id_, reason in list(self._failures.items())[:_SHOWN])
        more = ", …" if len(self._failures) > _SHOWN else ""
        how = "stopped, as too many passages" if self.stopped else f"{len(self._failures)} passages"
        raise PassagesFailedError(
            f"{how} could not be stored: {shown}{more}. Of the others: {self._report!r}. `failures` of this error has "
            "all of them; mend the cause and run it again: what is stored is not encoded again",
            self._failures,
            self._report,
        )


def _last(dataset: ray.data.Dataset, keys: npt.NDArray[np.uint64]) -> list[Passage]:
    """Return the last passage of each id with one of these keys."""
    only: Any = _only  # Ray's types know no further arguments
    chosen = dataset.map_batches(only, batch_format="pyarrow", batch_size=None, fn_kwargs={"keys": ray.put(keys)})
    chosen.context.execution_options.preserve_order = True
    last: dict[str, Passage] = {}
    for block in blocks_of(chosen):
        if block.num_rows:
            last.update((passage.id, passage) for passage in to_passages(block)[0])
    return list(last.values())


def _only(table: pa.Table, keys: ray.ObjectRef[npt.NDArray[np.uint64]]) -> pa.Table:
    """Return the rows whose ids have one of these keys."""
    ids = table["id"].to_pylist()
    given = np.frombuffer(b"".join(_key(id_) if isinstance(id_, str) else bytes(8) for id_ in ids), np.uint64)
    return table.filter(pa.array(np.isin(given, ray.get(keys))))


def _key(id_: str) -> bytes:
    """Return 8 bytes that stand for an id."""
    return hashlib.blake2b(id_.encode(), digest_size=8).digest()
