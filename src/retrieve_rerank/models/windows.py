"""Windows of a long passage: overlapping pieces that begin and end at sentence borders; the best one counts."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

Span = tuple[int, int]
T = TypeVar("T")

# Where the next sentence may begin: after an end mark and white space, after an end mark of a script that needs no
# white space, or in a new line.
_BORDER = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？｡][”’」』）]*\s*|\n\s*")


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


@dataclass(frozen=True, slots=True)
class Cut:
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


class Tally:
    """Puts the scores of passages together from those of their pieces, as these come in.

    Attributes:
        cuts: The passages, in order.
        pieces: All their different pieces, in order; equal ones are to be scored once.
        lengths: Tokens of each.
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self.cuts = cuts
        known = {piece: length for cut in cuts for piece, length in zip(cut.pieces, cut.lengths, strict=True)}
        self.pieces, self.lengths = list(known), list(known.values())
        self._owners: dict[str, list[int]] = {piece: [] for piece in known}
        for owner, cut in enumerate(cuts):
            for piece in dict.fromkeys(cut.pieces):
                self._owners[piece].append(owner)
        self._missing = [len(set(cut.pieces)) for cut in cuts]
        self._logits: dict[str, float] = {}

    def put(self, position: int, logit: float) -> Iterator[int]:
        """Take the score of the piece at `position`; yield the passages of which all pieces are now scored."""
        piece = self.pieces[position]
        self._logits[piece] = logit
        for owner in self._owners[piece]:
            self._missing[owner] -= 1
            if not self._missing[owner]:
                yield owner

    def best(self, passage: int) -> tuple[float, Span | None]:
        """Return the score of a passage's best piece, the first among equals, and its window; NaN beats all."""
        cut = self.cuts[passage]
        logits = [self._logits[piece] for piece in cut.pieces]
        at = max(range(len(logits)), key=lambda index: (math.isnan(logits[index]), logits[index]))
        return logits[at], None if cut.windows is None else cut.windows[at]


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
