"""Stop reading candidates where the next ones will hardly change the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieve_rerank.checks import check_count


@dataclass(frozen=True, slots=True)
class AdaptiveDepth:
    """Read candidates in the first stage's order, chunk by chunk, and stop where the top hardly changes any more.

    Attributes:
        chunk: How many candidates are read at a time.
        patience: Stop after so many candidates in a row of which none came into the top.
        top: How many of the best are watched.

    Raises:
        InvalidInputError: If a number is below 1.
    """

    chunk: int = 10
    patience: int = 20
    top: int = 3

    def __post_init__(self) -> None:
        check_count(self.chunk, "chunk")
        check_count(self.patience, "patience")
        check_count(self.top, "top")

    def enough(self, logits: Sequence[float]) -> bool:
        """Return whether to stop, given the logits of what was read, in the order of reading."""
        if len(logits) <= self.patience:
            return False
        before, last = logits[: -self.patience], logits[-self.patience :]
        best = sorted(before, reverse=True)[: self.top]
        return len(best) == self.top and max(last) <= best[-1]

    def depth(self, logits: Sequence[float]) -> int:
        """Return how many of the candidates are read, given the logits that they all would get."""
        for read in range(self.chunk, len(logits), self.chunk):
            if self.enough(logits[:read]):
                return read
        return len(logits)
