"""Words for a terminal: help texts, and text from outside made harmless."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

# What a terminal could take for a command, and what turns the direction of writing: C0 and C1 controls but tab and
# line feed, DEL, bidirectional overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# JSON escapes C0 itself. U+0085, U+2028 and U+2029 would end a line for some readers.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def with_examples(text: str, *examples: str, title: str = "Examples") -> str:
    """Return a help text with examples, whose lines stay as they are."""
    return f"{text}\n\n\b\n{title}:\n" + "\n".join(f"  {example}" for example in examples)


def clean(text: str) -> str:
    """Return text from outside with everything replaced that a terminal could obey."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def one_line(text: str, length: int) -> str:
    """Return the beginning of a text, harmless and on one line."""
    words = " ".join(clean(text[: 4 * length]).split())
    return words if len(words) <= length else words[: length - 1] + "…"


def json_line(record: Mapping[str, object]) -> str:
    """Return a record as one line of JSON without anything that a terminal could obey."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"
