"""One warning for everything that a long call had to cut, instead of one a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from retrieve_rerank.errors import TruncationWarning


class Cutter(Protocol):
    """A model that cuts texts."""

    def warn_of_cuts(self, advice: str, cut: int, total: int) -> None:
        """Warn that `cut` of `total` texts were longer than the model reads."""


@dataclass
class _Kept:
    counts: dict[tuple[Cutter, str], tuple[int, int]] = field(default_factory=dict)
    open: bool = True  # tasks that the call started may outlive it


_kept: ContextVar[_Kept | None] = ContextVar("retrieve_rerank_cuts", default=None)


def tell(model: Cutter, advice: str, cut: int, total: int) -> None:
    """Warn of texts that were cut: at once, or where `told_once` ends, together with the model's others."""
    kept = _kept.get()
    if kept is not None and kept.open:
        before = kept.counts.get((model, advice), (0, 0))
        kept.counts[model, advice] = before[0] + cut, before[1] + total
    elif cut:
        model.warn_of_cuts(advice, cut, total)


@contextmanager
def told_once() -> Iterator[None]:
    """Keep what is told in this context, and tell the sums at the end.

    Of a call that fails, too; where warnings are errors, its own error stays the one that is raised.
    """
    before, kept = _kept.get(), _Kept()
    _kept.set(kept)
    try:
        yield
    except BaseException:
        with suppress(TruncationWarning):
            _tell_all(before, kept)
        raise
    _tell_all(before, kept)


def _tell_all(before: _Kept | None, kept: _Kept) -> None:
    kept.open = False
    _kept.set(before)
    for (model, advice), (cut, total) in kept.counts.items():
        tell(model, advice, cut, total)
