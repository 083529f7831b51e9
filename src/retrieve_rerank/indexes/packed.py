"""Many texts in one run of bytes: a fraction of what as many strings take, and readable where it lies on disk."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class PackedTexts:
    """Texts by position. Stored ones are read in place, new ones are kept in memory behind them.

    Args:
        stored: Texts in UTF-8, one after another.
        ends: Where each of them ends.
    """

    def __init__(self, stored: bytes | mmap.mmap = b"", ends: Ints | None = None) -> None:
        self._stored = stored
        # A view of the array gives plain numbers, in half the time.
        self._ends: Any = memoryview(np.zeros(0, np.int64) if ends is None else ends)  # type: ignore[arg-type]
        self._count = len(self._ends)
        self._new = bytearray()
        self._new_ends = array("q")

    def __len__(self) -> int:
        return self._count + len(self._new_ends)

    def __getitem__(self, position: int) -> str:
        return self.raw(position).decode()

    def raw(self, position: int) -> bytes | bytearray:
        """Return one text as UTF-8."""
        if position < self._count:
            return self._stored[self._ends[position - 1] if position else 0 : self._ends[position]]
        position -= self._count
        return self._new[self._new_ends[position - 1] if position else 0 : self._new_ends[position]]

    def append(self, text: str) -> None:
        """Put one more text at the end."""
        self._new += text.encode()
        self._new_ends.append(len(self._new))

    def cut(self, count: int) -> None:
        """Forget the texts from this position on, none of them stored, and what an append that broke off left."""
        del self._new_ends[count - self._count :]
        del self._new[self._new_ends[-1] if self._new_ends else 0 :]

    def kept(self, positions: Iterable[int] | None = None) -> Iterator[bytes | bytearray]:
        """Yield the bytes of all texts, or of those at `positions`, in pieces of any size."""
        if positions is None:
            step = 1 << 24
            for start in range(0, len(self._stored), step):
                yield self._stored[start : start + step]
            yield self._new
        else:
            yield from map(self.raw, positions)

    def ends(self, positions: Ints | None = None) -> Ints:
        """Return where each text ends, of all of them or of those at `positions` alone."""
        last = self._ends[-1] if self._count else 0
        ends = np.concatenate([np.asarray(self._ends), np.array(self._new_ends, np.int64) + last])
        return ends if positions is None else np.cumsum(np.diff(ends, prepend=0)[positions])
