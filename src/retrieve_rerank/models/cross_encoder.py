"""The cross-encoder: reads the query with each passage and says how relevant it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_iterable, check_query, check_texts, number_of
from retrieve_rerank.errors import InvalidInputError, ModelError, TruncationWarning, shown, warn_caller
from retrieve_rerank.models.calibration import UNCALIBRATED, Calibration, fit
from retrieve_rerank.models.dynamic_batching import DynamicBatching
from retrieve_rerank.models.model import DefaultName, Model
from retrieve_rerank.models.ranking import Ranker, Scoring
from retrieve_rerank.models.settings import CrossEncoderOptions, CrossEncoderSettings, Endpoint, documented

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from retrieve_rerank.models.engine import CrossEngine
    from retrieve_rerank.models.loading import Checkpoint
    from retrieve_rerank.models.server import RemoteCrossEncoder, Served

DEFAULT_MODEL = DefaultName("cross-encoder/ms-marco-MiniLM-L6-v2")


@documented(CrossEncoderSettings)
class CrossEncoder(Model["CrossEngine", "RemoteCrossEncoder"], Ranker):
    """Scores and ranks passages against a query with a sentence-transformers cross-encoder.

    The model loads at the first call, once, and runs on a thread of its own: an instance may be shared by any number of
    threads and event loops. Calls that wait at the same time share batches, so their logits may differ from those of
    calls made one by one in the last digits that the precision has. Use it as a context manager, or call `close`, to
    free the model early.

    Args:
        model: A hub name or a folder. The checkpoint must have a trained head: one label; or two, of which the
            names in its config say which one means relevant; or a language model that answers yes or no, as
            Qwen3-Reranker does. What its scores mean depends on its training: see `calibration`.
        **settings: Every other argument is explained in `retrieve_rerank.models.settings`.

    A server cuts what is too long: of query and passage the longer one. Text Embeddings Inference and vLLM say which
    passages they had to cut; Infinity and others do not, of which a `TruncationWarning` tells once.

    Raises:
        ModelError: At the first use, if the checkpoint cannot be loaded or is not a cross-encoder.
        RemoteError: At any use, if the server cannot be reached, is too slow or answers something unusable.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import CrossEncoder
        >>> with CrossEncoder(cross_encoder_path) as model:
        ...     hits = model.rank("capital of France", ["Rome is in Italy.", "Paris is the capital of France."])
        >>> hits[0].passage.text, 0.0 <= hits[0].score <= 1.0
        ('Paris is the capital of France.', True)
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **settings: Unpack[CrossEncoderOptions]) -> None:
        super().__init__(model, CrossEncoderSettings.of(settings))

    def _start(self) -> None:
        super()._start()
        self._batching = DynamicBatching()
        self._stated: Calibration | None = None  # by the checkpoint, once it has been loaded

    @property
    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Facts that tell this model's scores from another's. Loads the model.

        `weights` is a digest of them. Of a model behind a server only its name is known, and its revision where the
        server tells it: that the server still serves the same weights under that name cannot be seen.
        """
        if self._remote is not None:
            served = self._known()
            known = {
                "revision": served.revision,
                "precision": served.dtype,
                "max_length": served.max_length,
                "server_scores": self._settings["server_scores"],
            }
            told = {name: value for name, value in known.items() if value is not None}
            return {"served_by": served.product, "model": served.model, **told}
        engine = self._worker.run(self._loaded)
        return {
            "weights": engine.weights,
            "precision": engine.precision.name,
            "backend": engine.backend.name,
            "max_length": engine.max_length or 0,
            "prompt": engine.prompt,
            "max_windows": engine.max_windows or 0,
        }

    @property
    def calibration(self) -> Calibration:
        """What makes of a logit the relevance that a hit has as its `score`, and where that comes from.

        It is the one that was given; else what the checkpoint states (an activation, two labels, yes or no) or its
        family does (zerank's logits are five times as large as others'). If neither says anything, as distilled models
        do not, a relevance is no probability: fit one with `calibrate`. Loads the model, if none was given.
        """
        if (given := self._settings["calibration"]) is not None:
            return Calibration(*given)
        if self._remote is not None:
            return UNCALIBRATED
        if self._stated is None:
            self._worker.run_soon(self._loaded)
        return self._stated or UNCALIBRATED

    def calibrate(
        self, pairs: Iterable[tuple[str, str, bool | float]], *, precision: float | None = None
    ) -> Calibration:
        """Fit a calibration to judged pairs. This model stays as it is: give the result to another as `calibration=`.

        Args:
            pairs: Query, passage, and whether it is relevant: True or False, or a share in [0, 1]. They should be what
                the model will see: a first stage's candidates for questions as they are asked, the irrelevant ones
                among them. Weak labels do, such as a question that was made of a passage. 50 questions are a start.
            precision: Also look for the `threshold` from which on this share of the passages is relevant.

        Returns:
            The calibration; its `interval` tells how sure it is.

        Raises:
            InvalidInputError: If a pair cannot be used, or the pairs do not tell: all are relevant, or none is.
            ModelError: If the model cannot be loaded, or gives NaN.

        Example:
            >>> from retrieve_rerank import CrossEncoder
            >>> judged = [("capital of Italy", "Rome.", True), ("capital of Italy", "Bread is good.", False)]
            >>> with CrossEncoder(cross_encoder_path) as model:
            ...     calibration = model.calibrate(judged)
            >>> calibration.pairs, calibration.temperature > 0
            (2, True)
        """
        judged = _Judged.of(pairs, precision)
        self.score_all(judged.scorings)
        return judged.fit(self.model)

    async def acalibrate(
        self, pairs: Iterable[tuple[str, str, bool | float]], *, precision: float | None = None
    ) -> Calibration:
        """As `calibrate`, without blocking the event loop."""
        judged = _Judged.of(pairs, precision)
        await self.ascore_all(judged.scorings)
        return judged.fit(self.model)

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Score texts against a query.

        Args:
            query: Not empty. It is never cut to make room for a text.
            texts: May be empty. Equal texts are scored once.

        Returns:
            Float32 array (len(texts),) of logits, in the order of `texts`: larger is more relevant. `calibration`
            makes of a logit the relevance that `rank` gives.

        Raises:
            InvalidInputError: If the query is empty or leaves no room for a text, or an item is not a string.
            ModelError: If the model cannot be loaded, or gives NaN.
            RemoteError: If it is behind a server that fails.
        """
        items, scoring = _checked(query, texts)
        self.score_all([scoring])
        return _in_order_of(items, scoring)

    async def ascore(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As `score`, without blocking the event loop. A cancelled call stops after the batch under way."""
        items, scoring = _checked(query, texts)
        await self.ascore_all([scoring])
        return _in_order_of(items, scoring)

    def as_langchain(self) -> Any:
        """Return this model as LangChain's `BaseCrossEncoder`, for components that want one.

        `import retrieve_rerank.langchain` comes first: it knows LangChain's classes.

        Raises:
            InvalidInputError: If that was not imported.
        """
        if "as_langchain" not in _adapters:
            raise InvalidInputError(
                "as_langchain() needs retrieve_rerank.langchain, which has not been imported: import it first; where "
                'that fails, pip install "retrieve-rerank[langchain]"'
            )
        return _adapters["as_langchain"](self)

    def __repr__(self) -> str:
        plain = super().__repr__()
        if (given := self._settings["calibration"]) is not None:
            plain = f"{plain[:-1]}, calibration={given})"
        if self._settings["long_passages"] == "truncate":
            return plain
        return f"{plain[:-1]}, long_passages='windows', max_windows={self._settings['max_windows']})"

    def _score(self, scorings: Sequence[Scoring]) -> None:
        deadline = scorings[0].deadline
        with self._batching.joined(scorings):
            if self._remote is None:
                self._worker.run_until(deadline, self._score_here, scorings)
            else:
                self._remote.run_until(deadline, lambda remote: remote.score(scorings))
        self._check(scorings)

    async def _ascore(self, scorings: Sequence[Scoring]) -> None:
        deadline = scorings[0].deadline
        with self._batching.joined(scorings):
            if self._remote is None:
                await self._worker.arun_until(deadline, self._score_here, scorings)
            else:
                await self._remote.arun_until(deadline, lambda remote: remote.score(scorings))
        self._check(scorings)

    def _check(self, scorings: Sequence[Scoring]) -> None:
        for scoring in scorings:
            scoring.check()
        self._tell_once([text for scoring in scorings for text in scoring.texts])

    def _score_here(self, scorings: Sequence[Scoring]) -> None:
        if any(scoring.texts and not scoring.ended for scoring in scorings):
            self._batching.score(self._loaded(), scorings)

    def _ready(self) -> None:
        if self._remote is None and self._engine is None:  # a server that does not answer must not outlast the budget
            self._worker.run(self._loaded)

    async def _aready(self) -> None:
        if self._remote is None and self._engine is None:
            await self._worker.arun(self._loaded)

    def _tell(self, truncated: int, count: int) -> None:
        if truncated:
            many = f"{truncated} of {count} passages"
            limit = None if self._limits is None else self._limits.document
            if self._endpoint is not None:
                what = (
                    f"{many} were too long for {self.model!r} at {self._endpoint.url}, which cut them; their ends were "
                    "not scored. Split them into shorter passages"
                )
            elif self._settings["long_passages"] == "truncate":
                what = (
                    f"{many} are longer than {self.model!r} reads ({limit} tokens with the query); their ends "
                    "were not scored. Split them into shorter passages, or use long_passages='windows'"
                )
            else:
                what = (
                    f"{many} have more than {self._settings['max_windows']} windows for {self.model!r}; parts of "
                    "them were not scored. Split them into shorter passages, or raise max_windows"
                )
            warn_caller(what, TruncationWarning)

    def _connection(self, endpoint: Endpoint) -> Callable[[], RemoteCrossEncoder]:
        from retrieve_rerank.models.server import RemoteCrossEncoder

        return partial(RemoteCrossEncoder, endpoint, self._wanted, self._settings["server_scores"])

    def _described(self, served: Served) -> str:
        resource = None if self._remote is None else self._remote.resource
        scale = "" if resource is None else f", gives {resource.scale}"
        return f"{super()._described(served)}{scale}"

    def _make_engine(self, checkpoint: Checkpoint) -> CrossEngine:
        from retrieve_rerank.models.engine import CrossEngine
        from retrieve_rerank.models.heads import stated_calibration
        from retrieve_rerank.models.loading import load_cross_encoder

        model = load_cross_encoder(checkpoint)
        self._stated = stated_calibration(model, checkpoint)
        if model.default_prompt_name is None and self._settings["prompt"] is None:
            unused = [f"{name} = {shown(prompt)}" for name, prompt in model.prompts.items() if prompt]
            if unused:
                self._untold.append(
                    f"{self.model!r} has saved prompts and does not say that one of them is its default, so none is "
                    f'applied: {", ".join(unused)}. Give the right one as prompt, or "" for none'
                )
        return CrossEngine(
            model,
            self._settings["max_length"],
            prompt=self._settings["prompt"],
            max_windows=None if self._settings["long_passages"] == "truncate" else self._settings["max_windows"],
        )


def register_adapter(method: str, adapt: Callable[[CrossEncoder], object]) -> None:
    """Let a room above, which knows a framework, say what a method of `CrossEncoder` for that framework returns."""
    _adapters[method] = adapt


_adapters: dict[str, Callable[[CrossEncoder], object]] = {}


@dataclass(frozen=True, slots=True)
class _Judged:
    """Judged pairs, by query."""

    labels: dict[str, dict[str, float]]
    scorings: list[Scoring]
    precision: float | None

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str, bool | float]], precision: float | None) -> _Judged:
        """Return pairs, checked. Of a pair that is given twice, the last label counts."""
        if precision is not None and not 0 < number_of(precision) <= 1:
            raise InvalidInputError(f"precision must be a share above 0 and at most 1, got {shown(precision)}")
        labels: dict[str, dict[str, float]] = {}
        for position, pair in enumerate(check_iterable(pairs, "pairs", "(query, passage, relevant)")):
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 3:
                raise InvalidInputError(f"pairs[{position}] must be (query, passage, relevant), got {shown(pair)}")
            query, text, relevant = pair
            label = number_of(float(relevant) if isinstance(relevant, (bool, np.bool_)) else relevant)
            if not 0 <= label <= 1:
                raise InvalidInputError(
                    f"pairs[{position}] must say True or False, or a share in [0, 1], got {shown(relevant)}"
                )
            check_texts([text], f"the passage of pairs[{position}]")
            labels.setdefault(check_query(query, f"the query of pairs[{position}]"), {})[text] = label
        return cls(labels, [Scoring(query, list(texts)) for query, texts in labels.items()], precision)

    def fit(self, model: str) -> Calibration:
        logits = [_in_order_of(scoring.texts, scoring).astype(np.float64) for scoring in self.scorings]
        labels = [np.array(list(texts.values())) for texts in self.labels.values()]
        return fit(logits, labels, precision=self.precision, source=f"fitted to {model}")


def _checked(query: str, texts: Sequence[str]) -> tuple[list[str], Scoring]:
    check_query(query)
    items = check_texts(texts)
    return items, Scoring(query, list(dict.fromkeys(items)))


def _in_order_of(texts: Sequence[str], scoring: Scoring) -> npt.NDArray[np.float32]:
    of = {text: score.logit for text, score in zip(scoring.texts, scoring.scores, strict=True) if score is not None}
    logits = np.array([of[text] for text in texts], np.float64)
    if len(bad := np.flatnonzero(np.isnan(logits))):
        raise ModelError(
            f"the cross-encoder gave NaN for texts[{bad[0]}], which is no score; check the weights, or use "
            "precision='float32'"
        )
    return logits.astype(np.float32)
