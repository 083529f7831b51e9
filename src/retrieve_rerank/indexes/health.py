"""Whether every stored passage can be found, and what puts it right; whose vectors they are.

Two processes that write one directory, or two spellings of it, leave Chroma's index without some vectors, with vectors
of passages that are gone, with two of one passage, or with another passage's. Chroma says nothing of it at writing. And
a record with more metadata than it can apply stays in its log, where every later call fails at it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from tqdm.auto import tqdm

from retrieve_rerank.checks import check_count, check_flag
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError, warn_caller
from retrieve_rerank.indexes.chroma_server import RETRY_SECONDS, with_patience
from retrieve_rerank.indexes.client import (
    drop_collection,
    finish_rebuilding,
    get_collection,
    open_client,
    rebuilding_names,
)
from retrieve_rerank.indexes.identity import check_identity
from retrieve_rerank.indexes.nearest import TEXTS, Vectors, is_unit, records_of, same_vector
from retrieve_rerank.indexes.records import JSON_KEY, NODE_KEY, Record, embedded_text
from retrieve_rerank.indexes.recovery import mend_log, stored_in, stuck_in_log
from retrieve_rerank.indexes.reports import AdoptReport, IndexCheck, RepairReport
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.models.bi_encoder import one_truncation_warning
from retrieve_rerank.types import Encoder

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

ROWS = 1_000  # read in one go

_NEAR = 50  # neighbours asked for before all are
_ALIKE = 0.14  # 8 degrees, for vectors that were computed in another precision
_AT_OPENING = 3  # texts encoded again


class DocumentEncoder(Protocol):
    """The half of an `Encoder` that stored vectors come from."""

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), dimension)."""


# Check


def check(
    collection: ChromaCollection,
    encoder: DocumentEncoder | None,
    *,
    samples: int | None = 100,
    show_progress: bool = False,
) -> IndexCheck:
    """Compare a collection's stored passages with what searches return; see `ChromaIndex.check`.

    What made the vectors may be unknown: `encoder=None` leaves the samples out.
    """
    if samples is not None:
        samples = check_count(samples, "samples", least=0)
    quiet = not check_flag(show_progress, "show_progress")
    try:
        count = collection.count()
    except RetrieveRerankError:
        if stuck := stuck_in_log(collection):
            return IndexCheck(collection.name, 0, stuck=tuple(stuck.values()))
        raise
    missing, unreadable, unreached, chosen = list[str](), list[str](), list[str](), list[str]()
    unseen: dict[str, Vectors] = {}  # with a vector, which the one big search did not return
    with collection.reading():
        returned = _returned(collection, count)
        every = 1 if samples is None else max(1, -(-count // samples)) if samples else 0
        with tqdm(total=count, disable=quiet, unit="passage", desc="Checking") as bar:
            for offset in range(0, count, ROWS):
                records = collection.read(limit=ROWS, offset=offset)
                vectors = _readable_vectors(collection, [record.id for record in records])
                unreadable += [record.id for record in records if not _decodes(record.metadata)]
                missing += [record.id for record in records if record.id not in vectors]
                if every:  # and whatever has no direction, which no encoder makes
                    sampled = {record.id for record in records[-offset % every :: every]}
                    chosen += [id_ for id_, vector in vectors.items() if id_ in sampled or not vector.any()]
                if returned is not None:
                    unseen |= {id_: vector for id_, vector in vectors.items() if id_ not in returned}
                bar.update(len(records))
        if returned is not None:
            lost, unreached = _never_returned(collection, unseen, count)
            missing += lost
    wrong, encoded, with_metadata = _wrong(collection, encoder, chosen, show_progress=show_progress)
    return IndexCheck(
        collection=collection.name,
        count=count,
        missing=tuple(missing),
        doubled=tuple(id_ for id_, times in (returned or {}).items() if times > 1),
        unanswered=returned is None,
        wrong=tuple(wrong),
        unreadable=tuple(unreadable),
        unreached=tuple(unreached),
        encoded=encoded,
        with_metadata=with_metadata,
    )


def _readable_vectors(collection: ChromaCollection, ids: Sequence[str]) -> dict[str, Vectors]:
    """Return the vectors of `ids` that Chroma still has and that are numbers, by id."""
    from chromadb.errors import InternalError

    if not ids:
        return {}
    try:
        rows = collection.chroma.get(ids=list(ids), include=["embeddings"])
    except InternalError:  # at one that is lost, it fails for all
        if len(ids) == 1:
            return {}
        half = len(ids) // 2
        return _readable_vectors(collection, ids[:half]) | _readable_vectors(collection, ids[half:])
    vectors = {id_: np.asarray(row, np.float32) for id_, row in zip(rows["ids"], rows["embeddings"], strict=True)}
    return {id_: vector for id_, vector in vectors.items() if vector.size and np.isfinite(vector).all()}


def _with_text(collection: ChromaCollection, ids: Sequence[str]) -> list[Record]:
    """Return the records of `ids` that have a text, be it empty: other libraries store vectors without one."""
    with collection.reading():
        rows = collection.chroma.get(ids=list(ids), include=TEXTS)
    texts = dict(zip(rows["ids"], rows["documents"] or [], strict=True))
    return [record for record in records_of(rows) if texts[record.id] is not None]


def _returned(collection: ChromaCollection, count: int) -> Mapping[str, int] | None:
    """Return how often one search for everything returns each id, or None where Chroma cannot answer it."""
    from chromadb.errors import InternalError

    pages = (collection.read(limit=ROWS, offset=offset) for offset in range(0, count, ROWS))
    readable = (_readable_vectors(collection, [record.id for record in page]) for page in pages)
    some = next((vector for vectors in readable for vector in vectors.values()), None)
    if some is None:
        return {}
    try:
        return Counter(_nearest_ids(collection, some[np.newaxis], 2 * count)[0])
    except InternalError:  # a vector of a passage that is gone is among the results
        return None


def _nearest_ids(collection: ChromaCollection, vectors: Vectors, k: int) -> list[list[str]]:
    # Without texts Chroma returns any number; with them it fails above 32,000.
    return cast(
        "list[list[str]]",
        collection.chroma.query(query_embeddings=vectors, n_results=k, include=["distances"])["ids"],
    )


def _never_returned(
    collection: ChromaCollection, unseen: Mapping[str, Vectors], count: int
) -> tuple[list[str], list[str]]:
    """Return the ids that not even a search for all neighbours of their own vector returns.

    The index is approximate, and in dot space a passage need not be its own nearest neighbour: one search that misses a
    passage means nothing. And it has limits, which are no damage: ids beyond them are returned apart, second.
    """
    left = dict(unseen)
    ids = list(left)
    for start in range(0, len(ids), ROWS):
        part = ids[start : start + ROWS]
        for near in _nearest_ids(collection, np.stack([unseen[id_] for id_ in part]), _NEAR):
            for id_ in near:
                left.pop(id_, None)
    lost: list[str] = []
    unreached: list[str] = []
    while left:
        id_, vector = left.popitem()
        answer = collection.chroma.query(
            query_embeddings=vector[np.newaxis], n_results=2 * count, include=["distances"]
        )
        found = set(answer["ids"][0])
        if id_ not in found:
            # It is Chroma's index, and no damage, where another vector is equal to it, or where lengths differ in dot
            # space, of which the index is a poor one.
            is_limit = collection.metric == "dot" or bool((np.asarray(answer["distances"]) < 1e-4).any())
            (unreached if is_limit else lost).append(id_)
        left = {other: vector for other, vector in left.items() if other not in found}
    return lost, unreached


def _decodes(metadata: Mapping[str, Any]) -> bool:
    """Whether what this package and LlamaIndex keep as JSON can be read."""
    try:
        return all(isinstance(json.loads(metadata[key]), dict) for key in (JSON_KEY, NODE_KEY) if key in metadata)
    except (TypeError, ValueError):
        return False


def _wrong(
    collection: ChromaCollection, encoder: DocumentEncoder | None, ids: Sequence[str], *, show_progress: bool
) -> tuple[list[str], int, int]:
    """Encode passages again; return the ids of those whose vector is another, and two counts."""
    if encoder is None:
        return [], 0, 0
    wrong: list[str] = []
    encoded = with_metadata = 0
    with tqdm(total=len(ids), disable=not show_progress, unit="passage", desc="Encoding again") as bar:
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            records, stored = _with_vectors(collection, part)
            different, whole = _compare(encoder, records, stored, collection)
            encoded += len(records)
            wrong += different
            with_metadata += whole
            bar.update(len(part))
    return wrong, encoded, with_metadata


def _with_vectors(collection: ChromaCollection, ids: Sequence[str]) -> tuple[list[Record], dict[str, Vectors]]:
    """Return the records of `ids` that have a text and a vector that can be read, and the vectors by id."""
    with collection.reading():
        stored = _readable_vectors(collection, ids)
        return [record for record in _with_text(collection, ids) if record.id in stored], stored


def _compare(
    encoder: DocumentEncoder, records: Sequence[Record], stored: Mapping[str, Vectors], collection: ChromaCollection
) -> tuple[list[str], int]:
    """Encode records again and compare with their stored vectors, by id.

    Returns:
        The ids of the records whose vector is another, and how many of the rest were embedded with their metadata.
    """

    def different(records: Sequence[Record], texts: list[str]) -> list[Record]:
        made = np.asarray(encoder.encode_documents(texts), np.float32) if texts else ()
        return [
            record
            for record, vector in zip(records, made, strict=True)
            if not same_vector(stored[record.id], vector, collection.metric, _ALIKE)
        ]

    wrong = different(records, [record.text for record in records])
    again = [record for record in wrong if embedded_text(record) != record.text]
    right = {record.id for record in again}
    right -= {record.id for record in different(again, [embedded_text(record) for record in again])}
    return [record.id for record in wrong if record.id not in right], len(right)


# Repair


def repair(
    collection: ChromaCollection, encoder: DocumentEncoder, *, samples: int | None = 1000, show_progress: bool = False
) -> RepairReport:
    """Make every stored passage one that queries find, once, by the vector of its text; see `ChromaIndex.repair`.

    Passages that only lack their vector are encoded again. Where Chroma's index is mixed up, which shows in doubled
    results, in failing queries or in a sample with a wrong vector, no vector in it can be trusted: all passages are
    encoded again into a new collection, which then takes the old one's name. A process that is killed meanwhile leaves
    the old collection, or the new one. Nobody else writes meanwhile, but to a server.

    Raises:
        IndexLockedError: If another process writes the directory, and there is something to repair.
        IndexMismatchError: If none of the samples has the encoder's vector; nothing is changed.
        RetrieveRerankError: If a passage has lost its vector and never had a text; nothing is changed.
    """
    before = found = check(collection, encoder, samples=samples, show_progress=show_progress)
    if before.stuck:
        mend_log(collection)
        found = check(collection, encoder, samples=samples, show_progress=show_progress)
    if found.of_another_encoder:
        raise IndexMismatchError(str(found))
    if not found.is_damaged:
        return RepairReport(before, found)
    lost = set(found.missing)
    for start in range(0, len(found.missing), ROWS):
        lost -= {record.id for record in _with_text(collection, found.missing[start : start + ROWS])}
    if lost:
        some = ", ".join(map(ascii, sorted(lost)[:3]))
        raise RetrieveRerankError(
            f"collection {collection.name!r} cannot be repaired: {len(lost)} passages ({some}) have lost their vector "
            "and were stored without a text to make it of. Delete them, or add them again with a text"
        )
    # Nodes of LlamaIndex were embedded with their metadata, if no sample shows otherwise.
    text_of = embedded_text if found.with_metadata or not found.encoded else (lambda record: record.text)
    encoded = 0
    with collection.alone(), one_truncation_warning():
        if not (found.doubled or found.unanswered or found.wrong):
            with tqdm(
                total=len(found.missing), disable=not show_progress, unit="passage", desc="Encoding again"
            ) as bar:
                for start in range(0, len(found.missing), ROWS):
                    records = collection.read(found.missing[start : start + ROWS])
                    collection.write(records, encoder.encode_documents([text_of(record) for record in records]))
                    encoded += len(records)
                    bar.update(len(records))
            after = check(collection, encoder, samples=0)
            if not after.is_damaged:
                return RepairReport(before, after, encoded)
        encoded = _rebuild(collection, encoder, text_of, show_progress=show_progress)
    after = check(collection, encoder, samples=samples, show_progress=show_progress)
    return RepairReport(before, after, encoded, rebuilt=True)


def _rebuild(
    collection: ChromaCollection,
    encoder: DocumentEncoder,
    text_of: Callable[[Record], str],
    *,
    show_progress: bool,
) -> int:
    """Encode everything again into a successor, and give it the collection's name."""
    collection.check_has_client("made anew, which its damage takes")
    client, old, count = collection.client, collection.chroma, collection.count()
    name, filling, complete, replaced = old.name, *rebuilding_names(old.name)
    for left_behind in (filling, complete, replaced):  # by a process that was killed
        drop_collection(client, left_behind, os.getpid(), collection.writing)
    metadata = {key: value for key, value in (old.metadata or {}).items() if not key.startswith("hnsw:")}
    settings = old.configuration_json.get("hnsw") or {}
    kept = ("space", "ef_construction", "ef_search", "max_neighbors", "batch_size", "sync_threshold", "resize_factor")
    configuration: Any = {"hnsw": {key: settings[key] for key in kept if key in settings}}
    with collection.writing():
        client.create_collection(
            filling, configuration=configuration, metadata=metadata or None, embedding_function=None
        )
    successor = get_collection(client, filling)
    encoded = 0
    with tqdm(total=count, disable=not show_progress, unit="passage", desc="Encoding anew") as bar:
        for offset in range(0, count, ROWS):
            encoded += _copy(collection, successor, encoder, text_of, offset)
            bar.update(min(ROWS, count - offset))
    with collection.reading():
        if not _is_copy(successor, old):
            raise RetrieveRerankError(
                f"collection {name!r} changed while it was repaired: the copy has {successor.count()} passages, it had "
                f"{count} and has {old.count()}, and not all are equal. Nothing was changed; stop other writers and "
                "repair again"
            )
    with collection.writing():
        successor.modify(name=complete)
    with collection.writing():
        old.modify(name=replaced)  # at once, where deleting takes long and may be killed half-way
    # A process that opened the collection right now may have been first.
    finish_rebuilding(client, name, collection.writing)
    collection.replace_chroma(get_collection(client, name))
    drop_collection(client, replaced, os.getpid(), collection.writing)
    return encoded


def _copy(
    collection: ChromaCollection,
    successor: Any,
    encoder: DocumentEncoder,
    text_of: Callable[[Record], str],
    offset: int,
) -> int:
    """Copy one batch of passages with new vectors, and with the old ones those that have no text."""
    with collection.reading():
        rows = collection.chroma.get(limit=ROWS, offset=offset, include=TEXTS)
        texts, records = rows["documents"] or [], records_of(rows)
        written = [record for record, text in zip(records, texts, strict=True) if text is not None]
        vectors = _readable_vectors(
            collection, [record.id for record, text in zip(records, texts, strict=True) if text is None]
        )
    made = np.asarray(encoder.encode_documents([text_of(record) for record in written]), np.float32)
    vectors |= dict(zip((record.id for record in written), made, strict=True))
    with collection.writing():
        successor.upsert(
            ids=rows["ids"],
            embeddings=np.stack([vectors[id_] for id_ in rows["ids"]]),
            documents=texts,
            metadatas=[dict(record.metadata) or None for record in records],
        )
    return len(written)


def _is_copy(successor: Any, old: Any) -> bool:
    """Whether two collections hold the same texts and metadata."""
    count = old.count()
    for offset in range(0, count, ROWS):
        records = records_of(old.get(limit=ROWS, offset=offset, include=TEXTS))
        copies = records_of(successor.get(ids=[record.id for record in records], include=TEXTS))
        copied = {record.id: record for record in copies}
        if not all(record.id in copied and record.equals(copied[record.id]) for record in records):
            return False
    return bool(successor.count() == count)


# Recover


def adopt_stored(
    encoder: Encoder, name: str, path: str | os.PathLike[str] | None, client: ClientAPI | None, samples: int
) -> AdoptReport:
    """Write an encoder down in a collection that is there, if every sample shows that it made the vectors.

    The metric must suit the encoder, too: `langchain-chroma` and LlamaIndex's store write no fingerprint, and Chroma's
    squared L2 distance unless told otherwise.
    See `ChromaIndex.adopt` for the arguments and errors.
    """
    from chromadb.errors import ChromaError, NotFoundError

    if (path is None) == (client is None):
        raise InvalidInputError("give either the path of the directory or a client: it is there that the collection is")
    if path is not None:
        stored_in(path)
    store: Any = open_client(path) if client is None else with_patience(client, RETRY_SECONDS)
    try:
        try:
            handle = get_collection(store, name)
        except (NotFoundError, ValueError) as error:
            there = ", ".join(repr(one.name) for one in store.list_collections()[:10]) or "none"
            raise InvalidInputError(f"there is no collection {name!r}; there are: {there}") from error
        except ChromaError as error:
            raise InvalidInputError(f"collection {name!r} cannot be opened: {error}") from error
        collection = ChromaCollection(name, handle=getattr(handle, "plain", handle))
        try:
            report = _tried(collection, encoder, samples)
            if report.adopted and not collection.recorded:
                collection.record_encoder(encoder.fingerprint)
            return report
        finally:
            collection.close()
    finally:
        if client is None:
            store.close()


def adopt_at_opening(collection: ChromaCollection, encoder: Encoder) -> None:
    """See whether an encoder made a collection that does not say so clearly; close it if not. See `prove`."""
    if collection.verified:
        return
    try:
        prove(collection, encoder)
    except RetrieveRerankError:
        if stuck_in_log(collection):
            return  # nothing can be read, and `repair` needs it open
        collection.close()
        raise


def prove(collection: ChromaCollection, encoder: Encoder) -> None:
    """Encode a few stored texts again, to see whether an encoder makes the vectors of a collection.

    One that carries no fingerprint is adopted if it does, which is written down unless another process writes the
    directory; otherwise a warning says that nothing is known. One that
    does carry a fingerprint is asked for this proof where it or the encoder is behind an inference server, which tells
    too little for a comparison.

    Raises:
        IndexMismatchError: If the vectors are of another length, or others than a fingerprint promises.
    """
    report = _tried(collection, encoder, _AT_OPENING)
    if report.verified == report.samples and (report.samples or not report.count):
        if collection.recorded and report.samples:
            collection.verified = True  # what is written down stays: it may say more
        else:  # in whatever metric: it is what the caller asked for
            with suppress(RetrieveRerankError):  # another process writes, or nobody may
                collection.record_encoder(encoder.fingerprint)
        return
    if collection.recorded:
        raise IndexMismatchError(
            f"collection {collection.name!r} was made by another encoder: encoding some of its texts again gave other "
            "vectors. Open it with the encoder that made it, or use another collection name and add the passages "
            "again. If the two are one encoder all the same, as where texts were embedded together with something "
            "else, pass assume_compatible=True"
        )
    warn_caller(
        f"collection {collection.name!r} does not say which encoder made it, and encoding some of its texts again gave "
        "other vectors, or there are no texts: scores mean nothing if it was another encoder. If the texts were "
        "embedded together with something else, this is expected; otherwise add the passages again under another "
        "collection name",
        UserWarning,
    )


def _tried(collection: ChromaCollection, encoder: Encoder, samples: int) -> AdoptReport:
    check_identity(collection.name, collection.identity, None, encoder.fingerprint)
    count = collection.count()
    step = max(1, -(-count // check_count(samples, "samples")))
    ids = [record.id for offset in range(0, count, step) for record in collection.read(limit=1, offset=offset)]
    records, stored = _with_vectors(collection, ids) if ids else ([], {})
    wrong: list[str] = []
    with_metadata = 0
    if records:
        width = len(stored[records[0].id])
        made = np.asarray(encoder.encode_documents([records[0].text]), np.float32).shape[1]
        if width != made:
            raise IndexMismatchError(
                f"collection {collection.name!r} holds vectors of another length, {width}, than the encoder makes, "
                f"{made}. Open it with the encoder that made it, or use another collection name"
            )
        wrong, with_metadata = _compare(encoder, records, stored, collection)
    return AdoptReport(
        collection=collection.name,
        count=count,
        samples=len(records),
        verified=len(records) - len(wrong),
        with_metadata=with_metadata,
        metric=collection.metric,
        encoder_metric=encoder.metric,
        unit_length=bool(records) and all(is_unit(stored[record.id]) for record in records),
    )
