"""One document as passages, so that a cross-encoder alone can search inside it."""

from __future__ import annotations

import re

from retrieve_rerank.checks import check_encodable
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.types import Passage

# Two line ends with nothing but white space between them.
_BREAK = re.compile(r"(?:\r\n|\r(?!\n)|\n)[^\S\r\n]*[\r\n]\s*")


def split_paragraphs(text: str) -> list[Passage]:
    r"""Split a text at its blank lines.

    Args:
        text: Any text.

    Returns:
        The paragraphs that are not blank, in order, with ids p0, p1, … and metadata `start` and `end`: the paragraph
        is `text[start:end]`.

    Raises:
        InvalidInputError: If `text` is not a usable string.

    Example:
        >>> from retrieve_rerank import split_paragraphs
        >>> [(p.id, p.text, p.metadata["start"]) for p in split_paragraphs("One.\n\nTwo,\nstill two.")]
        [('p0', 'One.', 0), ('p1', 'Two,\nstill two.', 6)]
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"text must be a string, got {type(text).__name__}")
    check_encodable(text, "the text")
    passages: list[Passage] = []
    start = 0
    for end, following in [*(match.span() for match in _BREAK.finditer(text)), (len(text), len(text))]:
        paragraph = text[start:end]
        if stripped := paragraph.strip():
            first = start + paragraph.index(stripped[0])
            span = {"start": first, "end": first + len(stripped)}
            passages.append(Passage(f"p{len(passages)}", stripped, span))
        start = following
    return passages
