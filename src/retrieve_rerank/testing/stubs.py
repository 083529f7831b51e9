"""Encoders, scorers and retrievers whose answers can be computed by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.types import Hit, Metric, Passage

Vectors: TypeAlias = npt.NDArray[np.float32]
Fault: TypeAlias = Literal["raise", "nan", "too_few", "too_many"]


def letters(text: str) -> list[float]:
    """Return how often a, b and c occur, and 1: never a zero vector, and equal counts are equal vectors."""
    return [float(text.count(letter)) for letter in "abc"] + [1.0]


class LetterEncoder:
    """An `Encoder` of the number of a, b and c in a text, and 1.

    Args:
        metric: What the vectors are compared by.
        vector: What makes a vector of a text, instead of `letters`.
        dimension: Length of every vector.
        fingerprint: Facts about this encoder, instead of those of `letters`.
        seconds: How long each call takes.

    Attributes:
        queries: The texts that it encoded as queries, in order.
        documents: The texts that it encoded as documents, in order.
        calls: How many texts each call for documents had.
        seconds: May be changed between calls.

    Example:
        >>> LetterEncoder().encode_queries(["abba", "cab"]).tolist()
        [[2.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        metric: Metric = "cosine",
        *,
        vector: Callable[[str], Sequence[float]] = letters,
        dimension: int = 4,
        fingerprint: Mapping[str, str | int | float | bool] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.metric: Metric = metric
        self.dimension = dimension
        self.vector = vector
        facts: Mapping[str, str | int | float | bool] = {"model": "letters", "weights": "abc", "dimension": dimension}
        self.fingerprint = dict(fingerprint or facts)
        self.seconds = seconds
        self.queries: list[str] = []
        self.documents: list[str] = []
        self.calls: list[int] = []

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), dimension)."""
        self.queries += texts
        return self._encode(texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts), dimension)."""
        self.documents += texts
        self.calls.append(len(texts))
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Vectors:
        time.sleep(self.seconds)
        return np.array([self.vector(text) for text in texts], np.float32).reshape(len(texts), self.dimension)


class TableScorer:
    """A `Scorer` that looks the logit of a text up in a table, whatever the query.

    Args:
        table: Logits by text. A text that is not there raises KeyError.
        seconds: How long each call takes.

    Attributes:
        asked: The query and the texts of every call, in order.
        threads: Names of the threads that called.
        seconds: May be changed between calls.

    Example:
        >>> scorer = TableScorer({"good": 2.0, "bad": -2.0})
        >>> scorer.score("any", ["bad", "good"]).tolist()
        [-2.0, 2.0]
        >>> scorer.asked
        [('any', ['bad', 'good'])]
    """

    def __init__(self, table: Mapping[str, float], *, seconds: float = 0.0) -> None:
        self.table = dict(table)
        self.seconds = seconds
        self.asked: list[tuple[str, list[str]]] = []
        self.threads: list[str] = []

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """Return an array (len(texts),) of logits."""
        self.asked.append((query, list(texts)))
        self.threads.append(threading.current_thread().name)
        time.sleep(self.seconds)
        return np.array([self.table[text] for text in texts], np.float32)


class FaultyScorer(TableScorer):
    """A `TableScorer` that fails when it is told to.

    Args:
        table: As for `TableScorer`.
        fault: "raise" raises `error`; "nan" gives NaN for the last text; "too_few" and "too_many" give one score less
            or more than there are texts.
        seconds: As for `TableScorer`.

    Attributes:
        fault: None answers as `TableScorer` does; may be changed between calls.
        error: What "raise" raises.

    Example:
        >>> FaultyScorer({"good": 2.0, "bad": -2.0}, "nan").score("any", ["bad", "good"]).tolist()
        [-2.0, nan]
    """

    def __init__(self, table: Mapping[str, float], fault: Fault | None, *, seconds: float = 0.0) -> None:
        super().__init__(table, seconds=seconds)
        self.fault = fault
        self.error = RuntimeError("the scorer failed on purpose")

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """Return the logits, or fail."""
        logits = super().score(query, texts)
        if self.fault == "raise":
            raise self.error
        if self.fault == "nan":
            logits[-1:] = np.nan
        if self.fault == "too_few":
            return logits[:-1]
        if self.fault == "too_many":
            return np.append(logits, np.float32(0.0))
        return logits


class ListRetriever:
    """A `Retriever` that finds the same hits for every query.

    Args:
        found: What it finds, best first: hits, or texts to make them of.

    Attributes:
        asked: The query, k and further options of every call, in order.

    Example:
        >>> [hit.passage.text for hit in ListRetriever(["a", "b", "c"]).retrieve("any", 2)]
        ['a', 'b']
    """

    def __init__(self, found: Sequence[str] | Sequence[Hit]) -> None:
        hits = [item for item in found if isinstance(item, Hit)]
        if len(hits) not in (0, len(found)):
            raise InvalidInputError("found must be hits or texts, not both")
        self.hits = hits or hits_of([item for item in found if isinstance(item, str)])
        self.asked: list[tuple[str, int, dict[str, object]]] = []

    def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        """Return the first k hits."""
        self.asked.append((query, k, options))
        return self.hits[:k]


def hits_of(texts: Sequence[str]) -> list[Hit]:
    """Return texts as a first stage's hits: the text "a" has the id "id-a"; the scores are 0.9, 0.8 and so on."""
    scores = [0.9 - position / 10 for position in range(len(texts))]
    return [
        Hit(Passage(f"id-{text}", text), rank=rank, score=score, retrieval_rank=rank, retrieval_score=score)
        for rank, (text, score) in enumerate(zip(texts, scores, strict=True), start=1)
    ]
