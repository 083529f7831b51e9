"""The bi-encoder: turns queries and passages into vectors that a store can search."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from retrieve_rerank.checks import check_flag, check_texts
from retrieve_rerank.errors import InvalidInputError, ModelError, TruncationWarning, shown, warn_caller
from retrieve_rerank.models.model import DefaultName, Model
from retrieve_rerank.models.settings import BiEncoderOptions, BiEncoderSettings, Endpoint, documented
from retrieve_rerank.types import Metric

if TYPE_CHECKING:
    from typing_extensions import Never, Unpack

    from retrieve_rerank.models.engine import BiEngine
    from retrieve_rerank.models.loading import Checkpoint
    from retrieve_rerank.models.server import RemoteBiEncoder

Task: TypeAlias = Literal["query", "document"]
Encoded: TypeAlias = tuple[npt.NDArray[np.float32], int]  # vectors (n, dimension), and how many texts were cut

DEFAULT_MODEL = DefaultName("sentence-transformers/multi-qa-mpnet-base-dot-v1")
# The names under which a checkpoint may have saved a task's prompt, in the order of sentence-transformers, and words
# in other names that speak of the task.
_PROMPT_NAMES: dict[Task, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_PROMPT_WORDS: dict[Task, tuple[str, ...]] = {"query": ("query", "question"), "document": ("doc", "passage", "corpus")}

_FEW = 32  # queries; more of them are a long call of their own
_SPLIT, _SHORTEN = "Split them into shorter passages", "Shorten the queries"


@documented(BiEncoderSettings)
class BiEncoder(Model["BiEngine", "RemoteBiEncoder"]):
    """Encodes queries and passages with a sentence-transformers bi-encoder.

    The model loads at the first call, once, and runs on a thread of its own: an instance may be shared by any number of
    threads and event loops. Use it as a context manager, or call `close`, to free the model early.

    Args:
        model: A hub name or a folder.
        **settings: Every other argument is explained in `retrieve_rerank.models.settings`.

    Text Embeddings Inference and vLLM say which texts they had to cut; Infinity and others do not, of which a
    `TruncationWarning` tells once.

    Raises:
        ModelError: At the first use, if the checkpoint cannot be loaded or is not a bi-encoder.
        RemoteError: At any use, if the server cannot be reached, is too slow or answers something unusable.
        InvalidInputError: If an argument cannot be used.

    Example:
        >>> from retrieve_rerank import BiEncoder
        >>> with BiEncoder(bi_encoder_path) as encoder:
        ...     vectors = encoder.encode_documents(["Paris is the capital of France.", "Rome is in Italy."])
        ...     encoder.metric, vectors.shape == (2, encoder.dimension)
        ('cosine', True)
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **settings: Unpack[BiEncoderOptions]) -> None:
        super().__init__(model, BiEncoderSettings.of(settings))
        self._facts: dict[str, str | int | float | bool] | None = None

    @property
    def dimension(self) -> int:
        """Length of every vector. Loads the model."""
        return cast(int, self.fingerprint["dimension"])

    @property
    def metric(self) -> Metric:
        """What the model's vectors are compared by: "cosine", "dot" or "euclidean". Loads the model."""
        if self._remote is not None:
            return self._settings["metric"] or self._remote.run(lambda remote: remote.metric())
        name = self._worker.run_soon(self._loaded).model.similarity_fn_name
        if name not in ("cosine", "dot", "euclidean"):
            raise ModelError(
                f"{self.model!r} compares its vectors by {name!r}, which no index here can search; expected cosine, "
                "dot or euclidean. Choose another model"
            )
        return cast(Metric, name)

    @property
    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Facts that tell this encoder's passage vectors from another's. Loads the model.

        `weights` and `rows` are digests of the weights, so the same checkpoint under another name or folder is
        recognised; `model` is there to be read. The query prompt is left out: it does not change what is stored. A
        server tells less: there is no `weights`, and what it does not tell is missing.
        """
        if self._remote is not None:
            return self._remote.run(lambda remote: remote.facts())
        return dict(self._worker.run_soon(self._fingerprint))

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Encode queries, with the model's query prompt.

        Args:
            texts: May be empty.

        Returns:
            Float32 array (len(texts), dimension).

        Raises:
            InvalidInputError: If an item is not a usable string.
            ModelError: If the model cannot be loaded or gives NaN.
        """
        items = check_texts(texts)
        here, there = self._encoding(items, "query")
        return self._warned(*self._run(here, there, short=len(items) <= _FEW), _SHORTEN, items)

    async def aencode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As `encode_queries`, without blocking the event loop."""
        items = check_texts(texts)
        here, there = self._encoding(items, "query")
        return self._warned(*await self._arun(here, there, short=len(items) <= _FEW), _SHORTEN, items)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> npt.NDArray[np.float32]:
        """Encode passages, with the model's document prompt.

        Args:
            texts: May be empty.
            show_progress: Show a bar on stderr.

        Returns:
            Float32 array (len(texts), dimension).

        Raises:
            InvalidInputError: If an item is not a usable string.
            ModelError: If the model cannot be loaded or gives NaN.
        """
        items = check_texts(texts)
        with self._bar(items, show_progress=show_progress) as bar:
            here, there = self._encoding(items, "document", bar, show_progress=show_progress)
            return self._warned(*self._run(here, there), _SPLIT, items)

    async def aencode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> npt.NDArray[np.float32]:
        """As `encode_documents`, without blocking the event loop."""
        items = check_texts(texts)
        with self._bar(items, show_progress=show_progress) as bar:
            here, there = self._encoding(items, "document", bar, show_progress=show_progress)
            return self._warned(*await self._arun(here, there), _SPLIT, items)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each passage is, uncut, with the document prompt: `max_length` of them are read.

        Args:
            texts: May be empty.

        Raises:
            InvalidInputError: If an item is not a usable string, or if the model runs at an inference server.
            ModelError: If the model cannot be loaded.
        """
        items = check_texts(texts)
        if self._remote is not None:
            raise InvalidInputError(
                f"the tokenizer of {self.model!r} is at the inference server, which does not count tokens for others; "
                "count with a BiEncoder of the same model and without endpoint (only its tokenizer has work to do)"
            )
        return self._worker.run_soon(self._count_tokens, items)

    def _bar(self, texts: Sequence[str], *, show_progress: bool) -> tqdm[Never]:
        """Return a bar for what a server encodes; a model in this process shows its own."""
        quiet = not check_flag(show_progress, "show_progress") or self._remote is None
        return tqdm(total=len(texts), disable=quiet, unit="text", desc="Encoding")

    def _encoding(
        self, texts: list[str], task: Task, bar: tqdm[Never] | None = None, *, show_progress: bool = False
    ) -> tuple[Callable[[], Encoded], Callable[[RemoteBiEncoder], Coroutine[Any, Any, Encoded]]]:
        """Return the call that encodes texts on the model's thread, and the one that has a server do it."""
        # A short call lets nobody in.
        between = None if task == "query" and len(texts) <= _FEW else self._worker.between
        here = partial(self._encode, texts, task, between, show_progress=show_progress)
        return here, lambda remote: remote.encode(texts, task, None if bar is None else bar.update)

    # Everything below runs on the worker's thread, but for `_warned`.

    def _count_tokens(self, texts: list[str]) -> list[int]:
        return self._loaded().lengths(texts, self._prompt("document"), "document")

    def _encode(
        self, texts: list[str], task: Task, between: Callable[[], None] | None, *, show_progress: bool
    ) -> Encoded:
        if not texts:
            return np.zeros((0, cast(int, self._fingerprint()["dimension"])), np.float32), 0
        prompt = self._prompt(task)
        vectors, cut = self._loaded().encode(texts, prompt, task, between=between, show_progress=show_progress)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ModelError(
                f"{self.model!r} gave NaN or infinity for texts[{row}]; check the weights, or use precision='float32'"
            )
        return vectors, cut

    def _warned(
        self, vectors: npt.NDArray[np.float32], cut: int, advice: str, texts: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        self._tell_once(texts)
        self._tell_cut(advice, cut, len(vectors))
        return vectors

    def _tell_cut(self, advice: str, cut: int, total: int) -> None:
        """Warn of texts that were longer than the model reads: at once, or where `one_truncation_warning` ends."""
        kept = _truncations.get()
        if kept is not None and kept.open:
            before = kept.counts.get((self, advice), (0, 0))
            kept.counts[self, advice] = before[0] + cut, before[1] + total
        elif cut:
            limit = None if self._served is None else self._served.max_length
            if self._limits is not None:
                limit = self._limits.query if advice == _SHORTEN else self._limits.document
            warn_caller(
                f"{cut} of {total} texts are longer than {self.model!r} reads ({limit} tokens); their ends are not in "
                f"the vectors. {advice}",
                TruncationWarning,
            )

    def _prompt(self, task: Task) -> str:
        given: str | None = self._settings[f"{task}_prompt"]
        return _saved_prompt(self._loaded().model.prompts, task) if given is None else given

    def _unused_prompts(self, saved: Mapping[str, str | None]) -> list[str]:
        """Return the names of saved prompts that seem meant for queries or passages, which have no other prompt."""
        missing = [
            task
            for task in _PROMPT_NAMES
            if self._settings[f"{task}_prompt"] is None and not _saved_prompt(saved, task)
        ]
        known = {name for names in _PROMPT_NAMES.values() for name in names}
        others = [name for name, prompt in saved.items() if prompt and name not in known]
        if len(missing) == len(_PROMPT_NAMES):  # nothing at all would be applied, so any of them may be meant
            return others
        return [
            name for name in others if any(word in name.lower() for task in missing for word in _PROMPT_WORDS[task])
        ]

    def _fingerprint(self) -> dict[str, str | int | float | bool]:
        engine = self._loaded()  # which forgets them: another model may lie in the folder by now
        if self._facts is None:
            probe, _ = engine.encode(["dimension"], self._prompt("document"), "document", show_progress=False)
            self._facts = {
                "model": self.model,
                "weights": engine.weights,
                "rows": engine.rows,
                "dimension": probe.shape[1],
                "document_prompt": self._prompt("document"),
                "normalize": engine.normalized,
                "max_length": engine.max_length or 0,
            }
            if pooling := engine.pooling():
                self._facts["pooling"] = pooling
        return self._facts

    def _connection(self, endpoint: Endpoint) -> Callable[[], RemoteBiEncoder]:
        from retrieve_rerank.models.server import RemoteBiEncoder

        prompts = (self._settings["query_prompt"], self._settings["document_prompt"])
        vectors = [self._settings[name] for name in ("normalize", "truncate_dim", "metric")]
        return partial(RemoteBiEncoder, endpoint, self._wanted, prompts, *vectors)

    def _make_engine(self, checkpoint: Checkpoint) -> BiEngine:
        from retrieve_rerank.models.engine import BiEngine
        from retrieve_rerank.models.loading import load_bi_encoder, plain_encoder

        self._facts = None
        model = load_bi_encoder(checkpoint)
        if plain := plain_encoder(model, checkpoint):
            self._untold.append(plain)
        if unused := self._unused_prompts(model.prompts):
            self._untold.append(
                f"{self.model!r} has saved prompts that are not applied, because their names do not say for which "
                f"texts they are: {', '.join(f'{name} = {shown(model.prompts[name])}' for name in unused)}. Give the "
                'right ones as query_prompt and document_prompt, or "" for none'
            )
        return BiEngine(
            model,
            self._settings["max_length"],
            normalize=self._settings["normalize"],
            truncate_dim=self._settings["truncate_dim"],
        )


def _saved_prompt(saved: Mapping[str, str | None], task: Task) -> str:
    """Return the prompt that a checkpoint has for a task: sentence-transformers saves an empty one beside the real."""
    return next((prompt for name in _PROMPT_NAMES[task] if (prompt := saved.get(name))), "")


@dataclass
class _Truncations:
    """How many texts each encoder had to cut, of how many, by what can be done about it."""

    counts: dict[tuple[BiEncoder, str], tuple[int, int]] = field(default_factory=dict)
    open: bool = True  # tasks that the call started may outlive it


_truncations: ContextVar[_Truncations | None] = ContextVar("_truncations", default=None)


@contextmanager
def one_truncation_warning() -> Iterator[None]:
    """Warn once, at the end, of all texts that encoders had to cut inside, instead of at each batch.

    Of a call that fails, too; where warnings are errors, its own error stays the one that is raised.
    """
    before, kept = _truncations.get(), _Truncations()
    _truncations.set(kept)
    try:
        yield
    except BaseException:
        with suppress(TruncationWarning):
            _tell_all(before, kept)
        raise
    _tell_all(before, kept)


def _tell_all(before: _Truncations | None, kept: _Truncations) -> None:
    kept.open = False
    _truncations.set(before)
    for (encoder, advice), (cut, total) in kept.counts.items():
        encoder._tell_cut(advice, cut, total)  # noqa: SLF001 - of this module
