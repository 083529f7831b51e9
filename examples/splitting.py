"""Passages of a length that a small bi-encoder reads whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

from retrieve_rerank import split_paragraphs

LONGEST = 200  # tokens as `_tokens` guesses them; all-MiniLM-L6-v2 reads 256, and the guess may be low


def pieces(text: str) -> list[str]:
    """Cut a text into pieces that the bi-encoder reads whole: between paragraphs, or lines, or words where it must."""
    done: list[str] = []
    for joint, unit in _units(text):
        if done and _tokens(done[-1]) + _tokens(unit) <= LONGEST:
            done[-1] += joint + unit
        else:
            done.append(unit)
    return done


def _units(text: str) -> Iterator[tuple[str, str]]:
    """Yield what should stay together, each after what joins it to the one before."""
    for paragraph in split_paragraphs(text):
        if _tokens(paragraph.text) <= LONGEST:
            yield "\n\n", paragraph.text
            continue
        for row, line in enumerate(paragraph.text.splitlines()):
            for column, word in enumerate([line] if _tokens(line) <= LONGEST else line.split()):
                yield " " if column else "\n" if row else "\n\n", word


def _tokens(text: str) -> int:
    """Guess how many tokens a text is: every mark or digit is one, and a long word is several."""
    return sum(1 + len(word) // 6 for word in re.findall(r"[A-Za-z]+|[^A-Za-z\s]", text))
