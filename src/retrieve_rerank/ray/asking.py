"""One worker of an evaluation: asks the pipelines it made, and says what they answered."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from retrieve_rerank.errors import InvalidInputError, TruncationWarning
from retrieve_rerank.models.ranking import ScorerRanker
from retrieve_rerank.ray.outcome import Fault
from retrieve_rerank.retrieval.pipeline import RetrieveRerank
from retrieve_rerank.types import Hit, Retriever

Pipelines = Mapping[str, "RetrieveRerank | Retriever"]
Stage = tuple[int, int]  # which of the retrievers, and how many it is asked for


@dataclass(frozen=True, slots=True)
class Read:
    """What a cross-encoder said of one text."""

    logit: float
    truncated: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What all pipelines said to one question.

    Attributes:
        found: Hits, by first stage.
        seconds: How long each first stage took.
        read: What each cross-encoder, by its number, said of each text.
        worker: Which worker asked.
    """

    found: Mapping[Stage, Sequence[Hit]]
    seconds: Mapping[Stage, float]
    read: Mapping[int, Mapping[str, Read]]
    worker: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What is known of a pipeline without having it.

    Attributes:
        stage: Its first stage.
        retriever: How that is described.
        count: How many passages that says it searches, if it says so.
        reader: The number of its cross-encoder; None for a first stage alone.
        cross_encoder: How that is described.
        score_threshold: The pipeline's, which is named among the notes; so is the next.
        time_budget: The pipeline's.
    """

    stage: Stage
    retriever: str
    count: int | None
    reader: int | None = None
    cross_encoder: str = ""
    score_threshold: float | None = None
    time_budget: float | None = None


class Asking:
    """An actor: makes the pipelines once, and asks them."""

    def __init__(self, make: Callable[[], Pipelines], fetch_k: int, worker: int) -> None:
        self._make = make
        self._fetch_k = fetch_k
        self._worker = worker
        self._pipelines: Pipelines | None = None
        self._retrievers: list[Retriever] = []
        self._readers: list[RetrieveRerank] = []  # one a cross-encoder

    def describe(self) -> dict[str, Pipeline] | Fault:
        """Return what the pipelines are, by name."""
        try:
            return {name: self._described(pipeline) for name, pipeline in self._made().items()}
        except Exception as error:  # noqa: BLE001 - the driver raises it
            return Fault.of(error)

    def ask(self, texts: Sequence[str]) -> dict[str, Answer] | Fault:
        """Return the answers to questions, by their texts."""
        try:
            described = {name: self._described(pipeline) for name, pipeline in self._made().items()}
            return {text: self._answer(text, described) for text in texts}
        except Exception as error:  # noqa: BLE001 - whatever a pipeline raises; the driver raises it
            return Fault.of(error)

    def _made(self) -> Pipelines:
        if self._pipelines is None:
            made = self._make()
            if not isinstance(made, Mapping) or not made:
                raise InvalidInputError(
                    f"the function must return a dict name -> RetrieveRerank or first stage, got {made!r:.80}"
                )
            for name, pipeline in made.items():
                if not isinstance(pipeline, RetrieveRerank) and not callable(getattr(pipeline, "retrieve", None)):
                    raise InvalidInputError(
                        f"pipeline {name!r} must be a RetrieveRerank or have retrieve(query, k), got "
                        f"{type(pipeline).__name__}"
                    )
            self._pipelines = made
        return self._pipelines

    def _described(self, pipeline: RetrieveRerank | Retriever) -> Pipeline:
        if not isinstance(pipeline, RetrieveRerank):
            return Pipeline((self._number(pipeline), self._fetch_k), repr(pipeline), _count(pipeline))
        return Pipeline(
            (self._number(pipeline.retriever), pipeline.fetch_k),
            repr(pipeline.retriever),
            _count(pipeline.retriever),
            self._reader(pipeline),
            repr(pipeline.cross_encoder),
            pipeline.score_threshold,
            pipeline.time_budget,
        )

    def _number(self, retriever: Retriever) -> int:
        for number, known in enumerate(self._retrievers):
            if known is retriever:
                return number
        self._retrievers.append(retriever)
        return len(self._retrievers) - 1

    def _reader(self, search: RetrieveRerank) -> int:
        for number, known in enumerate(self._readers):
            if known.cross_encoder is search.cross_encoder and _scale(known) == _scale(search):
                return number
        self._readers.append(search)
        return len(self._readers) - 1

    def _answer(self, text: str, described: Mapping[str, Pipeline]) -> Answer:
        found: dict[Stage, Sequence[Hit]] = {}
        seconds: dict[Stage, float] = {}
        read: dict[int, dict[str, Read]] = {}
        for pipeline in described.values():
            if pipeline.stage not in found:
                number, depth = pipeline.stage
                start = time.perf_counter()
                hits = self._retrievers[number].retrieve(text, depth)[:depth]
                seconds[pipeline.stage] = time.perf_counter() - start
                distinct: dict[str, Hit] = {}
                for hit in hits:
                    distinct.setdefault(hit.passage.id, hit)
                found[pipeline.stage] = list(distinct.values())
        for pipeline in described.values():
            if pipeline.reader is not None:
                self._read(text, found[pipeline.stage], pipeline.reader, read.setdefault(pipeline.reader, {}))
        return Answer(found, seconds, read, self._worker)

    def _read(self, text: str, candidates: Sequence[Hit], reader: int, known: dict[str, Read]) -> None:
        """Have a cross-encoder read what it has not."""
        hits = [hit for hit in candidates if hit.passage.text not in known]
        if not hits:
            return
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # counted instead
            ranked = self._readers[reader].ranker.rank(text, hits)
        share = (time.perf_counter() - start) / len({hit.passage.text for hit in hits})
        for hit in ranked:
            if hit.logit is not None:
                known[hit.passage.text] = Read(hit.logit, hit.truncated, share)


def _scale(search: RetrieveRerank) -> str:
    return search.ranker.scores if isinstance(search.ranker, ScorerRanker) else "logits"


def _count(retriever: Retriever) -> int | None:
    count = getattr(retriever, "count", None)
    return int(count()) if callable(count) else None
