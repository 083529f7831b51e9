"""Many callers, one model: the texts of calls that wait are scored in common batches.

Calls of a few candidates each leave batches half empty. The worker's thread takes one call after another; when it
comes to one, it takes along what else waits, as much as makes its batches full. A call whose texts were taken along
finds them scored when its own turn comes, so nobody is answered later than without this, and most are earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

from retrieve_rerank.models.ranking import Scoring

# As many texts are scored together as there are this many tokens in the batches that are computed at once: a few full
# batches, and soon over.
_TOKENS_A_TEXT = 16


class _Engine(Protocol):
    @property
    def call_tokens(self) -> int: ...

    def score(self, scorings: Sequence[Scoring]) -> None: ...


class DynamicBatching:
    """The calls that wait for one model. Safe between their threads and the model's."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: dict[int, Scoring] = {}  # in the order they came

    def __reduce__(self) -> tuple[type[DynamicBatching], tuple[()]]:
        return DynamicBatching, ()  # who waits here does not wait for a pickle

    @contextmanager
    def joined(self, scorings: Sequence[Scoring]) -> Iterator[None]:
        """Let `scorings` be taken along by another call while this lasts, but for those with a deadline."""
        joining = {id(scoring): scoring for scoring in scorings if scoring.deadline is None}
        with self._lock:
            self._waiting.update(joining)
        try:
            yield
        finally:
            with self._lock:
                for key in joining:
                    self._waiting.pop(key, None)

    def score(self, engine: _Engine, scorings: Sequence[Scoring]) -> None:
        """Score those of `scorings` that are not yet, and with them what else waits. To be called on one thread.

        An error is put down with the scoring that it belongs to: `Scoring.check` raises it in its own caller.
        """
        own = [scoring for scoring in scorings if scoring.texts and not scoring.ended]
        if own:
            _score(engine, [*own, *self._taken_along(own, max(1, engine.call_tokens // _TOKENS_A_TEXT))])

    def _taken_along(self, own: Sequence[Scoring], limit: int) -> list[Scoring]:
        if any(scoring.deadline is not None for scoring in own):
            return []  # it is in a hurry
        taken: list[Scoring] = []
        count = sum(len(scoring.texts) for scoring in own)
        with self._lock:
            for scoring in list(self._waiting.values()):
                if any(scoring is one for one in own) or not scoring.wanted or scoring.ended:
                    continue
                count += len(scoring.texts)
                if count > limit:
                    break
                taken.append(scoring)
        return taken


def _score(engine: _Engine, scorings: Sequence[Scoring]) -> None:
    try:
        engine.score(scorings)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to one of the callers
        if len(scorings) == 1:
            scorings[0].end(error)
            return
        for scoring in scorings:  # whose it is shows by itself
            _score(engine, [scoring])
        return
    for scoring in scorings:
        scoring.end()
