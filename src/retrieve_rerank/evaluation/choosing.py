"""Which setting to take: not the one that was luckiest, but a good one that is no slower than it must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.evaluation.dataset import counted

if TYPE_CHECKING:
    from retrieve_rerank.evaluation.tuned import Setting

Array = npt.NDArray[np.float64]

TOLERANCE = 0.002  # of the measure, which lies in [0, 1]: what a faster setting may be worse
SPLITS = 100
_FEWEST = 10  # questions that can be split


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting, and why it was taken."""

    setting: Setting
    reason: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What choosing on one half of the questions is worth on the other half.

    The questions were split in halves `splits` times; each time, the rule that made the choice chose on one half, and
    the setting that it took was measured on the other.

    Attributes:
        splits: How many splits.
        tuned: Mean quality of the setting taken, on the half that it was chosen on, and so too good.
        quality: Mean quality of the setting taken, on the other half.
        best: Mean quality of whichever setting is best on the other half: nobody can know it before.
        regret: `best` less `quality`.
        spread: The 90th percentile of that difference over the splits.
        agreement: Share of the splits in which the setting taken is the one that was chosen on all questions.
        regrets: `best` less `quality` in each split.
        target: The quality that was asked for; None where the best was wanted.
        reached: Share of the splits in which the setting taken reached it on the other half.

    Example:
        >>> from retrieve_rerank.evaluation import HeldOut
        >>> HeldOut(splits=100, tuned=0.43, quality=0.41, best=0.42, regret=0.01, spread=0.03, agreement=0.6).regret
        0.01
    """

    splits: int
    tuned: float
    quality: float
    best: float
    regret: float
    spread: float
    agreement: float
    regrets: tuple[float, ...] = ()
    target: float | None = None
    reached: float = 0.0


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
    means = _table(fast).mean(axis=0)
    best = fast[int(means.argmax())]
    if quality is not None and best.quality < quality:
        raise InvalidInputError(
            f"no setting{_within(latency_budget)} reaches quality={quality:g}: the best is {best.quality:.3f}, by "
            f"{best.name!r}"
        )
    setting = fast[_pick(means, fast, quality)]
    among = f"of the {counted(len(fast), 'setting')}{_within(latency_budget)}"
    if quality is not None:
        return Choice(setting, f"It is the fastest {among} that reaches {quality:g}.")
    if setting is best:
        return Choice(setting, f"It is the best {among}, and none within {TOLERANCE:g} of it is faster at p95.")
    return Choice(
        setting,
        f"It is the fastest at p95 {among} within {TOLERANCE:g} of the best, {best.name!r} with {best.quality:.3f}: so "
        "small a difference is no reason to wait.",
    )


def closest(settings: Sequence[Setting], latency_budget: float | None, quality: float | None) -> Choice:
    """As `choose`; where none meets what is asked for, return the setting that comes closest, and say so."""
    try:
        return choose(settings, latency_budget, quality)
    except InvalidInputError as error:
        fastest = min(settings, key=lambda setting: setting.latency.p95)
        slow = latency_budget is not None and fastest.latency.p95 > latency_budget
        setting = fastest if slow else max(_fast_enough(settings, latency_budget), key=lambda one: one.quality)
        return Choice(setting, f"Not what was asked for, {error}: it comes closest.")


def check(
    settings: Sequence[Setting], chosen: Setting, latency_budget: float | None, quality: float | None, *, seed: int
) -> HeldOut | None:
    """Return what choosing on one half of the questions is worth on the other; None of too few questions."""
    if latency_budget is not None:
        latency_budget = max(latency_budget, chosen.latency.p95)  # where none keeps it, as the choice was made
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
        regrets=tuple(regret.tolist()),
        target=quality,
        reached=0.0 if quality is None else float(np.mean(np.array(held_out) >= quality)),
    )


def _pick(means: Array, settings: Sequence[Setting], quality: float | None) -> int:
    """Return the position of the setting to take, given the means over some questions."""
    enough = means.max() - TOLERANCE if quality is None else min(quality, means.max())
    places = np.flatnonzero(means >= enough).tolist()
    best: int = min(places, key=lambda place: (settings[place].latency.p95, -means[place]))
    return best


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
