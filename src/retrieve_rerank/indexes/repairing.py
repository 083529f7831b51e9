"""Mends what `health` finds: encodes again what is missing, or makes the whole index anew where that is not enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tqdm.auto import tqdm

from retrieve_rerank.errors import IndexMismatchError, RetrieveRerankError
from retrieve_rerank.indexes.client import drop_collection, finish_rebuilding, rebuilding_names
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.embedded import DocumentEncoder, embedded_text, own_errors
from retrieve_rerank.indexes.health import ROWS, check, readable_vectors, with_text
from retrieve_rerank.indexes.nearest import TEXTS, records_of
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.reports import IndexCheck, RepairReport
from retrieve_rerank.models.cuts import told_once

if TYPE_CHECKING:
    import chromadb

_Text = Callable[[Record], str]


def repair(
    collection: ChromaCollection, encoder: DocumentEncoder, *, samples: int | None = 1000, show_progress: bool = False
) -> RepairReport:
    """Make every stored passage one that queries find, once, by the vector of its text.

    Passages that only lack their vector are encoded again. Where Chroma's index is mixed up, which shows in doubled
    results, in failing queries or in a sample with a wrong vector, no vector in it can be trusted: all passages are
    encoded again into a new collection, which then takes the old one's name. A process that is killed meanwhile leaves
    the old collection, or the new one.

    Args:
        collection: What to repair.
        encoder: What made the vectors.
        samples: How many passages, evenly spread, to encode again beforehand in search of wrong vectors; None is all.
        show_progress: Show bars on stderr.

    Raises:
        IndexMismatchError: If none of the samples has the encoder's vector; nothing is changed.
        RetrieveRerankError: If a passage has lost its vector and never had a text; nothing is changed.
    """
    before = check(collection, encoder, samples=samples, show_progress=show_progress)
    if before.of_another_encoder:
        raise IndexMismatchError(str(before))
    if not _is_damaged(before):
        return RepairReport(before, before)
    _check_texts(collection, before.missing)
    # Nodes of LlamaIndex were embedded with their metadata, if no sample shows otherwise.
    text_of: _Text = embedded_text if before.with_metadata or not before.encoded else (lambda record: record.text)
    encoded = 0
    if not (before.doubled or before.unanswered or before.wrong):
        encoded = _encode_again(collection, encoder, before.missing, text_of, show_progress=show_progress)
        after = check(collection, encoder, samples=0)
        if not _is_damaged(after):
            return RepairReport(before, after, encoded)
    with own_errors(encoder) as named:
        encoded = _rebuild(collection, cast("DocumentEncoder", named), text_of, show_progress=show_progress)
    after = check(collection, encoder, samples=samples, show_progress=show_progress)
    return RepairReport(before, after, encoded, rebuilt=True)


def _is_damaged(found: IndexCheck) -> bool:
    return bool(found.missing or found.doubled or found.unanswered or found.wrong)


def _check_texts(collection: ChromaCollection, missing: Sequence[str]) -> None:
    lost = set(missing)
    for start in range(0, len(missing), ROWS):
        lost -= {record.id for record in with_text(collection, missing[start : start + ROWS])}
    if lost:
        some = ", ".join(map(ascii, sorted(lost)[:3]))
        raise RetrieveRerankError(
            f"collection {collection.name!r} cannot be repaired: {len(lost)} passages ({some}) have lost their vector "
            "and were stored without a text to make it of. Delete them, or add them again with a text"
        )


def _encode_again(
    collection: ChromaCollection, encoder: DocumentEncoder, ids: Sequence[str], text_of: _Text, *, show_progress: bool
) -> int:
    bar = tqdm(total=len(ids), disable=not show_progress, unit="passage", desc="Encoding again")
    with bar, told_once():
        for start in range(0, len(ids), ROWS):
            records = collection.read(ids[start : start + ROWS])
            collection.write(records, encoder.encode_documents([text_of(record) for record in records]))
            bar.update(len(records))
    return len(ids)


def _rebuild(collection: ChromaCollection, encoder: DocumentEncoder, text_of: _Text, *, show_progress: bool) -> int:
    """Encode everything again into a successor, and give it the collection's name."""
    collection.check_has_client("made anew, which its damage takes")
    collection.hold()
    with collection.reading(), told_once():
        client, old = collection.client, collection.handle
        name, filling, complete, replaced = old.name, *rebuilding_names(old.name)
        for left_behind in (filling, complete, replaced):  # by a process that was killed
            drop_collection(client, left_behind, os.getpid(), collection.writing)
        kept = {key: value for key, value in (old.metadata or {}).items() if not key.startswith("hnsw:")}
        with collection.writing():
            successor = client.create_collection(
                filling, configuration=_settings(old), metadata=kept or None, embedding_function=None
            )
        encoded = 0
        count = old.count()
        with tqdm(total=count, disable=not show_progress, unit="passage", desc="Building anew") as bar:
            for offset in range(0, count, ROWS):
                encoded += _copy(collection, successor, encoder, text_of, offset)
                bar.update(min(ROWS, count - offset))
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
        try:
            encoded += _take_over(collection, successor, encoder, text_of)
        except BaseException:
            with collection.writing():
                old.modify(name=name)
            raise
        # A process that opened the collection right now may have been first.
        finish_rebuilding(client, name, collection.writing)
        collection.replace_handle(client.get_collection(name, embedding_function=None))
        drop_collection(client, replaced, os.getpid(), collection.writing)
    return encoded


def _take_over(
    collection: ChromaCollection, successor: chromadb.Collection, encoder: DocumentEncoder, text_of: _Text
) -> int:
    """Repeat what others did since the comparison: before the new collection has its name, they reach the old one."""
    old, late = collection.handle, 0
    for rows in _differing(successor, old):
        late += _put(collection, successor, encoder, text_of, rows)
    gone = sorted(_ids(successor) - _ids(old))
    for start in range(0, len(gone), ROWS):
        with collection.writing():
            successor.delete(ids=gone[start : start + ROWS])
    return late


def _is_copy(successor: chromadb.Collection, old: chromadb.Collection) -> bool:
    """Whether two collections hold the same texts and metadata."""
    return next(_differing(successor, old), None) is None and successor.count() == old.count()


def _differing(successor: chromadb.Collection, old: chromadb.Collection) -> Iterator[dict[str, Any]]:
    """Yield the rows of the old collection, as Chroma gives them, that the successor has otherwise or not at all."""
    texts = cast("Any", [*TEXTS])
    for offset in range(0, old.count(), ROWS):
        rows: Any = old.get(limit=ROWS, offset=offset, include=texts)
        records = records_of(rows)
        copies = records_of(successor.get(ids=[record.id for record in records], include=texts)) if records else []
        copied = {record.id: record for record in copies}
        places = [
            place
            for place, record in enumerate(records)
            if record.id not in copied or not record.equals(copied[record.id])
        ]
        if places:
            yield {name: [rows[name][place] for place in places] for name in ("ids", "documents", "metadatas")}


def _ids(handle: chromadb.Collection) -> set[str]:
    return {
        id_
        for offset in range(0, handle.count(), ROWS)
        for id_ in handle.get(limit=ROWS, offset=offset, include=[])["ids"]
    }


def _settings(old: chromadb.Collection) -> Any:
    settings = old.configuration_json.get("hnsw") or {}
    kept = ("space", "ef_construction", "ef_search", "max_neighbors", "batch_size", "sync_threshold", "resize_factor")
    return {"hnsw": {key: settings[key] for key in kept if key in settings}}


def _copy(
    collection: ChromaCollection, successor: chromadb.Collection, encoder: DocumentEncoder, text_of: _Text, offset: int
) -> int:
    """Copy one batch of passages with new vectors, and with the old ones those that have no text."""
    rows: Any = collection.handle.get(limit=ROWS, offset=offset, include=["documents", "metadatas"])
    return _put(collection, successor, encoder, text_of, rows)


def _put(
    collection: ChromaCollection,
    successor: chromadb.Collection,
    encoder: DocumentEncoder,
    text_of: _Text,
    rows: Mapping[str, Any],
) -> int:
    """Write rows of the old collection into the successor; return how many were encoded."""
    texts, metadatas = rows["documents"] or [], [dict(row or {}) for row in rows["metadatas"] or []]
    records = [
        Record(id_, text, metadata)
        for id_, text, metadata in zip(rows["ids"], texts, metadatas, strict=True)
        if text is not None
    ]
    made = np.asarray(encoder.encode_documents([text_of(record) for record in records]), np.float32)
    vectors = dict(zip((record.id for record in records), made, strict=True))
    vectors |= readable_vectors(collection, [id_ for id_ in rows["ids"] if id_ not in vectors])
    options: Any = {"documents": texts, "metadatas": [metadata or None for metadata in metadatas]}  # None is taken
    with collection.writing():
        # What is too much for one request to a server is divided if it can be repeated.
        successor.upsert(ids=rows["ids"], embeddings=np.stack([vectors[id_] for id_ in rows["ids"]]), **options)
    return len(records)
