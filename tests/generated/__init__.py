"""The public doors with arguments that are right, a module a room: what `test_generated_calls.py` calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KEPT = ["keep-0", "keep-1", "keep-2"]
TEXTS = ["Paris is the capital of France.", "Bread is the word.", "Rome is the capital of Italy."]
MODELS = {"device": "cpu", "precision": "float32", "max_length": 32, "batch_tokens": 4096}
WHERE: dict[str, Any] = {"$and": [{"n": {"$gte": 0}}, {"$or": [{"kind": "fact"}, {"n": {"$in": [1, 2]}}]}]}
WORDS: dict[str, Any] = {"$or": [{"$contains": "capital"}, {"$not_regex": "^x+$"}]}

# What a framework takes through our method, and makes of it in its own words; and, last, what `step` is told.
FRAMEWORKS = ("config", "return_exceptions", "callbacks", "callback_manager", "object_map", "stage", "spent")


@dataclass
class Door:
    """Something to call.

    Attributes:
        name: What a report calls it.
        call: Takes the arguments by name.
        valid: Arguments that are right; what is in them is never modified. Those that the call has besides are added,
            with their defaults.
        after: What must hold after each call.
        made: Whether it makes an object of pydantic's, which says in its own words what is of a wrong type.
        of: What has the further arguments, where it is not `call` itself.
    """

    name: str
    call: Callable[..., object]
    valid: Mapping[str, Any]
    after: Callable[[], None] | None = None
    made: bool = False
    of: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.of or self.call).parameters
        defaults = {
            name: each.default
            for name, each in parameters.items()
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            if each.default is not each.empty and name not in FRAMEWORKS
        }
        self.valid = {**defaults, **self.valid}


def answers(count: Callable[[], int], ids: Callable[[], list[str]]) -> Callable[[], None]:
    """Return a check that an index still has what it had."""

    def check() -> None:
        if count() < len(KEPT):
            raise LookupError("passages are lost")
        if ids() != KEPT:
            raise LookupError(f"it finds {ids()}")

    return check
