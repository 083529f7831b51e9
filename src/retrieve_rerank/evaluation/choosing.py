"""Which setting to take."""
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.tuned import Setting


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting, and why it was taken."""

    setting: Setting
    reason: str


def frontier(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Return what nothing beats in quality without taking longer at p95; the fastest first."""
    best: list[Setting] = []
    for setting in sorted(settings, key=lambda one: (one.latency.p95, -one.quality)):
        if not best or setting.quality > best[-1].quality:
            best.append(setting)
    return tuple(best)


def choose(settings: Sequence[Setting], latency_budget: float | None, quality: float | None) -> Choice:
    raise NotImplementedError
