"""The public doors with arguments that are right, a module a room: what `test_generated_calls.py` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KEPT = ["keep-0", "keep-1", "keep-2"]
TEXTS = ["Paris is the capital of France.", "Bread is the word.", "Rome is the capital of Italy."]
MODELS = {
    "device": "cpu",
    "precision": "float32",
    "revision": None,
    "cache_folder": None,
    "token": None,
    "max_length": 32,
}
MODELS |= {
    "batch_tokens": 4096,
    "backend": "torch",
    "endpoint": None,
    "api_key": None,
    "timeout": 60.0,
    "max_concurrency": 8,
}
WHERE: dict[str, Any] = {"$and": [{"n": {"$gte": 0}}, {"$or": [{"kind": "fact"}, {"n": {"$in": [1, 2]}}]}]}
WORDS: dict[str, Any] = {"$or": [{"$contains": "capital"}, {"$not_regex": "^x+$"}]}


@dataclass
class Door:
    """Something to call.

    Attributes:
        name: What a report calls it.
        call: Takes the arguments by name.
        valid: Arguments that are right; what is in them is never modified.
        after: What must hold after each call.
        made: Whether it makes an object of pydantic's, which says in its own words what is of a wrong type.
    """

    name: str
    call: Callable[..., object]
    valid: Mapping[str, Any]
    after: Callable[[], None] | None = None
    made: bool = False


def answers(count: Callable[[], int], ids: Callable[[], list[str]]) -> Callable[[], None]:
    """Return a check that an index still has what it had."""

    def check() -> None:
        if count() < len(KEPT):
            raise LookupError("passages are lost")
        if ids() != KEPT:
            raise LookupError(f"it finds {ids()}")

    return check
