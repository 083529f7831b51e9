"""How long to wait before the next try at a server: longer each time, and never all callers at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

TRIES = 5
_FIRST = 0.25  # seconds
_LONGEST = 8.0


def pauses(tries: int = TRIES, *, first: float = _FIRST, longest: float = _LONGEST) -> Iterator[float]:
    """Yield the seconds to wait after each failed try but the last: `tries` - 1 of them.

    The bound doubles from `first` up to `longest`; a pause is random in the upper half below it, so that callers who
    failed together do not come back together.
    """
    bound = first
    for _ in range(tries - 1):
        yield random.uniform(bound / 2, bound)
        bound = min(2 * bound, longest)
