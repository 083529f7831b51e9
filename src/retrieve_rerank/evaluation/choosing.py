"""Which setting to take: not the one that was luckiest, but a good one that is no slower than it must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import InvalidInputError

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.tuned import HeldOut, Setting

Array = npt.NDArray[np.float64]

TOLERANCE = 0.002  # of the measure, which lies in [0, 1]: what a faster setting may be worse
SPLITS = 100
_FEWEST = 10  # questions that can be split


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
    """Return the setting to take.

    Raises:
        InvalidInputError: If none meets the budget or the quality.
    """
    fast = _fast_enough(settings, latency_budget)
    best = max(fast, key=lambda setting: setting.quality)
    if quality is not None and best.quality < quality:
        raise InvalidInputError(
            f"quality={quality:g} is not reached{_within(latency_budget)}: the best is {best.quality:.3f}, by "
            f"{best.name!r}"
        )
    table = _table(fast)
    return Choice(fast[_pick(table.mean(axis=0), fast, quality)], "")


def check(
    settings: Sequence[Setting], chosen: Setting, latency_budget: float | None, quality: float | None, *, seed: int
) -> HeldOut | None:
    """Return what choosing on one half of the questions is worth on the other; None of too few questions."""
    from retrieve_rerank.evaluation.tuned import HeldOut

    fast = _fast_enough(settings, latency_budget)
    table = _table(fast)
    if len(table) < _FEWEST:
        return None
    random = np.random.default_rng(seed)
    taken, tuned, held_out, best = [], [], [], []
    for _ in range(SPLITS):
        order = random.permutation(len(table))
        here, there = table[order[: len(table) // 2]].mean(axis=0), table[order[len(table) // 2 :]].mean(axis=0)
        pick = _pick(here, fast, quality)
        taken.append(fast[pick] is chosen)
        tuned.append(here[pick])
        held_out.append(there[pick])
        best.append(there.max())
    regret = np.array(best) - np.array(held_out)
    return HeldOut(
        splits=SPLITS,
        tuned=float(np.mean(tuned)),
        quality=float(np.mean(held_out)),
        best=float(np.mean(best)),
        regret=float(regret.mean()),
        spread=float(np.percentile(regret, 90)),
        agreement=float(np.mean(taken)),
    )


def _pick(means: Array, settings: Sequence[Setting], quality: float | None) -> int:
    """Return the position of the setting to take, given the means over some questions."""
    steady = smooth(settings) @ means
    enough = steady.max() - TOLERANCE if quality is None else min(quality, steady.max())
    places = np.flatnonzero(steady >= enough).tolist()
    return min(places, key=lambda place: (settings[place].latency.p95, -steady[place]))


def smooth(settings: Sequence[Setting]) -> Array:
    """Return the matrix that averages each setting with its neighbours in depth."""
    count = len(settings)
    weights = np.eye(count)
    curves: dict[tuple[str, str | None], list[int]] = {}
    for place, setting in enumerate(settings):
        if setting.adaptive is None and setting.cross_encoder is not None:
            curves.setdefault((setting.first_stage, setting.cross_encoder), []).append(place)
    for places in curves.values():
        places.sort(key=lambda place: settings[place].fetch_k)
        for before, here, after in zip(places, places[1:], places[2:], strict=False):
            weights[here, [before, here, after]] = 0.25, 0.5, 0.25
    return weights


def _fast_enough(settings: Sequence[Setting], latency_budget: float | None) -> list[Setting]:
    fast = [setting for setting in settings if latency_budget is None or setting.latency.p95 <= latency_budget]
    if not fast:
        fastest = min(settings, key=lambda setting: setting.latency.p95)
        raise InvalidInputError(
            f"no setting keeps latency_budget={latency_budget:g} s at p95: the fastest is {fastest.name!r} with "
            f"{fastest.latency.p95:.3g} s"
        )
    return fast


def _within(latency_budget: float | None) -> str:
    return "" if latency_budget is None else f" within latency_budget={latency_budget:g} s"


def _table(settings: Sequence[Setting]) -> Array:
    """Return the values, array (questions, settings)."""
    return np.array([[setting.per_query[query] for setting in settings] for query in sorted(settings[0].per_query)])
