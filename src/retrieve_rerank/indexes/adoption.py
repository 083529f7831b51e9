"""Taking over a collection that does not say who made it: its vectors are tried against the encoder's.

`langchain-chroma` and LlamaIndex's store write no fingerprint, and Chroma's squared L2 distance unless told otherwise.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_count
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RetrieveRerankError, warn_caller
from retrieve_rerank.indexes.client import one_spelling, open_client
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.embedded import compare
from retrieve_rerank.indexes.fingerprint import Identity, check_identity
from retrieve_rerank.indexes.health import ROWS, readable_vectors, with_text
from retrieve_rerank.indexes.opened import UNIT
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.reports import AdoptReport
from retrieve_rerank.indexes.server import RETRY_SECONDS, with_patience
from retrieve_rerank.types import Encoder

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_AT_OPENING = 3  # texts encoded again


def adopt(collection: ChromaCollection, encoder: Encoder, *, samples: int = 20) -> AdoptReport:
    """Write the encoder down in a collection, if every sample shows that it made the vectors and the metric suits it.

    Args:
        collection: Opened without a fingerprint.
        encoder: What may have made the vectors.
        samples: How many texts, evenly spread, to encode again.

    Raises:
        IndexLockedError: If another process writes the directory.
        IndexMismatchError: If the collection is another encoder's, or its vectors are of another length.
    """
    report = _tried(collection, encoder, samples)
    if report.adopted and not collection.recorded:
        collection.record_encoder(encoder.fingerprint)
    return report


def _tried(collection: ChromaCollection, encoder: Encoder, samples: int) -> AdoptReport:
    found = Identity.read(collection.handle.configuration_json, collection.handle.metadata)
    check_identity(collection.name, found, None, encoder.fingerprint)
    count = collection.count()
    records, stored = _samples(collection, check_count(samples, "samples"), count)
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
        wrong, with_metadata = compare(encoder, records, stored, collection.metric)
    unit = bool(stored) and all(abs(float(np.linalg.norm(vector)) - 1) < UNIT for vector in stored.values())
    return AdoptReport(
        collection=collection.name,
        count=count,
        samples=len(records),
        verified=len(records) - len(wrong),
        with_metadata=with_metadata,
        metric=collection.metric,
        encoder_metric=encoder.metric,
        unit_length=unit,
    )


def adopt_stored(
    encoder: Encoder, name: str, path: str | os.PathLike[str] | None, client: ClientAPI | None, samples: int
) -> AdoptReport:
    """Open a collection that must be there, in whatever metric, and `adopt` it."""
    from chromadb.errors import ChromaError, NotFoundError

    if (path is None) == (client is None):
        raise InvalidInputError("give either the path of the directory or a client: it is there that the collection is")
    if path is not None and not (one_spelling(path) / "chroma.sqlite3").is_file():
        raise InvalidInputError(f"there is no Chroma index in {str(path)!r}; give the directory of one")
    store = open_client(path) if client is None else with_patience(client, RETRY_SECONDS)
    try:
        try:
            handle = store.get_collection(name, embedding_function=None)
        except (NotFoundError, ValueError) as error:
            there = ", ".join(repr(one.name) for one in store.list_collections()[:10]) or "none"
            raise InvalidInputError(f"there is no collection {name!r}; there are: {there}") from error
        except ChromaError as error:
            raise InvalidInputError(f"collection {name!r} cannot be opened: {error}") from error
        opened = ChromaCollection(name, handle=handle)
        try:
            return adopt(opened, encoder, samples=samples)
        finally:
            opened.close()
    finally:
        if client is None:
            cast("Any", store).close()


def adopt_at_opening(collection: ChromaCollection, encoder: Encoder) -> None:
    """See whether an encoder made a collection that does not say so clearly; close it if not. See `prove`."""
    if collection.verified:
        return
    try:
        prove(collection, encoder)
    except RetrieveRerankError:
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
            collection.note_encoder(encoder.fingerprint)
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


def _samples(
    collection: ChromaCollection, wanted: int, count: int
) -> tuple[list[Record], dict[str, npt.NDArray[np.float32]]]:
    """Return up to `wanted` records with a text and a vector that can be read, evenly spread, and their vectors."""
    ids: list[str] = []
    step = max(1, -(-count // wanted))
    if step == 1 or count <= ROWS:
        ids = [record.id for record in collection.read(limit=ROWS)][::step]
    else:
        for offset in range(0, count, step):
            ids += [record.id for record in collection.read(limit=1, offset=offset)]
    if not ids:
        return [], {}
    with collection.reading():
        stored = readable_vectors(collection, ids)
        records = [record for record in with_text(collection, ids) if record.id in stored]
    return records, {record.id: stored[record.id] for record in records}
