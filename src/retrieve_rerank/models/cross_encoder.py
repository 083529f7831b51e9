"""The cross-encoder: reads the query with each passage and says how relevant it is."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from retrieve_rerank.checks import check_query, check_texts
from retrieve_rerank.errors import TruncationWarning, warn_caller
from retrieve_rerank.models.local import LocalModel
from retrieve_rerank.models.precision import Precision
from retrieve_rerank.models.ranking import Ranker, Scores

if TYPE_CHECKING:
    from langchain_core.cross_encoders import BaseCrossEncoder

    from retrieve_rerank.models.engine import CrossEngine
    from retrieve_rerank.models.loading import Checkpoint


class CrossEncoder(LocalModel["CrossEngine"], Ranker):
    """Scores and ranks passages against a query with a sentence-transformers cross-encoder.

    The model loads at the first call, once, and runs on a thread of its own: an instance may be shared by any number of
    threads and event loops. Use it as a context manager, or call `close`, to free the model early.

    Args:
        model: A hub name or a folder. The checkpoint must have a trained head with one logit.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
        precision: "auto" takes bfloat16 (or float16) where the processor or GPU computes in it, else float32.
            Logits always leave in float32. `precision` says what was chosen.
        revision: Branch, tag or commit on the hub.
        cache_folder: Where downloads are kept; None is the hub client's default.
        local_files_only: Never ask the hub.
        token: Hub token for private models.
        trust_remote_code: Run code that comes with the checkpoint. Only for repositories whose code you have read.
        prompt: Instruction put before the pair; None takes the model's saved prompt, "" takes none.
        max_length: Tokens of query and passage together; None takes the model's own limit.

    Raises:
        ModelError: At the first use, if the checkpoint cannot be loaded or is not a cross-encoder.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import CrossEncoder
        >>> with CrossEncoder(cross_encoder_path) as model:
        ...     hits = model.rank("capital of France", ["Rome is in Italy.", "Paris is the capital of France."])
        >>> hits[0].passage.text, 0.0 <= hits[0].score <= 1.0
        ('Paris is the capital of France.', True)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "cross-encoder/ms-marco-MiniLM-L6-v2",
        *,
        device: str | None = None,
        precision: Precision = "auto",
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        prompt: str | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            model,
            device=device,
            precision=precision,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=token,
            trust_remote_code=trust_remote_code,
            max_length=max_length,
        )
        self._prompt = prompt

    @property
    def settings(self) -> dict[str, str | int | bool | None]:
        """The arguments that this model was made with, but for the token: `CrossEncoder(**settings)` makes another."""
        return {**super().settings, "prompt": self._prompt}

    def score(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Score texts against a query.

        Args:
            query: Not empty. It is never cut to make room for a text.
            texts: May be empty. Equal texts are scored once.

        Returns:
            Float32 array (len(texts),) of logits, in the order of `texts`: larger is more relevant.

        Raises:
            InvalidInputError: If the query is empty or leaves no room for a text, or an item is not a string.
            ModelError: If the model cannot be loaded.
        """
        items = self._checked(query, texts)
        return self._score(query, items).logits

    async def ascore(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As `score`, without blocking the event loop."""
        items = self._checked(query, texts)
        return (await self._ascore(query, items)).logits

    def as_langchain(self) -> BaseCrossEncoder:
        """Return this model as LangChain's `BaseCrossEncoder`, for components that want one.

        Raises:
            MissingDependencyError: If langchain-core is not installed.
        """
        # By name: the core imports no framework, and this door is opened by the framework's users only.
        adapter = importlib.import_module("retrieve_rerank.langchain")._convert.LangChainCrossEncoder(self)  # noqa: SLF001
        return cast("BaseCrossEncoder", adapter)

    def _checked(self, query: str, texts: Sequence[str]) -> list[str]:
        check_query(query)
        return check_texts(texts)

    def _score(self, query: str, texts: list[str]) -> Scores:
        return self._warned(self._worker.run(self._score_here, query, texts))

    async def _ascore(self, query: str, texts: list[str]) -> Scores:
        return self._warned(await self._worker.arun(self._score_here, query, texts))

    def _score_here(self, query: str, texts: list[str]) -> Scores:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return Scores(np.zeros(0, np.float32), [])
        scores = self._loaded().score(query, distinct)
        if len(distinct) == len(texts):
            return scores
        where = {text: position for position, text in enumerate(distinct)}
        order = [where[text] for text in texts]
        return Scores(scores.logits[order], [scores.truncated[position] for position in order])

    def _warned(self, scores: Scores) -> Scores:
        if cut := sum(scores.truncated):
            warn_caller(
                f"{cut} of {len(scores.truncated)} passages are longer than {self.model!r} reads "
                f"({self._limit} tokens with the query); their ends were not scored. Split them into shorter "
                "passages",
                TruncationWarning,
            )
        return scores

    def _load(self, checkpoint: Checkpoint) -> CrossEngine:
        from retrieve_rerank.models.engine import CrossEngine
        from retrieve_rerank.models.loading import load_cross_encoder

        return CrossEngine(load_cross_encoder(checkpoint), self._asked_precision, self._prompt, self._max_length)
