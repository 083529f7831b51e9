"""Encoders, scorers and retrievers whose answers can be computed by hand, and a way to run a script of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieve_rerank import Hit, Passage

Vector = Callable[[str], Sequence[float]]


def letters(text: str) -> list[float]:
    """Return how often a, b and c occur, and 1: never a zero vector, and equal counts are equal vectors."""
    return [float(text.count(letter)) for letter in "abc"] + [1.0]


class LetterEncoder:
    """Encodes a text as its number of a, b and c, and 1. Remembers which documents it was given."""

    def __init__(
        self,
        metric: str = "cosine",
        *,
        vector: Vector = letters,
        dimension: int = 4,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        self.metric = metric
        self.dimension = dimension
        self.vector = vector
        self.fingerprint = dict(fingerprint or {"model": "letters", "weights": "abc", "dimension": dimension})
        self.documents: list[str] = []
        self.calls: list[int] = []

    def encode_queries(self, texts: Sequence[str]) -> Any:
        return self._encode(texts)

    def encode_documents(self, texts: Sequence[str]) -> Any:
        self.documents += texts
        self.calls.append(len(texts))
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Any:
        return np.array([self.vector(text) for text in texts], np.float32).reshape(len(texts), self.dimension)


class Broken(LetterEncoder):
    """Encodes well until `answer` is set; from then on its vectors are what that returns for the texts."""

    answer: Callable[[Sequence[str]], Any] | None = None

    def _encode(self, texts: Sequence[str]) -> Any:
        return super()._encode(texts) if self.answer is None else self.answer(texts)


class TableScorer:
    """Scores a text with the logit in a table. Remembers what it was asked."""

    def __init__(self, table: Mapping[str, float]) -> None:
        self.table = dict(table)
        self.asked: list[tuple[str, list[str]]] = []

    def score(self, query: str, texts: Sequence[str]) -> Any:
        self.asked.append((query, list(texts)))
        return np.array([self.table[text] for text in texts], np.float32)


class ListRetriever:
    """Returns the same hits for every query. Remembers what it was asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.hits = found(texts)
        self.asked: list[tuple[str, int, dict[str, object]]] = []

    def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        self.asked.append((query, k, options))
        return self.hits[:k]


def found(texts: Sequence[str]) -> list[Hit]:
    """Return texts as a first stage's hits, with scores 0.9, 0.8, ..."""
    scores = [0.9 - position / 10 for position in range(len(texts))]
    return [
        Hit(Passage(f"id-{text}", text), rank=rank, score=score, retrieval_rank=rank, retrieval_score=score)
        for rank, (text, score) in enumerate(zip(texts, scores, strict=True), start=1)
    ]


def passages(*texts: str) -> list[Passage]:
    """Return passages with the ids 0, 1, 2, ..."""
    return [Passage(str(position), text) for position, text in enumerate(texts)]


def run_python(script: str, *arguments: str, timeout: float = 60, warnings: str = "error") -> str:
    """Run a script in a process of its own, from the repository's root, and return what it prints.

    Raises:
        subprocess.TimeoutExpired: If it does not end in time.
        AssertionError: If it fails.
    """
    process = subprocess.run(
        [sys.executable, "-W", warnings, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
