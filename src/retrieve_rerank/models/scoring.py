"""One call's texts while they are being scored: filled batch by batch by a worker, read by whoever waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer says about some texts, in their order.

    Attributes:
        logits: Float64 (n,), as other people's scores may need it; without meaning where a text was not scored.
        scored: Bool (n,): whether a text was reached before the time was up.
        truncated: Bool (n,): whether a part of a text was not seen.
        windows: For each text the character span of the window that won, or None where it was scored as one piece.
    """

    logits: npt.NDArray[np.float64]
    scored: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    windows: Sequence[tuple[int, int] | None]


class Scoring:
    """The texts of one call and what is known of them so far. Safe between the caller and one worker.

    Args:
        query: What the texts are scored against.
        texts: All different.
        time_budget: Seconds from now after which the caller stops waiting; None is never.

    Attributes:
        deadline: When that is, as a value of `time.monotonic`, or None.
        ended: Whether the worker has done with it.
    """

    def __init__(self, query: str, texts: Sequence[str], time_budget: float | None = None) -> None:
        self.query = query
        self.texts = texts
        self.deadline = None if time_budget is None else time.monotonic() + time_budget
        self._lock = threading.Lock()
        self._given_up = False
        self._error: Exception | None = None
        self.ended = False
        self._logits = np.zeros(len(texts), np.float64)
        self._scored = np.zeros(len(texts), np.bool_)
        self._truncated = np.zeros(len(texts), np.bool_)
        self._windows: list[tuple[int, int] | None] = [None] * len(texts)

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits. To be asked between batches, never within one."""
        return not self._given_up and (self.deadline is None or time.monotonic() < self.deadline)

    def put(
        self, position: int, logit: float, *, truncated: bool = False, window: tuple[int, int] | None = None
    ) -> None:
        """Set what is known of the text at `position`. Does nothing once nobody waits."""
        with self._lock:
            if not self._given_up:
                self._logits[position] = logit
                self._truncated[position] = truncated
                self._windows[position] = window
                self._scored[position] = True

    def end(self, error: Exception | None = None) -> None:
        """Say that the worker has done with it, or has failed."""
        self._error = error
        self.ended = True

    def check(self) -> None:
        """Raise what the worker failed with."""
        if self._error is not None:
            raise self._error

    def finish(self) -> Scores:
        """Return what is known, and say that nobody waits for more."""
        with self._lock:
            self._given_up = True
        return Scores(self._logits, self._scored, self._truncated, self._windows)
