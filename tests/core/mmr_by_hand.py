"""Maximal marginal relevance in plain Python, to compare with."""

from __future__ import annotations

from collections.abc import Sequence


def mmr_by_hand(relevance: Sequence[float], alike: Sequence[Sequence[float]], k: int, diversity: float) -> list[int]:
    """Return the positions chosen, as the paper writes it; the first is the most relevant one."""
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        left = [position for position in range(len(relevance)) if position not in chosen]
        if not chosen:
            chosen.append(max(left, key=lambda position: relevance[position]))
            continue
        nearest = {position: max(alike[position][other] for other in chosen) for position in left}
        gains = {position: diversity * relevance[position] - (1 - diversity) * nearest[position] for position in left}
        chosen.append(max(left, key=lambda position: gains[position]))
    return chosen
