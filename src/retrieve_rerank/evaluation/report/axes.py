"""Scales of charts: where a value lies, and which values are written beside the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from `low` to `high`, linear or logarithmic.

    Attributes:
        low: Value at 0 %.
        high: Value at 100 %.
        log: Whether equal factors are equal distances.
    """

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return where a value lies, in per cent; what is outside lies on the edge."""
        low, high, value = (math.log(max(x, 1e-12)) if self.log else x for x in (self.low, self.high, value))
        return round(min(100.0, max(0.0, 100 * (value - low) / (high - low))), 2)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values within the scale, about `most` of them; logarithmic ones lie apart."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**e for e in exponents for f in factors if self.low <= f * 10.0**e <= self.high]
                places = [self.at(value) for value in found]
                if len(found) <= most and all(b - a >= 100 / most for a, b in pairwise(places)):
                    break
            return found if len(found) <= most else found[:: math.ceil(len(found) / most)]
        raw = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(s * unit for s in _STEPS if s * unit >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def axis_around(values: Iterable[float], *, log: bool = False, margin: float = 0.08) -> Axis:
    """Return a scale that shows all values, with a margin (a share of it) on both sides.

    Args:
        values: At least one.
        log: Whether it is logarithmic; values are then > 0.
        margin: Share of the span of the values.
    """
    known = [max(value, 1e-7) for value in values] if log else list(values)
    low, high = (math.log10(min(known)), math.log10(max(known))) if log else (min(known), max(known))
    least = 0.6 if log else 0.05  # span, so that one value has a scale as well
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    room = (high - low) * margin
    low, high = low - room, high + room
    return Axis(10.0**low, 10.0**high, log=True) if log else Axis(low, high)
