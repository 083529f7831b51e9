"""How texts are read: how many tokens of them, what stands around a passage, where it is cut, and into which windows.

Windows are overlapping pieces of a long passage that begin and end at sentence borders; the best one counts. All that
uses a tokenizer runs on the model's thread.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

import sentence_transformers
import torch

from retrieve_rerank.errors import InvalidInputError, ModelError
from retrieve_rerank.models.loading import AnyModel, network_in

Span: TypeAlias = tuple[int, int]
T = TypeVar("T")

_UNLIMITED = 10**9  # tokens; a tokenizer without a limit says 10**30
_WINDOW, _OVERLAP = 192, 48  # tokens of a window, and tokens that neighbours share
_NEAR = 8  # tokens by which a sum of parts may differ from the whole, where parts grow together at their borders

# A word of a tokenizer that does not tell where its tokens are: what stands between blanks, in scripts without blanks a
# character, and of very long ones a part.
_NO_BLANKS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_NO_BLANKS}]|[^\s{_NO_BLANKS}]{{1,16}}")

# Where the next sentence may begin: after an end mark and white space, after an end mark of a script that needs no
# white space, or in a new line.
_BORDER = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？｡][”’」』）]*\s*|\n\s*")


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens that are read of a passage (in a cross-encoder together with the query), and of a query; None is all."""

    document: int | None
    query: int | None


def longest_input(module: torch.nn.Module) -> int | None:
    """Return how many tokens the network in a module can take, or None where it has no limit."""
    network = network_in(module)
    if network is None:
        return None
    for name, part in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            # RoBERTa and MPNet count positions from after the padding index.
            return int(part.num_embeddings) - (0 if part.padding_idx is None else part.padding_idx + 1)
    positions = getattr(network.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def readers(model: AnyModel) -> dict[str, Any]:
    """Return what reads the texts of a model, by task; under "" what reads those of every task."""
    # A router reads queries by one network and passages by another.
    routes: Any = getattr(model[0], "sub_modules", None)
    return {"": model[0]} if routes is None else {name: modules[0] for name, modules in routes.items()}


def set_limits(model: AnyModel, max_length: int | None) -> Limits:
    """Set how many tokens of a text `model` reads; None keeps what the checkpoint says. Return the limits in force.

    Raises:
        InvalidInputError: If the network has fewer positions than `max_length`, or takes no limit.
    """
    found = {name: _set(reader, max_length) for name, reader in readers(model).items()}
    if max_length is not None and all(limits is None for limits in found.values()):
        first = next(iter(readers(model).values()))
        raise InvalidInputError(
            f"max_length is {max_length}, and {type(first).__name__}, which reads the texts of this model, takes no "
            "limit; leave max_length out"
        )
    known = {name: limits or Limits(None, None) for name, limits in found.items()}
    document, query = (known.get(name) or known.get("") or Limits(None, None) for name in ("document", "query"))
    return Limits(document.document, query.query)


def _set(reader: Any, max_length: int | None) -> Limits | None:
    """Set the limits of what reads texts; None if it takes none, as a table of word vectors."""
    positions = longest_input(reader)
    if max_length is not None and positions is not None and max_length > positions:
        raise InvalidInputError(
            f"max_length is {max_length}, but this model has positions for {positions} tokens at most"
        )
    given = max_length or getattr(reader, "max_seq_length", None)
    known = [value for value in (given, positions) if value and value < _UNLIMITED]
    if not known or getattr(reader, "tokenizer", None) is None:
        return None if max_length is not None else Limits(None, None)
    limit = int(min(known))
    try:
        # A tokenizer without a limit of its own would otherwise hand the network more than it has positions for.
        reader.max_seq_length = limit
    except AttributeError:
        return None
    return Limits(_of_task(reader, "document_length", limit), _of_task(reader, "query_length", limit))


def _of_task(reader: Any, name: str, limit: int) -> int:
    """Return the limit of one kind of texts, for which a checkpoint may have another one."""
    own = getattr(reader, name, None)
    if own is None:
        return limit
    setattr(reader, name, min(int(own), limit))
    return min(int(own), limit)


def token_counts(
    tokenizer: Any, first: Sequence[str], second: Sequence[str] | None = None, *, add_special_tokens: bool = True
) -> list[int]:
    """Return the untruncated number of tokens of each text, or pair of texts."""
    if not first:
        return []
    if not callable(tokenizer):  # a bare `tokenizers.Tokenizer`, as static embedding models have
        return [len(encoding) for encoding in tokenizer.encode_batch(list(first))]
    arguments = [list(first)] if second is None else [list(first), list(second)]
    # Same thread as every other use of the tokenizer, so changing its truncation here disturbs nobody.
    encoded = tokenizer(
        *arguments,
        add_special_tokens=add_special_tokens,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [len(ids) for ids in encoded["input_ids"]]


def preprocess(model: Any, inputs: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Return what a model of sentence-transformers makes of texts or pairs of texts.

    Raises:
        ModelError: If its chat template cannot take them.
    """
    try:
        made: dict[str, Any] = model.preprocess(inputs, **options)
    except ValueError as error:
        what = "a query with a passage" if isinstance(inputs[0], tuple) else "texts"
        reason = str(error).split(". ")[0]
        raise ModelError(f"this model cannot read {what}: {reason}. Mend the chat template in its folder") from error
    return made


def features(model: Any, inputs: Sequence[Any], **options: Any) -> dict[str, Any]:
    """As `preprocess`, on the model's device."""
    made = preprocess(model, inputs, **options)
    return {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in made.items()}


def token_spans(tokenizer: Any, text: str) -> list[Span]:
    """Return the character span of each token of a text, without special tokens; that of a space may be empty."""
    if not tokenizer.is_fast:  # it does not know: a word stands for each of its tokens
        words = [match.span() for match in _WORD.finditer(text)]
        counts = token_counts(tokenizer, [text[slice(*word)] for word in words], add_special_tokens=False)
        return [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    encoded = tokenizer(
        text, add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True, verbose=False
    )
    spans: list[Span] = []
    for start, end in encoded["offset_mapping"]:  # in order, also where a tokenizer puts what it adds at 0
        begin = max(start, spans[-1][0] if spans else 0)
        spans.append((begin, max(begin, end)))
    return spans


@dataclass(frozen=True, slots=True)
class Pieces:
    """How one passage is read: whole, or in windows.

    Attributes:
        pieces: The texts that the model reads; at least one.
        lengths: Tokens of each, with all that is around it.
        windows: Their character spans in the passage, or None where the passage is read as one piece.
        truncated: Whether a part of the passage is in no piece.
    """

    pieces: tuple[str, ...]
    lengths: tuple[int, ...]
    windows: tuple[Span, ...] | None = None
    truncated: bool = False


class Reading(ABC):
    """One query with its instruction, ready to be read with passages.

    Attributes:
        around: Tokens of the input that are not the passage.
        limit: Tokens of an input at most, or None.
        options: What the model's `preprocess` is given.
    """

    around: int
    options: dict[str, Any]

    def __init__(self, model: sentence_transformers.CrossEncoder, query: str, prompt: str, limit: int | None) -> None:
        self._model = model
        self._query = query
        self._prompt = prompt
        self.limit = limit

    @abstractmethod
    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of the whole input for each passage, uncut."""

    @abstractmethod
    def fit(self, text: str) -> str:
        """Return a passage that is too long in such a form that only its end is lost."""

    def pieces(self, texts: Sequence[str], max_windows: int | None) -> list[Pieces]:
        """Return each passage as it is read.

        Args:
            texts: Passages.
            max_windows: How many windows of a long one are read at most; None reads its beginning.
        """
        return [
            self._pieces(text, length, max_windows) for text, length in zip(texts, self.lengths(texts), strict=True)
        ]

    def _pieces(self, text: str, length: int, max_windows: int | None) -> Pieces:
        if self.limit is None or length <= self.limit:
            return Pieces((text,), (length,))
        # A window's own tokens may be one or two more than they were in the whole text; of some scripts, many.
        size = min(_WINDOW, max(1, self.limit - self.around - 2))
        windows = max_windows and split(text, self.spans(text), size, min(_OVERLAP, size // 4))
        if not max_windows or not windows:
            lost = bool(text.strip())  # of blanks alone there are no windows, and nothing is lost
            return Pieces((self.fit(text),), (self.limit,), truncated=lost)
        fitting = self._fitting(text, windows, size, self.limit)
        taken, lengths = zip(*spread(fitting, max_windows), strict=True)
        truncated = len(taken) < len(fitting) or max(lengths) > self.limit
        return Pieces(tuple(text[start:end] for start, end in taken), lengths, taken, truncated)

    def _fitting(self, text: str, windows: Sequence[Span], size: int, limit: int) -> list[tuple[Span, int]]:
        """Return windows with their tokens, all of which the model reads: what is too long by itself is cut again."""
        fitting: list[tuple[Span, int]] = []
        lengths = self.lengths([text[start:end] for start, end in windows])
        for (start, end), length in zip(windows, lengths, strict=True):
            if length <= limit or end - start == 1:
                fitting.append(((start, end), length))
                continue
            piece, half = text[start:end], max(1, size // 2)
            parts = split(piece, self.spans(piece), half, half // 4)
            if len(parts) < 2:  # its tokens do not tell where
                middle = (end - start) // 2
                parts = [(0, middle), (middle, end - start)]
            fitting += self._fitting(text, [(start + begin, start + stop) for begin, stop in parts], half, limit)
        return fitting

    def spans(self, text: str) -> list[Span]:
        """Return the character span of each token of a passage."""
        return token_spans(self._model.tokenizer, text)


class PairReading(Reading):
    """Query and passage as the two sides of one input."""

    def __init__(self, model: sentence_transformers.CrossEncoder, query: str, prompt: str, limit: int | None) -> None:
        super().__init__(model, query, prompt, limit)
        # The passage is the side that gives way: the library's own default cuts whichever is longer.
        self.options = {"prompt": prompt or None, "processing_kwargs": {"text": {"truncation": "only_second"}}}
        self.around = self.lengths([""])[0]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return token_counts(self._model.tokenizer, [f"{self._prompt}{self._query}"] * len(texts), texts)

    def fit(self, text: str) -> str:
        return text


class ChatReading(Reading):
    """Query and passage in a chat template, which makes one text of them, with words of its own around and after."""

    def __init__(self, model: sentence_transformers.CrossEncoder, query: str, prompt: str, limit: int | None) -> None:
        super().__init__(model, query, prompt, limit)
        self.options = {"prompt": prompt or None}
        self.around = self._length("")

    def lengths(self, texts: Sequence[str]) -> list[int]:
        counts = token_counts(self._model.tokenizer, texts, add_special_tokens=False)
        sums = [self.around + count for count in counts]
        if self.limit is None:
            return sums
        return [
            self._length(text) if abs(length - self.limit) <= _NEAR else length
            for text, length in zip(texts, sums, strict=True)
        ]

    def fit(self, text: str) -> str:
        if self.limit is None:
            return text
        # Cut here: a tokenizer knows no sides in one text and would cut what the template puts after the passage.
        spans = self.spans(text)
        keep = min(self.limit - self.around, len(spans))
        while True:
            cut = text[: spans[keep - 1][1]] if keep > 0 else ""
            excess = self._length(cut) - self.limit
            if excess <= 0 or not cut:
                return cut
            keep -= excess

    def _length(self, text: str) -> int:
        options = {**self.options, "processing_kwargs": {"text": {"truncation": False, "verbose": False}}}
        return int(preprocess(self._model, [(self._query, text)], **options)["input_ids"].shape[1])


def split(text: str, tokens: Sequence[Span], size: int, overlap: int) -> list[Span]:
    """Cut a text into windows.

    Args:
        text: Any text.
        tokens: Character span of each of its tokens, in order.
        size: Tokens that a window holds at most, 1 or more. A sentence that has more is cut between words, and a word
            that has more between tokens.
        overlap: Tokens that a window shares with the one before at most; less than `size`.

    Returns:
        Character spans of the windows, in order. Every token is in at least one of them.
    """
    units = _units(text, tokens, size, overlap)
    windows: list[Span] = []
    first = last = 0  # the units of a window
    while units:
        while last + 1 < len(units) and units[last + 1][1] - units[first][0] <= size:
            last += 1
        if last == len(units) - 1:  # the last window reaches back as far as it can: a short one would lack context
            while first > 0 and units[last][1] - units[first - 1][0] <= size:
                first -= 1
        start, end = _trimmed(text, tokens[units[first][0]][0], tokens[units[last][1] - 1][1])
        if start < end:  # not of blanks alone
            windows.append((start, end))
        if last == len(units) - 1:
            break
        new = first = last + 1
        while units[last][1] - units[first - 1][0] <= overlap and units[new][1] - units[first - 1][0] <= size:
            first -= 1
        last = new
    return windows


def spread(windows: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the windows, evenly spread, the first and the last among them."""
    if len(windows) <= most:
        return list(windows)
    if most == 1:
        return [windows[0]]
    return [windows[position * (len(windows) - 1) // (most - 1)] for position in range(most)]


def _units(text: str, tokens: Sequence[Span], size: int, overlap: int) -> list[Span]:
    """Return the sentences, as spans of token positions; those longer than a window in pieces."""
    starts = [start for start, _ in tokens]
    borders = {bisect_left(starts, match.end()) for match in _BORDER.finditer(text)}
    cuts = sorted({0, *borders, len(tokens)})
    units: list[Span] = []
    for begin, end in pairwise(cuts):
        if end - begin <= size:
            units.append((begin, end))
            continue
        while begin < end:  # pieces small enough for windows to share one
            reach = min(begin + (overlap or size), end)
            cut = reach
            while cut > begin and cut < end and not _begins_word(text, tokens, cut):
                cut -= 1
            units.append((begin, cut if cut > begin else reach))
            begin = units[-1][1]
    return units


def _begins_word(text: str, tokens: Sequence[Span], position: int) -> bool:
    start = tokens[position][0]
    return text[start : start + 1].isspace() or text[start - 1].isspace()  # some tokenizers count the space to the word


def _trimmed(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
