"""Batches by token budget: true lengths, sorted, so that padding is nearly nothing and temporaries stay small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Padded tokens in one forward pass. On a CPU larger batches gain nothing and their temporaries leave the cache and make
# the allocator map and unmap them each time; a GPU needs many more to be busy.
_CPU_TOKENS = 2_048
_GPU_TOKENS = 32_768


def token_budget(device: torch.device) -> int:
    """Return how many padded tokens one batch may hold on `device`."""
    return _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group positions into batches of similar length.

    Args:
        lengths: Tokens of each text.
        budget: Padded tokens that a batch may hold: its longest length times its size. A text longer than the budget
            gets a batch of its own.

    Returns:
        Batches of positions into `lengths`, longest first (a batch that does not fit into memory fails at once).
        Every position is in exactly one batch. Equal lengths keep their order.
    """
    batches: list[list[int]] = []
    widest = 0
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * widest <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            widest = max(1, lengths[position])
    return batches


def consecutive(lengths: Sequence[int], budget: int) -> list[range]:
    """Group positions in their order: each group holds at most `budget` tokens, or a single longer text."""
    groups: list[range] = []
    start = tokens = 0
    for position, length in enumerate(lengths):
        if position > start and tokens + length > budget:
            groups.append(range(start, position))
            start, tokens = position, 0
        tokens += length
    return [*groups, range(start, len(lengths))] if lengths else []
