"""One warning for everything that a long call had to cut, instead of one a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Say = Callable[[int, int], None]

_kept: ContextVar[list[tuple[int, int, Say]] | None] = ContextVar("retrieve_rerank_cuts", default=None)


def tell(cut: int, total: int, say: Say) -> None:
    """Warn of texts that were cut: at once by `say(cut, total)`, or where `told_once` ends, together with the rest."""
    kept = _kept.get()
    if kept is not None:
        kept.append((cut, total, say))
    elif cut:
        say(cut, total)


@contextmanager
def told_once() -> Iterator[None]:
    """Keep what is told in this context, and tell the sum at the end, also of a call that fails."""
    kept: list[tuple[int, int, Say]] = []
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        if kept:
            tell(sum(cut for cut, _, _ in kept), sum(total for _, total, _ in kept), kept[-1][2])
