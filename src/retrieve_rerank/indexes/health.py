"""Whether every stored passage can be found: what is in Chroma's tables against what its index returns.

Two processes that write one directory, or two spellings of it, leave Chroma's index without some vectors, with vectors
of passages that are gone, with two of one passage, or with another passage's. Chroma says nothing of it at writing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.embedded import DocumentEncoder, compare, own_errors
from retrieve_rerank.indexes.records import JSON_KEY, NODE_KEY, Record
from retrieve_rerank.indexes.reports import IndexCheck
from retrieve_rerank.types import Metric

Vectors = npt.NDArray[np.float32]

ROWS = 1_000  # read in one go
_NEAR = 50  # neighbours asked for before all are


@dataclass
class _Seen:
    """What the walk through a collection has found."""

    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    unseen: dict[str, Vectors] = field(default_factory=dict)  # with a vector, which the one big search did not return
    sample: list[str] = field(default_factory=list)


def check_samples(samples: int | None) -> int | None:
    """Return `samples` as an int of 0 or more, or None for all; else raise InvalidInputError."""
    if samples is None:
        return None
    if isinstance(samples, bool) or not hasattr(samples, "__index__") or samples.__index__() < 0:
        raise InvalidInputError(f"samples must be a whole number >= 0, or None for all passages; got {samples!r}")
    return samples.__index__()


def check(
    collection: ChromaCollection,
    encoder: DocumentEncoder | None,
    *,
    samples: int | None = 100,
    show_progress: bool = False,
) -> IndexCheck:
    """Compare a collection's stored passages with what searches return.

    Args:
        collection: What to look at. Nothing is written.
        encoder: What made the vectors; None leaves the samples out.
        samples: How many passages, evenly spread, to encode again and compare with their stored vectors. None is all
            of them.
        show_progress: Show a bar on stderr.
    """
    wanted = check_samples(samples)
    with own_errors(encoder) as named, collection.reading():
        return _check(collection, named, wanted, show_progress=show_progress)


def _check(
    collection: ChromaCollection, encoder: DocumentEncoder | None, wanted: int | None, *, show_progress: bool
) -> IndexCheck:
    count = collection.count()
    returned = _returned(collection, count)
    seen = _Seen()
    every = 1 if wanted is None else max(1, -(-count // wanted)) if wanted else 0
    with tqdm(total=count, disable=not show_progress, unit="passage", desc="Checking") as bar:
        for offset in range(0, count, ROWS):
            records = collection.read(limit=ROWS, offset=offset)
            vectors = readable_vectors(collection, [record.id for record in records])
            for place, record in enumerate(records, start=offset):
                _look(record, vectors.get(record.id), returned, seen)
                if every and place % every == 0 and record.id in vectors:
                    seen.sample.append(record.id)
            bar.update(len(records))
    unreached: list[str] = []
    if returned is not None:
        lost, unreached = _never_returned(collection, seen.unseen, count)
        seen.missing += lost
    wrong, encoded, with_metadata = _wrong(collection, encoder, seen, show_progress=show_progress)
    return IndexCheck(
        collection=collection.name,
        count=count,
        missing=tuple(seen.missing),
        doubled=tuple(id_ for id_, times in (returned or {}).items() if times > 1),
        unanswered=returned is None,
        wrong=tuple(wrong),
        unreadable=tuple(seen.unreadable),
        unreached=tuple(unreached),
        encoded=encoded,
        with_metadata=with_metadata,
    )


def readable_vectors(collection: ChromaCollection, ids: Sequence[str]) -> dict[str, Vectors]:
    """Return the vectors of `ids` that Chroma still has and that are numbers, by id."""
    from chromadb.errors import InternalError

    if not ids:
        return {}
    try:
        rows = collection.handle.get(ids=list(ids), include=["embeddings"])
    except InternalError:  # at one that is lost, it fails for all
        if len(ids) == 1:
            return {}
        half = len(ids) // 2
        return readable_vectors(collection, ids[:half]) | readable_vectors(collection, ids[half:])
    embeddings: Any = rows["embeddings"]
    vectors = {id_: np.asarray(row, np.float32) for id_, row in zip(rows["ids"], embeddings, strict=True)}
    return {id_: vector for id_, vector in vectors.items() if vector.size and np.isfinite(vector).all()}


def with_text(collection: ChromaCollection, ids: Sequence[str]) -> list[Record]:
    """Return the records of `ids` that have a text, be it empty: other libraries store vectors without one."""
    rows = collection.handle.get(ids=list(ids), include=["documents", "metadatas"])
    documents, metadatas = rows["documents"] or [], rows["metadatas"] or []
    return [
        Record(id_, text, dict(metadata or {}))
        for id_, text, metadata in zip(rows["ids"], documents, metadatas, strict=True)
        if text is not None
    ]


def _look(record: Record, vector: Vectors | None, returned: Mapping[str, int] | None, seen: _Seen) -> None:
    if not _decodes(record.metadata):
        seen.unreadable.append(record.id)
    if vector is None:
        seen.missing.append(record.id)
        return
    if returned is not None and record.id not in returned:
        seen.unseen[record.id] = vector
    if not vector.any():
        seen.zero.append(record.id)


def _returned(collection: ChromaCollection, count: int) -> Mapping[str, int] | None:
    """Return how often one search for everything returns each id, or None where Chroma cannot answer it."""
    from chromadb.errors import InternalError

    vector = _some_vector(collection, count)
    if vector is None:
        return {}
    try:
        return Counter(_ids(collection, vector[np.newaxis], 2 * count)[0])
    except InternalError:  # a vector of a passage that is gone is among the results
        return None


def _some_vector(collection: ChromaCollection, count: int) -> Vectors | None:
    for offset in range(0, count, ROWS):
        ids = [record.id for record in collection.read(limit=ROWS, offset=offset)]
        for vector in readable_vectors(collection, ids).values():
            return vector
    return None


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
        for near in _ids(collection, np.stack([unseen[id_] for id_ in part]), _NEAR):
            for id_ in near:
                left.pop(id_, None)
    lost: list[str] = []
    unreached: list[str] = []
    while left:
        id_, vector = left.popitem()
        answer = collection.handle.query(
            query_embeddings=vector[np.newaxis], n_results=2 * count, include=["distances"]
        )
        found = set(answer["ids"][0])
        if id_ not in found:
            (unreached if _is_limit(answer["distances"], collection.metric) else lost).append(id_)
        left = {other: vector for other, vector in left.items() if other not in found}
    return lost, unreached


def _is_limit(distances: Any, metric: Metric) -> bool:
    """Whether it is Chroma's index, and no damage, that does not reach a vector which was searched for by itself.

    Either another vector is equal to it; or lengths differ in dot space, where the index is a poor one.
    """
    return metric == "dot" or bool((np.asarray(distances) < 1e-4).any())


def _ids(collection: ChromaCollection, vectors: Vectors, k: int) -> list[list[str]]:
    # Without texts Chroma returns any number; with them it fails above 32,000.
    return collection.handle.query(query_embeddings=vectors, n_results=k, include=["distances"])["ids"]


def _decodes(metadata: Mapping[str, Any]) -> bool:
    """Whether what this package and LlamaIndex keep as JSON can be read."""
    for key in (JSON_KEY, NODE_KEY):
        if key in metadata:
            try:
                if not isinstance(json.loads(metadata[key]), dict):
                    return False
            except (TypeError, ValueError):
                return False
    return True


def _wrong(
    collection: ChromaCollection, encoder: DocumentEncoder | None, seen: _Seen, *, show_progress: bool
) -> tuple[list[str], int, int]:
    """Encode the samples, and all whose vector is zero, again; return the wrong ids and two counts."""
    if encoder is None:
        return [], 0, 0
    ids = list(dict.fromkeys(seen.sample + seen.zero if seen.sample else ()))
    wrong: list[str] = []
    encoded = with_metadata = 0
    with tqdm(total=len(ids), disable=not show_progress, unit="passage", desc="Encoding again") as bar:
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            stored = readable_vectors(collection, part)
            records = [record for record in with_text(collection, part) if record.id in stored]
            different, whole = compare(encoder, records, stored, collection.metric)
            encoded += len(records)
            wrong += different
            with_metadata += whole
            bar.update(len(part))
    return wrong, encoded, with_metadata
