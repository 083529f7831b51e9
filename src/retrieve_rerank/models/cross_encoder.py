"""The cross-encoder: reads the query with each passage and says how relevant it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_query, check_texts
from retrieve_rerank.errors import InvalidInputError, ModelError, TruncationWarning, warn_caller
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
            Qwen3-Reranker does. All of them give scores on one scale.
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
            "backend": self._settings["backend"],
            "max_length": engine.max_length or 0,
            "prompt": engine.prompt,
            "max_windows": engine.max_windows or 0,
        }

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Score texts against a query.

        Args:
            query: Not empty. It is never cut to make room for a text.
            texts: May be empty. Equal texts are scored once.

        Returns:
            Float32 array (len(texts),) of logits, in the order of `texts`: larger is more relevant. The sigmoid of a
            logit is the relevance that `rank` gives.

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
        self._tell_unsure([text for scoring in scorings for text in scoring.texts])

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

    def _load(self, checkpoint: Checkpoint) -> CrossEngine:
        from retrieve_rerank.models.engine import CrossEngine
        from retrieve_rerank.models.loading import load_cross_encoder

        return CrossEngine(
            load_cross_encoder(checkpoint),
            self._torch_precision,
            self._settings["max_length"],
            prompt=self._settings["prompt"],
            max_windows=None if self._settings["long_passages"] == "truncate" else self._settings["max_windows"],
        )


def register_adapter(method: str, adapt: Callable[[CrossEncoder], object]) -> None:
    """Let a room above, which knows a framework, say what a method of `CrossEncoder` for that framework returns."""
    _adapters[method] = adapt


_adapters: dict[str, Callable[[CrossEncoder], object]] = {}


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
