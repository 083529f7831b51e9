"""The batch loop: texts in, tensors out, for both kinds of model.

Runs on one thread. Every text is first tokenised without a limit to know its true length, which tells what will be cut
and lets batches be packed with little padding; then each batch is handed to sentence-transformers.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tqdm.auto import tqdm

from retrieve_rerank.errors import InvalidInputError, ModelError
from retrieve_rerank.models.heads import keep_head_exact, read_first_token_only, to_logits
from retrieve_rerank.models.loading import rows_digest, weights_digest
from retrieve_rerank.models.precision import Choice, choose_precision
from retrieve_rerank.models.ranking import Scoring
from retrieve_rerank.models.reading import (
    ChatReading,
    PairReading,
    Reading,
    features,
    preprocess,
    readers,
    set_limits,
    token_counts,
)

# Padded tokens in one forward pass. On a CPU larger batches gain nothing and their temporaries leave the cache and make
# the allocator map and unmap them each time; a GPU needs many more to be busy.
_CPU_TOKENS = 2_048
_GPU_TOKENS = 32_768

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
    """A loaded model with its precision, device and input limit.

    Attributes:
        output: What sentence-transformers calls the model's result.
    """

    output: str

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer | sentence_transformers.CrossEncoder,
        precision: str,
        max_length: int | None,
    ) -> None:
        self.model = model
        self.device = torch.device(model.device)
        self.precision = choose_precision(precision, self.device)
        if precision == "auto" and model.transformers_model is None:
            self.precision = Choice("float32", "there is no network that another precision would make faster")
        self.limits = set_limits(model, max_length)
        self.max_length = self.limits.document
        self.token_budget = token_budget(self.device)
        # Before rounding to another precision changes them.
        self.weights, self.rows = weights_digest(model), rows_digest(model)
        # Only the network computes in low precision; pooling, normalising and everything after it stay in float32.
        model.to(torch.float32)
        read_first_token_only(model, self.output)
        if self.precision.name != "float32":
            model[0].to(getattr(torch, self.precision.name))
            model[0].register_forward_hook(_widen)

    def describe(self) -> str:
        """Return what a repr should say of a loaded model."""
        return f"{self.precision.name}: {self.precision.reason}, on {self.device}, max_length={self.max_length}"

    def run(
        self,
        inputs: Sequence[Any],
        lengths: Sequence[int],
        *,
        between: Callable[[], None] | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        """Run all inputs through the model.

        Args:
            inputs: Texts or pairs of texts; at least one.
            lengths: Tokens of each.
            between: Called after each batch.
            show_progress: Show a bar on stderr.
            **options: Passed to the model's `preprocess`.

        Returns:
            Float32 tensor on the CPU, one row an input, in their order.
        """
        rows: list[torch.Tensor] = []
        order: list[int] = []
        with tqdm(total=len(inputs), disable=not show_progress, unit="text", desc="Encoding") as bar:
            for batch, values in self.batches(inputs, lengths, **options):
                rows.append(values)
                order += batch
                bar.update(len(batch))
                if between is not None:
                    between()
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(rows)[back]

    def batches(
        self,
        inputs: Sequence[Any],
        lengths: Sequence[int],
        wanted: Callable[[int], bool] | None = None,
        **options: Any,
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Run inputs through the model batch by batch, longest first; what is not asked for is not computed.

        Takes what `run` takes, and `wanted`, which tells before each batch whether a position still is. Where a batch
        does not fit into the device's memory, it and all later ones get smaller.

        Yields:
            Positions in `inputs`, and their rows as a float32 tensor on the CPU.

        Raises:
            ModelError: If a single input does not fit into the device's memory.
        """
        limit = self.max_length
        seen = [length if limit is None else min(length, limit) for length in lengths]
        left = pack(seen, self.token_budget)[::-1]
        while left:
            batch = left.pop()
            if wanted is not None:
                batch = [position for position in batch if wanted(position)]
                if not batch:
                    continue
            rows = self._forward([inputs[position] for position in batch], options)
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
            self.token_budget = len(batch) * widest // 2
            again = [position for part in (*left, batch) for position in part]
            smaller = pack([seen[position] for position in again], self.token_budget)
            left = [[again[index] for index in part] for part in smaller][::-1]

    def _forward(self, inputs: Sequence[Any], options: dict[str, Any]) -> torch.Tensor | None:
        """Return the rows of one batch, or None if it does not fit into memory."""
        try:
            with torch.inference_mode():
                rows: torch.Tensor = self.model(features(self.model, inputs, **options))[self.output].float().cpu()
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
        precision: As `CrossEncoder` takes it.
        max_length: As `CrossEncoder` takes it.
        prompt: As `CrossEncoder` takes it.
        max_windows: How many windows of a long passage are scored; None scores its beginning.
    """

    output = "scores"

    def __init__(
        self,
        model: sentence_transformers.CrossEncoder,
        precision: str,
        max_length: int | None,
        *,
        prompt: str | None = None,
        max_windows: int | None = None,
    ) -> None:
        super().__init__(model, precision, max_length)
        self._cross_encoder = model
        self.to_logits = to_logits(model)
        if self.precision.name != "float32":
            keep_head_exact(model)
        self.prompt = _saved_prompt(model) if prompt is None else prompt
        self.max_windows = max_windows
        self._chat = "message" in getattr(model[0], "modality_config", {})
        if prompt and self._chat:
            plain, told = (ChatReading(model, "a", given, None) for given in ("", prompt))
            if plain.around == told.around:
                raise InvalidInputError(
                    "the chat template of this cross-encoder has no place for an instruction, so prompt would change "
                    "nothing; leave it out, or put what it says into the query"
                )

    def score(self, scorings: Sequence[Scoring]) -> None:
        """Score the texts of one or more queries batch by batch, as long as somebody waits for them.

        Queries without a deadline share their batches. The texts of one with a deadline are scored by themselves, few
        at a time, so that the first come first.
        """
        together = [scoring for scoring in scorings if scoring.deadline is None]
        self._score_some([self._part(scoring, range(len(scoring.texts))) for scoring in together])
        for scoring in scorings:
            if scoring.deadline is None:
                continue
            step = max(1, self.token_budget // 64)
            for start in range(0, len(scoring.texts), step):
                if not scoring.wanted:
                    break
                self._score_some([self._part(scoring, range(start, min(start + step, len(scoring.texts))))])

    def _score_some(self, parts: Sequence[_Passages]) -> None:
        pieces = [(part, piece) for part in parts for piece in range(len(part.pieces))]
        lengths = [part.lengths[piece] for part, piece in pieces]
        groups = [range(len(pieces))] if pieces else []
        if len(parts) == 1 and parts[0].scoring.deadline is not None:
            groups = consecutive(lengths, _GROUP * self.token_budget)
        for group in groups:
            pairs = [(part.scoring.query, part.pieces[piece]) for part, piece in (pieces[at] for at in group)]
            options = parts[0].reading.options  # the same for every query
            wanted = partial(_is_wanted, [pieces[at][0].scoring for at in group])
            for batch, rows in self.batches(pairs, [lengths[at] for at in group], wanted, **options):
                for index, logit in zip(batch, self.to_logits(rows).tolist(), strict=True):
                    part, piece = pieces[group[index]]
                    part.put(piece, logit)

    def _part(self, scoring: Scoring, positions: range) -> _Passages:
        return _Passages(scoring, self._reading(scoring.query), positions, self.max_windows)

    def _reading(self, query: str) -> Reading:
        reading = (ChatReading if self._chat else PairReading)(self._cross_encoder, query, self.prompt, self.max_length)
        if self.max_length is not None and reading.around >= self.max_length:
            raise InvalidInputError(
                f"the query has {reading.around} tokens{' with the prompt' if self.prompt else ''} and this "
                f"cross-encoder reads {self.max_length} in all, which leaves no room for a passage; shorten the query"
            )
        return reading


class _Passages:
    """Some texts of one query in the pieces that the model reads; a text's score is that of its best piece.

    Args:
        scoring: Takes the scores.
        reading: Of its query.
        positions: Of the texts among those of `scoring`.
        max_windows: As `CrossEngine` takes it.

    Attributes:
        pieces: All different pieces, in order; equal ones are scored once.
        lengths: Tokens of each, with all that is around it.
    """

    def __init__(self, scoring: Scoring, reading: Reading, positions: range, max_windows: int | None) -> None:
        self.scoring, self.reading, self._positions = scoring, reading, positions
        self._texts = reading.pieces([scoring.texts[position] for position in positions], max_windows)
        known = {piece: length for text in self._texts for piece, length in zip(text.pieces, text.lengths, strict=True)}
        self.pieces, self.lengths = list(known), list(known.values())
        self._owners: dict[str, list[int]] = {piece: [] for piece in known}
        for owner, text in enumerate(self._texts):
            for piece in dict.fromkeys(text.pieces):
                self._owners[piece].append(owner)
        self._missing = [len(set(text.pieces)) for text in self._texts]
        self._logits: dict[str, float] = {}

    def put(self, position: int, logit: float) -> None:
        """Take the score of a piece, and pass on those of the texts of which all pieces are now scored."""
        piece = self.pieces[position]
        self._logits[piece] = logit
        for owner in self._owners[piece]:
            self._missing[owner] -= 1
            if self._missing[owner]:
                continue
            text = self._texts[owner]
            logits = [self._logits[each] for each in text.pieces]
            # NaN beats all, for the caller to refuse; else the first among equals.
            best = max(range(len(logits)), key=lambda index: (math.isnan(logits[index]), logits[index]))
            window = None if text.windows is None else text.windows[best]
            self.scoring.put(self._positions[owner], logits[best], truncated=text.truncated, window=window)


class BiEngine(Engine):
    """Encodes texts into vectors."""

    output = "sentence_embedding"

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer,
        precision: str,
        max_length: int | None,
        *,
        normalize: bool | None,
        truncate_dim: int | None,
    ) -> None:
        if normalize is False:
            for modules in _sequences(model):
                for position in reversed([at for at, module in enumerate(modules) if isinstance(module, Normalize)]):
                    modules.pop(position)
        super().__init__(model, precision, max_length)
        self.normalize = normalize
        self.normalized = bool(normalize) or any(
            isinstance(module, Normalize) for modules in _sequences(model) for module in modules
        )
        self.truncate_dim = truncate_dim

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
        vectors = self.run(
            texts,
            lengths,
            between=between,
            show_progress=show_progress,
            prompt=prompt or None,
            task=task,
        )
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


def _is_wanted(scorings: Sequence[Scoring], position: int) -> bool:
    return scorings[position].wanted


def _saved_prompt(model: sentence_transformers.CrossEncoder) -> str:
    name = model.default_prompt_name
    return model.prompts.get(name, "") or "" if name is not None else ""


def _widen(_module: torch.nn.Module, _inputs: object, features: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }
