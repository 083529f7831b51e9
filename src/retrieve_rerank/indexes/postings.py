"""Which word is in which passage, how often, and what that is worth: BM25 as numbers in a sparse matrix."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import require

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

_BLOCK = 1 << 20  # postings weighed in one go: the interim results are kept small


@dataclass(frozen=True, slots=True)
class Postings:
    """One entry for each word of each passage, sorted by word and then by passage.

    Attributes:
        starts: Where the entries of each word begin, and where the last ones end; int64, one more than words.
        slots: The passage of each entry; int32.
        counts: How often the word is in it; unsigned.
        weights: What the entry adds to a query's score, once `weighed`; float32.
    """

    starts: Ints
    slots: Ints
    counts: Ints
    weights: Floats | None = None

    @classmethod
    def empty(cls) -> Postings:
        """Return postings of nothing."""
        return cls(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8))

    def grown(self, words: array[int], lengths: array[int], first: int, vocabulary: int) -> Postings:
        """Return these postings and those of further passages, not weighed.

        Args:
            words: The words of the further passages, by number, passage after passage.
            lengths: How many each of them has.
            first: The slot of the first of them; higher than any so far.
            vocabulary: How many words there are now.
        """
        keys = np.array(words, np.int64) << 32
        keys |= np.repeat(np.arange(first, first + len(lengths), dtype=np.int64), np.array(lengths, np.int64))
        keys.sort()
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
        counts = np.diff(begins, append=len(keys))
        keys = keys[begins]
        if len(self.slots):
            keys = np.concatenate([(self.words() << 32) | self.slots, keys])
            order = np.argsort(keys, kind="stable")  # two sorted runs: a merge
            keys, counts = keys[order], np.concatenate([self.counts, counts])[order]
        starts = np.zeros(vocabulary + 1, np.int64)
        np.cumsum(np.bincount(keys >> 32, minlength=vocabulary), out=starts[1:])
        return Postings(starts, keys.astype(np.int32), _smallest(counts))

    def without(self, alive: npt.NDArray[np.bool_]) -> Postings:
        """Return the postings of the passages that are alive, an array by slot; not weighed."""
        stay = alive[self.slots]
        starts = np.concatenate([[0], np.cumsum(stay, dtype=np.int64)])[self.starts]
        return Postings(starts, self.slots[stay], self.counts[stay])

    def renumbered(self, alive: npt.NDArray[np.bool_]) -> Postings:
        """Return these postings with slots counted among those alive, which all of them are."""
        return replace(self, slots=(np.cumsum(alive, dtype=np.int32) - np.int32(1))[self.slots])

    def with_words(self, used: npt.NDArray[np.bool_]) -> Postings:
        """Return these postings with words counted among those used, an array by word; the others have no entries."""
        return replace(self, starts=np.concatenate([[0], self.starts[1:][used]]))

    def weighed(self, passages: int, slots: int, k1: float, b: float) -> Postings:
        """Return these postings with their weights: BM25 as Lucene has it, in the precision of bm25s.

        Args:
            passages: How many there are, those without words included.
            slots: How many slots there are.
            k1: How much a word's repetitions add.
            b: How much a passage's length takes away.
        """
        lengths = np.bincount(self.slots, weights=self.counts, minlength=slots)
        mean = lengths.sum() / max(1, passages)
        found = np.diff(self.starts)
        rarity = np.log(1 + (passages - found + 0.5) / (found + 0.5)).astype(np.float32)
        weights = np.empty(len(self.slots), np.float32)
        words = self.words(np.int32)
        for start in range(0, len(weights), _BLOCK):
            part = slice(start, start + _BLOCK)
            counts = self.counts[part].astype(np.float64)
            length = lengths[self.slots[part]]
            weights[part] = rarity[words[part]] * (counts / (k1 * ((1 - b) + b * length / mean) + counts))
        return replace(self, weights=weights)

    def words(self, dtype: type[np.signedinteger[Any]] = np.int64) -> Ints:
        """Return the word of each entry."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=dtype), np.diff(self.starts))


class Scorer:
    """Scores all passages for a query, by bm25s."""

    def __init__(self, postings: Postings, slots: int) -> None:
        self._bm25 = require("bm25s", extra="hybrid").BM25()
        self._bm25.nonoccurrence_array = None
        self._bm25.scores = {
            "data": postings.weights,
            "indices": postings.slots,
            "indptr": postings.starts,
            "num_docs": slots,
        }
        self._slots = slots
        self._words = len(postings.starts) - 1

    def scores(self, words: Sequence[int]) -> Floats:
        """Return the score of every slot, an array (slots,), for the words of a query, by number."""
        known = [word for word in words if word < self._words]
        scores: Floats = self._bm25.get_scores_from_ids(known) if known else np.zeros(self._slots, np.float32)
        return scores


def best(scores: Floats, k: int | None) -> Ints:
    """Return the `k` slots with the highest scores above 0, or all of them, best first.

    Of equal scores the lower slot, which was stored earlier, comes first.
    """
    slots = np.flatnonzero(scores > 0)
    values = scores[slots]
    if k is not None and k < len(slots):
        least = np.partition(values, len(values) - k)[len(values) - k]
        slots = slots[values >= least]
        values = scores[slots]
    order = np.argsort(-values, kind="stable")
    return slots[order if k is None else order[:k]]


def _smallest(counts: Ints) -> Ints:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
