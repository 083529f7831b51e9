"""Passages with their vectors, as a Ray Dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from retrieve_rerank.errors import InvalidInputError, RetrieveRerankError, in_one_line
from retrieve_rerank.ray.pool import Pool, check_travels, encoder_of
from retrieve_rerank.ray.sources import Passages, to_dataset, to_passages, to_table
from retrieve_rerank.types import Encoder

_BATCH = 1_000


def encode(
    passages: Passages,
    encoder: Encoder | Callable[[], Encoder],
    *,
    batch_size: int = _BATCH,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
) -> ray.data.Dataset:
    """Encode passages on many workers, as a lazy step of a Ray pipeline.

    Use `index` or `write_parquet` to store them: those go on where they were broken off, and report what failed. Here
    an error ends the pipeline, as in any other of its steps.

    Args:
        passages: As for `index`.
        encoder: As for `index`.
        batch_size: Passages encoded in one go. Equal ids of one batch are one passage: the last.
        concurrency: As for `index`.
        num_cpus: As for `index`.
        num_gpus: As for `index`.

    Returns:
        A Dataset with the columns `id`, `text`, `metadata` (JSON) and `vector` (float32, all of one length).

    Raises:
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import Passage
        >>> from retrieve_rerank.ray import encode
        >>> from retrieve_rerank.testing import LetterEncoder  # in the place of a BiEncoder
        >>> encoded = encode([Passage("1", "abba")], LetterEncoder(), concurrency=1)
        >>> [(row["id"], list(row["vector"])) for row in encoded.take_all()]
        [('1', [2.0, 2.0, 0.0, 1.0])]
    """
    check_travels(encoder, "the encoder")
    return Pool(concurrency, num_cpus, num_gpus).over(to_dataset(passages), Encoding, [encoder], batch_size)


class Encoding:
    """What runs in each of Ray's actors."""

    def __init__(self, encoder: Encoder | Callable[[], Encoder]) -> None:
        self._given = encoder
        self._encoder: Encoder | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return a batch with its vectors."""
        if self._encoder is None:
            self._encoder = encoder_of(self._given)
        passages, failures = to_passages(table)
        if failures:
            raise InvalidInputError("; ".join(f"{id_!r}: {reason}" for id_, reason in failures.items()))
        try:
            vectors = self._encoder.encode_documents([passage.text for passage in passages])
        except Exception as error:
            ids = f"{passages[0].id!r} to {passages[-1].id!r}"
            raise RetrieveRerankError(f"passages {ids} could not be encoded: {in_one_line(error)}") from error
        return with_vectors(to_table(passages), vectors)


def with_vectors(table: pa.Table, vectors: npt.ArrayLike) -> pa.Table:
    """Return a table with a column of vectors (rows, dimension)."""
    array = np.ascontiguousarray(vectors, np.float32)
    if array.ndim != 2 or len(array) != table.num_rows or not np.isfinite(array).all():
        raise InvalidInputError(
            f"expected finite vectors of shape ({table.num_rows}, dimension) from the encoder, got {array.shape}"
        )
    column = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])
    return table.append_column("vector", column)
