"""The batch loop: texts in, tensors out, for both kinds of model.

Runs on one thread. Every text is first tokenised without a limit to know its true length, which tells what will be cut
and lets batches be packed with little padding; then each batch is handed to sentence-transformers.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tqdm.auto import tqdm

from retrieve_rerank.errors import InvalidInputError, ModelError
from retrieve_rerank.models.heads import keep_head_exact, read_first_token_only, to_logits, wide
from retrieve_rerank.models.loading import AnyModel, Checkpoint, rows_digest, weights_digest
from retrieve_rerank.models.openvino import no_encoder, replace_network
from retrieve_rerank.models.precision import Choice, choose_precision
from retrieve_rerank.models.ranking import Scoring
from retrieve_rerank.models.reading import (
    ChatReading,
    PairReading,
    Pieces,
    Reading,
    features,
    preprocess,
    readers,
    set_limits,
    token_counts,
)
from retrieve_rerank.models.streams import cores, in_streams

# Padded tokens in one forward pass. On a CPU larger batches gain nothing and their temporaries leave the cache and make
# the allocator map and unmap them each time; a GPU needs many more to be busy.
_CPU_TOKENS = 2_048
_STREAM_TOKENS = 1_024  # where several batches are computed at once
_GPU_TOKENS = 32_768

# A batch with fewer tokens is not worth a thread of its own.
_LEAST_TOKENS = 128

# Batches that torch computes at once on a processor: its Python side computes for all of them in turn.
_TORCH_STREAMS = 4

# With a deadline: as many batches' worth of tokens are sorted by length together. More waste less, and let a passage
# that came late in the order be scored before one that came early.
_GROUP = 4


def token_budget(device: torch.device) -> int:
    """Return how many padded tokens one batch may hold on `device`."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group positions into batches of similar length.

    Args:
        lengths: Tokens of each text.
        budget: Padded tokens that a batch may hold: its longest length times its size. A text longer than the budget
            gets a batch of its own.

    Returns:
        Batches of positions into `lengths`, longest first (a batch that does not fit into memory fails at once).
        Every position is in exactly one batch. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    widest = 0
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * widest <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            widest = max(1, lengths[position])
    return batches


def consecutive(lengths: Sequence[int], budget: int) -> list[range]:
    """Group positions in their order: each group holds at most `budget` tokens, or a single longer text."""
    groups: list[range] = []
    start = tokens = 0
    for position, length in enumerate(lengths):
        if position > start and tokens + length > budget:
            groups.append(range(start, position))
            start, tokens = position, 0
        tokens += length
    return [*groups, range(start, len(lengths))] if lengths else []


class Engine:
    """A loaded model, which `start` lets torch or OpenVINO compute.

    Attributes:
        output: What sentence-transformers calls the model's result.
        backend: "torch" or "openvino", and why.
        precision: What the network is computed in, and why.
        streams: How many batches are computed at once.
    """

    output: str
    backend: Choice
    precision: Choice
    streams = 1
    _threads = 1  # of each stream

    def __init__(self, model: AnyModel, max_length: int | None) -> None:
        self.model = model
        self.device = torch.device(model.device)
        self.limits = set_limits(model, max_length)
        self.max_length = self.limits.document
        self.token_budget = token_budget(self.device)
        self.weights = weights_digest(model)

    def start(self, backend: Choice, precision: str, checkpoint: Checkpoint) -> None:
        """Let a backend compute the network, in the precision that the model's constructor was given.

        Raises:
            ModelError: If OpenVINO cannot compute it, or computes something else. The network is lost with it.
        """
        self.backend = backend
        if self.device.type == "cpu":
            self.streams = cores()
        if self.streams > 1:
            self.token_budget = _STREAM_TOKENS
        if backend.name == "openvino":
            _ = self.rows  # while there are weights
            self._cast(torch.float32)
            self.precision = replace_network(self.model, checkpoint, precision, self.streams)
            return
        self.precision = choose_precision(precision, self.device)
        if precision == "auto" and self.model.transformers_model is None:
            self.precision = Choice("float32", "there is no network that another precision would make faster")
        available, self.streams = self.streams, min(self.streams, _TORCH_STREAMS) if self._shareable() else 1
        self._threads = available // self.streams
        dtype: torch.dtype = getattr(torch, self.precision.name)
        if dtype != torch.float32 and any(parameter.dtype != dtype for parameter in self.model[0].parameters()):
            _ = self.rows  # before rounding changes it
        self._cast(dtype)
        if dtype != torch.float32:
            self.model[0].register_forward_hook(_widen)
            self._keep_exact()

    def _cast(self, dtype: torch.dtype) -> None:
        # Only the network computes in low precision; pooling, normalising and everything after it stay in float32.
        for position, module in enumerate(self.model):
            _cast(module, torch.float32 if position else dtype)
        read_first_token_only(self.model, self.output)

    @property
    def call_tokens(self) -> int:
        """Padded tokens that are computed at once, in all streams."""
        return self.token_budget * self.streams

    def _shareable(self) -> bool:
        """Whether several threads may be in the network at once: it is known to keep nothing of a forward pass."""
        network = self.model.transformers_model
        return type(network).__module__.startswith("transformers.models.") and no_encoder(self.model) is None

    def _keep_exact(self) -> None:
        """Let what must not be rounded compute in float32."""

    @cached_property
    def rows(self) -> str:
        """Digest of a number of every row, for which all weights are read; until then some may lie in the file only."""
        return rows_digest(self.model)

    def describe(self) -> str:
        """Return what a repr should say of a loaded model."""
        return (
            f"{self.precision.name}: {self.precision.reason}, by {self.backend.name}: {self.backend.reason}, "
            f"on {self.device}, max_length={self.max_length}"
        )

    def batches(
        self,
        inputs: Sequence[Any],
        lengths: Sequence[int],
        wanted: Callable[[int], bool] | None = None,
        **options: Any,
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Run inputs through the model batch by batch, longest first; what is not asked for is not computed.

        Where a batch does not fit into the device's memory, it and all later ones get smaller.

        Args:
            inputs: Texts or pairs of texts.
            lengths: Tokens of each.
            wanted: Tells before each batch whether a position still is.
            **options: Passed to the model's `preprocess`.

        Yields:
            Positions in `inputs`, and their rows as a float32 tensor on the CPU.

        Raises:
            ModelError: If a single input does not fit into the device's memory.
        """
        limit = self.max_length
        seen = [length if limit is None else min(length, limit) for length in lengths]
        left = pack(seen, self._budget(seen))[::-1]

        def take() -> tuple[list[int], dict[str, Any]] | None:
            while left:
                batch = left.pop()
                if wanted is not None:
                    batch = [position for position in batch if wanted(position)]
                if batch:
                    return batch, features(self.model, [inputs[position] for position in batch], **options)
            return None

        for (batch, _), rows in in_streams(take, lambda made: self._forward(made[1]), self.streams, self._threads):
            if rows is not None:
                if len(rows) != len(batch):
                    raise ModelError(f"the model was given {len(batch)} texts and returned {len(rows)} rows for them")
                yield batch, rows
                continue
            widest = max(seen[position] for position in batch)
            if len(batch) == 1:
                raise ModelError(
                    f"{self.device} has not enough memory for a single text of {widest} tokens; use a smaller "
                    "max_length, a lower precision, a smaller model, or device='cpu'"
                )
            self.token_budget = min(self.token_budget, len(batch) * widest // 2)
            again = [position for part in (*left, batch) for position in part]
            smaller = pack([seen[position] for position in again], self.token_budget)
            left[:] = [[again[index] for index in part] for part in smaller][::-1]

    def _budget(self, lengths: Sequence[int]) -> int:
        """Return how many tokens a batch may hold: as many batches as keep all streams busy to the end."""
        if self.streams == 1:
            return self.token_budget
        batches = math.ceil(sum(lengths) / self.call_tokens) * self.streams
        return min(self.token_budget, max(_LEAST_TOKENS, math.ceil(sum(lengths) / max(1, batches))))

    def _forward(self, made: dict[str, Any]) -> torch.Tensor | None:
        """Return the rows of what was made of one batch, or None if it does not fit into memory."""
        try:
            with torch.inference_mode():
                rows: torch.Tensor = self.model(made)[self.output].float().cpu()
                return rows
        except RuntimeError as error:  # which torch.OutOfMemoryError is, and what MPS raises is nothing more
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                raise
        # The error holds the tensors that filled the memory: only now it has let go of them.
        _empty_cache(self.device)
        return None


class CrossEngine(Engine):
    """Scores passages against a query.

    Args:
        model: The loaded cross-encoder.
        max_length: As `CrossEncoder` takes it.
        prompt: As `CrossEncoder` takes it.
        max_windows: How many windows of a long passage are scored; None scores its beginning.
    """

    output = "scores"

    def __init__(
        self,
        model: sentence_transformers.CrossEncoder,
        max_length: int | None,
        *,
        prompt: str | None = None,
        max_windows: int | None = None,
    ) -> None:
        super().__init__(model, max_length)
        self._cross_encoder = model
        self.to_logits = to_logits(model)
        self.prompt = _saved_prompt(model) if prompt is None else prompt
        self.max_windows = max_windows
        self._kind = ChatReading if "message" in getattr(model[0], "modality_config", {}) else PairReading
        told = self._kind(model, "a", self.prompt, None)
        self._options = told.options
        if prompt and self._kind is ChatReading and told.around == self._kind(model, "a", "", None).around:
            raise InvalidInputError(
                "the chat template of this cross-encoder has no place for an instruction, so prompt would change "
                "nothing; leave it out, or put what it says into the query"
            )

    def _keep_exact(self) -> None:
        keep_head_exact(self._cross_encoder)

    def score(self, scorings: Sequence[Scoring]) -> None:
        """Score the texts of one or more queries batch by batch, as long as somebody waits for them.

        Queries without a deadline share their batches. The texts of one with a deadline are scored by themselves, few
        at a time, so that the first come first.
        """
        together = [scoring for scoring in scorings if scoring.deadline is None]
        self._score_pieces([piece for each in together for piece in self._pieces(each, 0, len(each.texts))])
        for scoring in scorings:
            step = max(1, self.call_tokens // 64)
            for start in () if scoring.deadline is None else range(0, len(scoring.texts), step):
                if not scoring.wanted:
                    break
                pieces = self._pieces(scoring, start, start + step)
                for group in consecutive([piece.length for piece in pieces], _GROUP * self.call_tokens):
                    self._score_pieces([pieces[at] for at in group])

    def _score_pieces(self, pieces: Sequence[_Piece]) -> None:
        pairs = [(piece.scoring.query, piece.text) for piece in pieces]
        lengths = [piece.length for piece in pieces]
        for batch, rows in self.batches(pairs, lengths, lambda at: pieces[at].scoring.wanted, **self._options):
            for at, logit in zip(batch, self.to_logits(rows).tolist(), strict=True):
                for text, number in pieces[at].parts_of:
                    text.put(number, logit)

    def _reading(self, query: str) -> Reading:
        reading = self._kind(self._cross_encoder, query, self.prompt, self.max_length)
        if self.max_length is not None and reading.around >= self.max_length:
            raise InvalidInputError(
                f"the query has {reading.around} tokens{' with the prompt' if self.prompt else ''} and this "
                f"cross-encoder reads {self.max_length} in all, which leaves no room for a passage; shorten the query"
            )
        return reading

    def _pieces(self, scoring: Scoring, start: int, stop: int) -> list[_Piece]:
        """Return what is read of some texts of a query."""
        reads = self._reading(scoring.query).pieces(scoring.texts[start:stop], self.max_windows)
        pieces: dict[str, _Piece] = {}  # equal ones are scored once
        for position, read in enumerate(reads, start):
            text = _Text(scoring, position, read)
            for number, (part, length) in enumerate(zip(read.pieces, read.lengths, strict=True)):
                pieces.setdefault(part, _Piece(scoring, part, length, [])).parts_of.append((text, number))
        return list(pieces.values())


@dataclass(frozen=True, slots=True)
class _Text:
    """A text while it is scored; its score is that of its best piece."""

    scoring: Scoring
    position: int
    read: Pieces
    logits: dict[int, float] = field(default_factory=dict)

    def put(self, number: int, logit: float) -> None:
        """Take the score of a piece, and pass on the text's once all are there."""
        self.logits[number] = logit
        if len(self.logits) == len(self.read.pieces):
            # NaN beats all, for the caller to refuse; else the first among equals.
            best = max(sorted(self.logits), key=lambda each: (math.isnan(self.logits[each]), self.logits[each]))
            window = None if self.read.windows is None else self.read.windows[best]
            self.scoring.put(self.position, self.logits[best], truncated=self.read.truncated, window=window)


class _Piece(NamedTuple):
    """What the model reads at once: a text, or one of its windows."""

    scoring: Scoring
    text: str
    length: int
    parts_of: list[tuple[_Text, int]]


class BiEngine(Engine):
    """Encodes texts into vectors."""

    output = "sentence_embedding"

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer,
        max_length: int | None,
        *,
        normalize: bool | None,
        truncate_dim: int | None,
    ) -> None:
        if normalize is False:
            for modules in _sequences(model):
                for position in reversed([at for at, module in enumerate(modules) if isinstance(module, Normalize)]):
                    modules.pop(position)
        super().__init__(model, max_length)
        self.normalize = normalize
        self.normalized = bool(normalize) or any(
            isinstance(module, Normalize) for modules in _sequences(model) for module in modules
        )
        self.truncate_dim = model.truncate_dim if truncate_dim is None else truncate_dim

    def pooling(self) -> str:
        """Return how the tokens' vectors become one: the same weights with another pooling are another encoder."""
        found = []
        for part in self.model:
            if isinstance(part, Pooling):
                modes = part.pooling_mode
                found.append(modes if isinstance(modes, str) else "+".join(modes))
                if not part.include_prompt:
                    found.append("without the prompt")
        return ", ".join(found)

    def lengths(self, texts: Sequence[str], prompt: str, task: str) -> list[int]:
        """Return the tokens of each text with the prompt, uncut."""
        reader = readers(self.model).get(task, self.model[0])
        tokenizer = reader.tokenizer
        if "message" not in getattr(reader, "modality_config", {}):
            return token_counts(tokenizer, [f"{prompt}{text}" for text in texts])
        # A chat template puts words of its own around the text.
        options: dict[str, Any] = {"prompt": prompt or None, "processing_kwargs": {"text": {"truncation": False}}}
        around = preprocess(self.model, ["a"], task=task, **options)["input_ids"].shape[1]
        one, *counts = token_counts(tokenizer, ["a", *texts], add_special_tokens=False)
        return [around - one + count for count in counts]

    def encode(
        self,
        texts: list[str],
        prompt: str,
        task: str,
        *,
        between: Callable[[], None] | None = None,
        show_progress: bool = False,
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Return the vectors (n, dimension) of `texts` (at least one), and how many of them were cut."""
        limit = self.limits.query if task == "query" else self.limits.document
        around, *lengths = self.lengths(["", *texts], prompt, task)
        if limit is not None and around >= limit:
            raise InvalidInputError(
                f"this bi-encoder reads {limit} tokens, and {around} of them are there without any text: those of the "
                f"prompt, {prompt!r}, and special ones. Shorten {task}_prompt, or raise max_length"
            )
        rows: list[torch.Tensor] = []
        order: list[int] = []
        with tqdm(total=len(texts), disable=not show_progress, unit="text", desc="Encoding") as bar:
            for batch, values in self.batches(texts, lengths, prompt=prompt or None, task=task):
                rows.append(values)
                order += batch
                bar.update(len(batch))
                if between is not None:
                    between()
        vectors = torch.cat(rows)[torch.tensor(order).argsort()]
        if self.truncate_dim is not None:
            if self.truncate_dim > vectors.shape[1]:
                raise InvalidInputError(
                    f"truncate_dim is {self.truncate_dim}, and the vectors of this model have {vectors.shape[1]} "
                    "dimensions; give fewer, or leave it out"
                )
            vectors = vectors[:, : self.truncate_dim]
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        cut = 0 if limit is None else sum(length > limit for length in lengths)
        return vectors.contiguous().numpy(), cut


def _sequences(model: sentence_transformers.SentenceTransformer) -> list[Any]:
    """Return the modules of a model, and those on the routes of a router in it, as sequences."""
    return [model, *(modules for part in model for modules in getattr(part, "sub_modules", {}).values())]


def release(device: torch.device) -> None:
    """Give back the memory of a model that nothing refers to any more. Its parts refer to one another."""
    gc.collect()
    _empty_cache(device)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _saved_prompt(model: sentence_transformers.CrossEncoder) -> str:
    name = model.default_prompt_name
    return model.prompts.get(name, "") or "" if name is not None else ""


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give a module's weights another type, one by one, so that no second copy of them all is in memory.

    Rotary embeddings keep the frequencies that transformers made: a rounded one is off by whole turns in a long text.
    """
    kept = {name: buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq")}
    module.to(dtype)
    for name, buffer in kept.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, buffer)


def _widen(_module: torch.nn.Module, _inputs: object, features: dict[str, Any]) -> dict[str, Any]:
    return {name: wide(value) for name, value in features.items()}
