"""How one query is read with its passages: what stands around a passage, how long the whole is, where it is cut.

All of it uses the model's tokenizer, so it runs on the model's thread.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import sentence_transformers
import torch

from retrieve_rerank.errors import ModelError
from retrieve_rerank.models.windows import Span

_NEAR = 8  # tokens by which a sum of parts may differ from the whole, where parts grow together at their borders

# A word of a tokenizer that does not tell where its tokens are: what stands between blanks, in scripts without blanks a
# character, and of very long ones a part.
_NO_BLANKS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_NO_BLANKS}]|[^\s{_NO_BLANKS}]{{1,16}}")


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


def features(model: Any, inputs: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Return what a model of sentence-transformers computes with, of texts or pairs of texts, on its device."""
    made = model.preprocess(inputs, **options)
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
        try:
            features = self._model.preprocess([(self._query, text)], **options)
        except ValueError as error:
            raise ModelError(f"this cross-encoder cannot read a query with a passage: {error}") from error
        return int(features["input_ids"].shape[1])
