"""Stand-ins for pipelines that were asked elsewhere. They say what those said: one way of measuring serves all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from retrieve_rerank.models.ranking import Ranker, Scoring
from retrieve_rerank.ray.asking import Answer, Pipeline
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.types import Hit, Retriever


class Found:
    """A first stage that finds what it found."""

    def __init__(self, number: int, description: str, answers: Mapping[str, Answer]) -> None:
        self._number = number
        self._description = description
        self._answers = answers

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the hits that it found for this question at this depth."""
        return list(self._answers[query].found[self._number, k])

    def __repr__(self) -> str:
        return self._description


class Counted(Found):
    """One that says how many passages it searches."""

    def __init__(self, number: int, description: str, answers: Mapping[str, Answer], count: int) -> None:
        super().__init__(number, description, answers)
        self._count = count

    def count(self) -> int:
        """Return how many passages it searches."""
        return self._count


class Reader(Ranker):
    """A cross-encoder that says of each text what it said."""

    def __init__(self, number: int, description: str, answers: Mapping[str, Answer]) -> None:
        self._number = number
        self._description = description
        self._answers = answers

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the logits (n,)."""
        read = self._answers[query].read[self._number]
        return np.array([read[text].logit for text in texts], np.float32)

    def _score(self, scorings: Sequence[Scoring]) -> None:
        for scoring in scorings:
            read = self._answers[scoring.query].read[self._number]
            for position, text in enumerate(scoring.texts):
                scoring.put(position, read[text].logit, truncated=read[text].truncated)

    async def _ascore(self, scorings: Sequence[Scoring]) -> None:
        self._score(scorings)

    def __repr__(self) -> str:
        return self._description


def stand_ins(
    pipelines: Mapping[str, Pipeline], answers: Mapping[str, Answer]
) -> dict[str, RetrieveRerank | Retriever]:
    """Return stand-ins of pipelines, which share what those shared."""
    retrievers: dict[int, Found] = {}
    readers: dict[int, Reader] = {}
    made: dict[str, RetrieveRerank | Retriever] = {}
    for name, known in pipelines.items():
        number = known.stage[0]
        if number not in retrievers:
            if known.count is None:
                retrievers[number] = Found(number, known.retriever, answers)
            else:
                retrievers[number] = Counted(number, known.retriever, answers, known.count)
        if known.reader is None:
            made[name] = retrievers[number]
            continue
        if known.reader not in readers:
            readers[known.reader] = Reader(known.reader, known.cross_encoder, answers)
        made[name] = RetrieveRerank(
            retrievers[number],
            readers[known.reader],
            fetch_k=known.stage[1],
            score_threshold=known.score_threshold,
            time_budget=known.time_budget,
        )
    return made
