"""Stop reading candidates where the next ones will hardly change the top."""

from __future__ import annotations

from dataclasses import dataclass

from retrieve_rerank.checks import check_count


@dataclass(frozen=True, slots=True)
class AdaptiveDepth:
    """Read candidates in the first stage's order, chunk by chunk, and stop where the top hardly changes any more.

    Attributes:
        chunk: How many candidates are read at a time.
        patience: Stop after so many candidates in a row of which none came into the top.

    Raises:
        InvalidInputError: If a number is below 1.
    """

    chunk: int = 10
    patience: int = 20

    def __post_init__(self) -> None:
        check_count(self.chunk, "chunk")
        check_count(self.patience, "patience")
