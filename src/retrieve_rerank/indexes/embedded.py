"""What text a record's vector was made of, and whether two vectors are one.

LlamaIndex embeds a node together with its metadata, laid out by templates that the node carries. Its record says all of
it, so the text is made here without the framework.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import RetrieveRerankError
from retrieve_rerank.indexes.records import NODE_KEY, Record
from retrieve_rerank.types import Metric

Vectors = npt.NDArray[np.float32]


class DocumentEncoder(Protocol):
    """The half of an `Encoder` that stored vectors come from."""

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), dimension)."""


class _EncoderError(RetrieveRerankError):
    """What an encoder raised, on its way past those who take every error for Chroma's."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Named:
    def __init__(self, encoder: DocumentEncoder) -> None:
        self._encoder = encoder

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        try:
            return self._encoder.encode_documents(texts)
        except Exception as error:
            raise _EncoderError(error) from error


@contextmanager
def own_errors(encoder: DocumentEncoder | None) -> Iterator[DocumentEncoder | None]:
    """Give the encoder to a block in which Chroma is read: what it raises leaves the block as it is."""
    try:
        yield None if encoder is None else _Named(encoder)
    except _EncoderError as failed:
        raise failed.error from None


def embedded_text(record: Record) -> str:
    """Return the text that LlamaIndex embeds for a record of its own; of any other record, the text."""
    try:
        node = json.loads(record.metadata[NODE_KEY])
        metadata = node["metadata"]
        hidden = set(node.get("excluded_embed_metadata_keys") or ())
        line = str(node.get("metadata_template") or "{key}: {value}")
        between = str(node.get("metadata_separator", node.get("metadata_seperator", "\n")))
        whole = str(node.get("text_template") or "{metadata_str}\n\n{content}")
        lines = [
            line.replace("{key}", key).replace("{value}", str(value))
            for key, value in metadata.items()
            if key not in hidden
        ]
    except (AttributeError, KeyError, TypeError, ValueError):  # no node of LlamaIndex's
        return record.text
    facts = between.join(lines).strip()
    # The text may hold braces as well: one pass, no second look.
    before, found, after = whole.partition("{content}")
    if not facts or not found:
        return record.text
    return f"{before.replace('{metadata_str}', facts)}{record.text}{after.replace('{metadata_str}', facts)}".strip()


def alike(left: Vectors, right: Vectors, metric: Metric) -> bool:
    """Whether two vectors are one, but for the precision that they were computed in."""
    if left.shape != right.shape:
        return False
    norms = [float(np.linalg.norm(vector)) for vector in (left, right)]
    if 0.0 in norms:
        return norms == [0.0, 0.0]
    if metric == "cosine":  # a store may have scaled them
        left, right = left / norms[0], right / norms[1]
    return float(np.linalg.norm(left - right)) < 0.14 * float(np.linalg.norm(right))  # 8 degrees


def compare(
    encoder: DocumentEncoder, records: Sequence[Record], stored: Mapping[str, Vectors], metric: Metric
) -> tuple[list[str], int]:
    """Encode records again and compare with their stored vectors.

    Args:
        encoder: What should have made the vectors.
        records: Whose vectors are compared.
        stored: Their vectors, by id.
        metric: The collection's.

    Returns:
        The ids of the records whose vector is another, and how many of the rest were embedded with their metadata.
    """
    different = _different(encoder, records, stored, metric, [record.text for record in records])
    whole = [(record, embedded_text(record)) for record in different]
    again = [(record, text) for record, text in whole if text != record.text]
    wrong = _different(encoder, [record for record, _ in again], stored, metric, [text for _, text in again])
    with_metadata = len(again) - len(wrong)
    right = {record.id for record, _ in again} - {record.id for record in wrong}
    return [record.id for record in different if record.id not in right], with_metadata


def _different(
    encoder: DocumentEncoder, records: Sequence[Record], stored: Mapping[str, Vectors], metric: Metric, texts: list[str]
) -> list[Record]:
    if not records:
        return []
    made = np.asarray(encoder.encode_documents(texts), np.float32)
    return [
        record for record, vector in zip(records, made, strict=True) if not alike(stored[record.id], vector, metric)
    ]
