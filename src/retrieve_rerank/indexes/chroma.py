"""The dense first stage: passages in a Chroma collection, found by a bi-encoder's vectors."""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from retrieve_rerank.checks import check_flag, check_mapping, check_queries, check_query
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, shown
from retrieve_rerank.indexes.chroma_server import RETRY_SECONDS
from retrieve_rerank.indexes.filters import Where
from retrieve_rerank.indexes.health import adopt_at_opening, adopt_stored, check, repair
from retrieve_rerank.indexes.nearest import check_mmr, diverse
from retrieve_rerank.indexes.records import Record, check_ids, check_passage, check_passages, to_record
from retrieve_rerank.indexes.recovery import recovering
from retrieve_rerank.indexes.reports import AdoptReport, IndexCheck, RepairReport
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.models.bi_encoder import one_truncation_warning
from retrieve_rerank.types import AddReport, Closeable, Encoder, Hit, Metric, Passage

if TYPE_CHECKING:
    from chromadb.api import ClientAPI


_SOURCE_CHUNK = 1_000  # passages looked up in one go


_REPLACING: weakref.WeakValueDictionary[uuid.UUID, threading.RLock] = weakref.WeakValueDictionary()
_ONE = threading.Lock()
_ENCODER = ("encode_queries", "encode_documents", "dimension", "metric", "fingerprint")


class ChromaIndex(Closeable):
    """Passages in a Chroma collection, searched by an encoder's vectors.

    A new collection is made with the encoder's metric and carries its fingerprint; an existing one is checked against
    both. LangChain's and LlamaIndex's stores of this package read and write the same collections.

    Args:
        encoder: A `BiEncoder`, or anything with its `encode_queries`, `encode_documents`, `dimension`, `metric` and
            `fingerprint`.
        collection: Name of the collection: 3 to 512 letters, digits, dots, dashes or underscores.
        path: Directory of a persistent store; it is made if missing. One process at a time may write it, any number
            read. One that cannot be written, or whose writer is stopped, is searched as a copy, with a warning.
        client: A Chroma client to use instead: `chromadb.HttpClient`, `CloudClient`, or an awaited `AsyncHttpClient`.
            Any number of processes may write to a server. Neither path nor client: in memory, private to this object.
        metric: "cosine", "dot" or "euclidean". None takes the encoder's, or that of a collection which is there, if
            both order its vectors alike.
        assume_compatible: Open a collection that was made by another encoder or metric all the same.
        retry_seconds: For how long a request that a server does not answer is repeated, in every call; 0 asks once.
        lock_timeout: Seconds to wait, at the first write, while another process writes the directory.
        search_breadth: How many neighbours a search keeps on its way through the vectors: more find more of the true
            nearest and take longer. None takes 200, or 7.5 % of a larger collection: that finds 95 of the true top 100
            even among random vectors. A model's are not random, so try less on a large collection.

    Raises:
        InvalidInputError: If the directory or the name cannot be used.
        IndexLockedError: If another process writes the directory: at the first write, which may be the making of the
            collection. The lock is held until `close`, or until the process ends. Reading needs none.
        IndexMismatchError: If the collection was made by another encoder, with another metric, or by a newer version.
        RemoteError: If a server does not answer for `retry_seconds`, or refuses the credentials; so does every method.

    Example:
        >>> from retrieve_rerank import BiEncoder, ChromaIndex, Passage
        >>> index = ChromaIndex(BiEncoder(bi_encoder_path))
        >>> index.add([Passage("1", "Paris is the capital of France."), Passage("2", "Bread is baked.")])
        AddReport(added=2, updated=0, unchanged=0)
        >>> [hit.passage.id for hit in index.retrieve("capital of France", k=1)]
        ['1']
    """

    def __init__(
        self,
        encoder: Encoder,
        collection: str = "passages",
        *,
        path: str | os.PathLike[str] | None = None,
        client: ClientAPI | None = None,
        metric: Metric | None = None,
        assume_compatible: bool = False,
        retry_seconds: float = RETRY_SECONDS,
        lock_timeout: float = 0.0,
        search_breadth: int | None = None,
    ) -> None:
        self.encoder = _checked(encoder)
        self.collection = ChromaCollection(
            collection,
            path=path,
            client=client,
            metric=metric,
            encoder_metric=encoder.metric,
            fingerprint={
                "dimension": encoder.dimension,
                **check_mapping(encoder.fingerprint, "the fingerprint of an encoder"),
            },
            assume_compatible=assume_compatible,
            retry_seconds=retry_seconds,
            lock_timeout=lock_timeout,
            search_breadth=search_breadth,
        )
        adopt_at_opening(self.collection, encoder)

    @classmethod
    def adopt(
        cls,
        encoder: Encoder,
        collection: str = "passages",
        *,
        path: str | os.PathLike[str] | None = None,
        client: ClientAPI | None = None,
        samples: int = 20,
    ) -> AdoptReport:
        """Take over a collection of `langchain-chroma` or LlamaIndex's store, which does not say who made it.

        Some of its texts are encoded again, alone and as LlamaIndex embeds them, together with their metadata. If all
        give the vectors that are stored, and the collection's metric suits the encoder, the encoder is written down:
        the collection then opens as if it were made here, and refuses another encoder. Else nothing is changed.

        Args:
            encoder: The one that made the vectors, as far as is known.
            collection: Its name. langchain-chroma's default is "langchain".
            path: Its directory; or
            client: a Chroma client.
            samples: How many texts to encode again, evenly spread.

        Returns:
            What was found; `str()` of it says what cannot be known.

        Raises:
            InvalidInputError: If there is no such collection.
            IndexMismatchError: If it carries another encoder's fingerprint, or vectors of another length.
        """
        name = str.__str__(check_query(collection, "the name of a collection"))
        return adopt_stored(_checked(encoder), name, path, client, samples)

    @classmethod
    def recover(
        cls,
        encoder: Encoder,
        collection: str = "passages",
        *,
        path: str | os.PathLike[str],
        show_progress: bool = False,
    ) -> RepairReport:
        """Encode all passages of a stored index again: for one at which Chroma fails, or dies, at every call.

        Use `repair` as long as the index opens. Nobody may have the directory open, this process included. Killed
        meanwhile, `repair` goes on where it ended.

        Args:
            encoder: The one that made the index.
            collection: Its name.
            path: Its directory.
            show_progress: Show bars on stderr.

        Raises:
            InvalidInputError: If there is no such index.
        """
        with recovering(path, collection), cls(encoder, collection, path=path) as index:
            return index.repair(show_progress=show_progress)

    @property
    def metric(self) -> Metric:
        """What vectors are compared by."""
        return self.collection.metric

    def add(
        self, passages: Iterable[Passage], *, batch_size: int | None = None, show_progress: bool = False
    ) -> AddReport:
        """Store passages: new ids are added, known ids replaced, text and metadata; equal ones are not encoded again.

        Metadata comes back as it was. Filters see text, numbers, booleans and lists of one kind, up to 4,000 values of
        a passage, of which Chroma cannot apply many more.

        Args:
            passages: Any iterable; a generator is never held whole. Of equal ids the last wins.
            batch_size: Passages encoded and written in one go. What was written stays if a later batch fails.
            show_progress: Show a bar on stderr.

        Raises:
            InvalidInputError: If a passage cannot be stored; it names the passage.
        """
        check_passages(passages)
        total = len(passages) if isinstance(passages, Sized) else None
        return self._add(passages, total, batch_size, show_progress=show_progress)

    def _add(
        self, passages: Iterable[Passage], total: int | None, batch_size: int | None, *, show_progress: bool
    ) -> AddReport:
        report = AddReport()
        read = 0

        def records() -> Iterator[Record]:
            nonlocal read
            for passage in passages:
                record = to_record(check_passage(passage, read))
                read += 1
                yield record

        bar = tqdm(total=total, disable=not check_flag(show_progress, "show_progress"), unit="passage", desc="Indexing")
        with bar, one_truncation_warning():
            for batch in self.collection.batches(records(), batch_size):
                report += self.collection.upsert(batch, self._encoded)
                bar.update(read - bar.n)  # repeated ids are read, too
            bar.update(read - bar.n)
        return report

    def replace_source(
        self,
        source_id: str,
        passages: Iterable[Passage],
        *,
        source_key: str = "source",
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> AddReport:
        """Make these passages the only ones of a source, such as the file or the page that they were cut from.

        Passages that have not changed are not encoded again; those that the source no longer has go last. Whoever is
        interrupted in between repeats the call: nothing is lost until then, and nothing stale stays after.

        Args:
            source_id: The source.
            passages: All of its passages; any iterable. `metadata[source_key]` is set where it is missing.
            source_key: The metadata key that holds the source.
            batch_size: As in `add`.
            show_progress: As in `add`.

        Raises:
            InvalidInputError: If a passage is another source's, by its metadata or by what is stored under its id, or
                cannot be stored; nothing is removed then.

        Example:
            >>> from retrieve_rerank import BiEncoder, ChromaIndex, Passage
            >>> index = ChromaIndex(BiEncoder(bi_encoder_path))
            >>> index.replace_source("atlas", [Passage("atlas-1", "Paris."), Passage("atlas-2", "Rome.")])
            AddReport(added=2, updated=0, unchanged=0)
            >>> index.replace_source("atlas", [Passage("atlas-1", "Paris.")])
            AddReport(added=0, updated=0, unchanged=1, removed=1)
        """
        check_passages(passages)
        source, key = _checked_source(source_id, source_key)
        with _one_at_a_time(self.collection):
            self.collection.become_writer()
            before = set(self.collection.ids(where={key: {"$eq": source}}))
            now: set[str] = set()
            marked = self._of_source(passages, source, key, before, now)
            total = len(passages) if isinstance(passages, Sized) else None
            report = self._add(marked, total, batch_size, show_progress=show_progress)
            stale = sorted(before - now)
            self.collection.delete(stale)
            return replace(report, removed=len(stale))

    def _of_source(
        self, passages: Iterable[Passage], source: str, key: str, before: set[str], now: set[str]
    ) -> Iterator[Passage]:
        """Yield passages with their source in the metadata, and put their ids into `now`.

        Raises:
            InvalidInputError: If one is another source's, by its own metadata or by what is stored under its id.
        """
        numbered = enumerate(passages)
        while chunk := [check_passage(passage, place) for place, passage in islice(numbered, _SOURCE_CHUNK)]:
            for passage in chunk:
                owner = passage.metadata.get(key)
                if owner not in (None, source):
                    raise InvalidInputError(
                        f"passage {passage.id!r} says that its {key!r} is {owner!r}, not {source!r}; nothing was "
                        "removed"
                    )
            for stored in self.collection.read([passage.id for passage in chunk if passage.id not in before]):
                owner = stored.passage.metadata.get(key)
                if owner not in (None, source):
                    raise InvalidInputError(
                        f"passage {stored.id!r} is stored as one of source {owner!r}; an id belongs to one source. "
                        "Give the passages ids that name their source, or delete the other one's first"
                    )
            now.update(passage.id for passage in chunk)
            for passage in chunk:
                # First, so that it can be searched by, however many values there are.
                yield Passage(passage.id, passage.text, {key: source} | dict(passage.metadata) | {key: source})

    def retrieve(
        self,
        query: str,
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[Hit]:
        """Find the passages nearest to a query.

        Args:
            query: Not empty.
            k: How many at most.
            where: Chroma's filter on metadata, such as `{"source": "atlas"}` or `{"year": {"$gte": 2020}}`. Numbers
                compare exactly. For a value from outside write `{"user": {"$eq": value}}`, which takes no operator.
            where_document: Chroma's filter on the text, such as `{"$contains": "France"}`. It sees a text up to its
                first NUL character.
            mmr_lambda: Find passages that are near to the query and unlike one another, by maximal marginal relevance:
                the weight of nearness against novelty in [0, 1]. The order of the hits is that in which they were
                chosen; 1 is that of nearness.
            mmr_pool: How many of the nearest to choose from, at least `k`; None is 4 * `k`.

        Returns:
            Hits, best first. `retrieval_score` is the cosine similarity, the dot product, or 1 / (1 + distance) in
            euclidean space.

        Raises:
            InvalidInputError: If the query, k, a filter or an option cannot be used.
        """
        check_query(query)
        return self.retrieve_many(
            [query], k, where=where, where_document=where_document, mmr_lambda=mmr_lambda, mmr_pool=mmr_pool
        )[0]

    async def aretrieve(
        self,
        query: str,
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[Hit]:
        """As `retrieve`, without blocking the event loop."""
        check_query(query)
        found = await self.aretrieve_many(
            [query], k, where=where, where_document=where_document, mmr_lambda=mmr_lambda, mmr_pool=mmr_pool
        )
        return found[0]

    def retrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[list[Hit]]:
        """Find the passages nearest to each query: one encoding, one search. As `retrieve` for each."""
        fetch = check_mmr(mmr_lambda, mmr_pool, k)
        checked = check_queries(queries)
        if not checked:
            return []
        vectors = self.encoder.encode_queries(checked)
        return self._search(vectors, k, fetch, len(checked), where, where_document, mmr_lambda)

    async def aretrieve_many(
        self,
        queries: Sequence[str],
        k: int = 100,
        *,
        where: Where | None = None,
        where_document: Where | None = None,
        mmr_lambda: float | None = None,
        mmr_pool: int | None = None,
    ) -> list[list[Hit]]:
        """As `retrieve_many`, without blocking the event loop."""
        fetch = check_mmr(mmr_lambda, mmr_pool, k)
        checked = check_queries(queries)
        if not checked:
            return []
        aencode = getattr(self.encoder, "aencode_queries", None)
        vectors: npt.NDArray[np.float32]
        if aencode is None:
            vectors = await self.collection.worker.arun(self.encoder.encode_queries, checked)
        else:
            vectors = await aencode(checked)
        return await self.collection.arun(
            self._search, vectors, k, fetch, len(checked), where, where_document, mmr_lambda
        )

    def _search(
        self,
        vectors: npt.NDArray[np.float32],
        k: int,
        fetch: int,
        rows: int,
        where: Where | None,
        where_document: Where | None,
        mmr_lambda: float | None,
    ) -> list[list[Hit]]:
        """Query and diversify; `fetch` is what the `k` hits are chosen from."""
        collection = self.collection
        found = collection.query(
            vectors, fetch, rows=rows, where=where, where_document=where_document, with_vectors=mmr_lambda is not None
        )
        if mmr_lambda is not None:
            found = [diverse(items, k, mmr_lambda, collection.metric) for items in found]
        scored = [[(item.record.passage, collection.similarity(item.distance)) for item in items] for items in found]
        return [
            [
                Hit(passage, rank=rank, score=score, retrieval_rank=rank, retrieval_score=score)
                for rank, (passage, score) in enumerate(items, start=1)
            ]
            for items in scored
        ]

    def delete(self, ids: Sequence[str]) -> None:
        """Delete passages by id; ids that are not stored are no error."""
        self.collection.delete(check_ids(ids))

    def get(self, ids: Sequence[str]) -> list[Passage]:
        """Return passages by id, in the order asked for; ids that are not stored are left out."""
        return [record.passage for record in self.collection.read(check_ids(ids))]

    def count(self) -> int:
        """Return the number of passages."""
        return self.collection.count()

    def clear(self) -> None:
        """Delete every passage."""
        self.collection.clear()

    def check(self, *, samples: int | None = 100, show_progress: bool = False) -> IndexCheck:
        """Compare the stored passages with what searches return; see `IndexCheck`. Nothing is written.

        Args:
            samples: How many passages, evenly spread, to encode again and compare with their stored vectors; None is
                all, which is the only way to be sure of every vector.
            show_progress: Show a bar on stderr.
        """
        return check(self.collection, self.encoder, samples=samples, show_progress=show_progress)

    def repair(self, *, samples: int | None = 1000, show_progress: bool = False) -> RepairReport:
        """Make every stored passage one that queries find, once, by the vector of its text.

        Passages that only lack their vector are encoded again. Where Chroma's index is mixed up, which shows in doubled
        results, failing queries or a wrong vector in a sample, the collection is made anew. Killed meanwhile, it leaves
        the old collection or the new one. Metadata that Chroma has logged and cannot apply is kept as JSON. No other
        process or thread writes meanwhile.

        Args:
            samples: As for `check`; beforehand, in search of wrong vectors.
            show_progress: Show bars on stderr.

        Raises:
            IndexLockedError: If another process writes the directory, and there is something to repair.
            IndexMismatchError: If none of the samples has the encoder's vector: another encoder's. Nothing is changed.
            RetrieveRerankError: If a passage has lost its vector and never had a text. Nothing is changed.
        """
        return repair(self.collection, self.encoder, samples=samples, show_progress=show_progress)

    def close(self) -> None:
        """Release the collection. An in-memory one is gone; the encoder is the caller's and stays."""
        self.collection.close()

    def __repr__(self) -> str:
        return f"ChromaIndex({self.collection.name!r}, {self.metric}, encoder={self.encoder!r})"

    def _encoded(self, texts: list[str]) -> npt.NDArray[np.float32]:
        vectors = self.encoder.encode_documents(texts)
        width = vectors.shape[1] if isinstance(vectors, np.ndarray) and vectors.ndim == 2 else None
        if width not in (None, self.encoder.dimension):
            raise IndexMismatchError(
                f"the encoder made vectors of another length, {width}, than its dimension says, "
                f"{self.encoder.dimension}; nothing of this batch was stored. Mend the encoder"
            )
        return vectors


@contextmanager
def _one_at_a_time(collection: ChromaCollection) -> Iterator[None]:
    """Hold what keeps other threads from replacing a source meanwhile: of one source, each would leave its passages."""
    collection_id = collection.handle.id
    with _ONE:
        turn = _REPLACING.setdefault(collection_id, threading.RLock())
    with turn:
        yield


def _checked_source(source_id: str, source_key: str) -> tuple[str, str]:
    """Return a source and the metadata key that holds it, or raise InvalidInputError if it cannot be searched by."""
    for name, value in (("source_id", source_id), ("source_key", source_key)):
        if not isinstance(value, str) or not value:
            raise InvalidInputError(f"{name} must be a non-empty string, got {shown(value)}")
    if to_record(Passage("-", "", {source_key: source_id})).metadata.get(source_key) != source_id:
        raise InvalidInputError(f"source_key {source_key!r} cannot be searched by; use a plain word such as 'source'")
    return str.__str__(source_id), str.__str__(source_key)


def _checked(encoder: Encoder) -> Encoder:
    missing = [name for name in _ENCODER if not hasattr(type(encoder), name) and not hasattr(encoder, name)]
    if missing:
        raise InvalidInputError(
            f"the encoder lacks {', '.join(missing)}, which BiEncoder has; got {type(encoder).__name__}"
        )
    return encoder
