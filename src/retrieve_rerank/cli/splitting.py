"""Documents become passages that the bi-encoder reads whole."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise

from retrieve_rerank.cli.documents import Document
from retrieve_rerank.errors import InvalidInputError, require
from retrieve_rerank.models.bi_encoder import BiEncoder
from retrieve_rerank.types import Passage

USUAL = 256  # tokens of a passage at most, if the bi-encoder reads as many: room for a question beside it in 512

_LONGEST = 16  # characters a token: a tokenizer may take a whole image in base64 for one unknown word

_FENCE = re.compile(r"[`~]{3,}[\w-]*")


class Splitter:
    """Splits documents at headings, paragraphs and sentences, measured in the bi-encoder's own tokens.

    Args:
        encoder: The bi-encoder.
        tokens: Of a passage at most, with the model's prompt and special tokens; None takes 256, or as many as the
            model reads.

    Raises:
        InvalidInputError: If that is more than the bi-encoder reads, or leaves no room for text.
        MissingDependencyError: If the extra `cli` is not installed.
    """

    def __init__(self, encoder: BiEncoder, tokens: int | None = None) -> None:
        self.encoder = encoder
        splitters = require("semantic_text_splitter", extra="cli")
        self._parser = require("markdown_it", extra="cli").MarkdownIt("commonmark")
        limit = encoder.max_length
        self.tokens = min(USUAL, limit or USUAL) if tokens is None else tokens
        if limit is not None and self.tokens > limit:
            raise InvalidInputError(
                f"passages of {self.tokens} tokens would be cut: {encoder.model!r} reads {limit}. Give fewer"
            )
        (around,) = encoder.count_tokens([""])
        if self.tokens <= around:
            raise InvalidInputError(f"passages of {self.tokens} tokens have no room for text; give more than {around}")

        def count(text: str) -> int:
            return max(encoder.count_tokens([text])[0], len(text) // _LONGEST)

        self._splitters = {
            "text": splitters.TextSplitter.from_callback(count, self.tokens),
            "markdown": splitters.MarkdownSplitter.from_callback(count, self.tokens),
        }

    def passages(self, document: Document, source: str, times: Counter[str] | None = None) -> Iterator[Passage]:
        """Yield the passages of a document.

        An id is the record's own, or is made of the source and the text, so that it stays where text before it
        changes. `start` and `end` count the characters of the document's text, and `line` is where that is in the file,
        from 1, if its lines are the text's.

        Args:
            document: To split.
            source: What its file is called.
            times: How often each text came before in the file, which is counted on: two records may be alike.
        """
        times = Counter() if times is None or document.id is not None else times
        headings = self._headings(document.text) if document.kind == "markdown" else []
        title = document.title or next((text for _, level, text in headings if level == 1), None)
        starts = [start for start, _, _ in headings]
        pieces = [
            (start, piece)
            for start, piece in self._splitters[document.kind].chunk_indices(document.text)
            if any(map(str.isalnum, piece)) and not _FENCE.fullmatch(piece)
        ]
        for start, piece in pieces:
            metadata: dict[str, str | int | float | bool] = {
                **document.metadata,
                "source": source,
                "start": start,
                "end": start + len(piece),
            }
            if title:
                metadata["title"] = title
            if document.line is not None:
                within = 0 if document.whole else document.text.count("\n", 0, start)
                metadata["line"] = document.line + within
            # A piece that begins with a heading is under it.
            if above := headings[: bisect_right(starts, start)]:
                metadata["heading"] = " > ".join(_path(above))
            digest = sha256(piece.encode()).hexdigest()[:12]
            times[digest] += 1
            again = f"-{times[digest]}" if times[digest] > 1 else ""
            if document.id is None:
                identifier = f"{source}#{digest}{again}"
            else:
                identifier = document.id if len(pieces) == 1 else f"{document.id}#{digest}{again}"
            yield Passage(identifier, piece, metadata)

    def _headings(self, text: str) -> list[tuple[int, int, str]]:
        """Return the headings of a Markdown text: where each begins, its level, its words."""
        lines = [0, *(end.end() for end in re.finditer(r"\r\n?|\n", text))]
        found = []
        tokens = self._parser.parse(text)
        for token, inside in pairwise(tokens):
            if token.type == "heading_open" and inside.content.strip():
                found.append((lines[token.map[0]], int(token.tag[1]), " ".join(inside.content.split())))
        return found


def _path(headings: list[tuple[int, int, str]]) -> list[str]:
    """Return the headings that the last one is under, and itself."""
    path: list[tuple[int, str]] = []
    for _, level, text in headings:
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, text))
    return [text for _, text in path]
