"""A fast encoder that leaves a trace of every text it encoded, in whichever process."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieve_rerank import Passage

DIMENSION = 16


class Traced:
    """Vectors of the texts' digests; a line a batch in `folder`, in a file of the process.

    The text "stop" raises, and "die" ends the process, once: afterwards there is a file that says so.
    """

    metric = "cosine"
    dimension = DIMENSION

    def __init__(self, folder: Path, *, name: str = "traced", seconds: float = 0.0) -> None:
        self.folder, self.name, self.seconds = folder, name, seconds

    @property
    def fingerprint(self) -> dict[str, str | int | float | bool]:
        return {"model": self.name, "dimension": DIMENSION}

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([vector(text) for text in texts], np.float32).reshape(len(texts), DIMENSION)

    def encode_documents(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if "stop" in texts:
            raise RuntimeError("the model failed on purpose")
        if "die" in texts and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        time.sleep(self.seconds)
        with (self.folder / f"{os.getpid()}.trace").open("a") as file:
            file.write(f"{len(texts)}\n")
        return self.encode_queries(texts)


def vector(text: str) -> list[float]:
    return [byte / 255 + 0.01 for byte in hashlib.blake2b(text.encode(), digest_size=DIMENSION).digest()]


def encoded(folder: Path) -> int:
    """Return how many texts were encoded."""
    return sum(int(line) for file in folder.glob("*.trace") for line in file.read_text().split())


def workers(folder: Path) -> list[int]:
    """Return the processes that encoded something."""
    return [int(file.stem) for file in folder.glob("*.trace")]


def passages(count: int, start: int = 0) -> Iterator[Passage]:
    """Yield passages with metadata of all kinds that JSON has."""
    for number in range(start, start + count):
        metadata = {
            "number": number,
            "even": number % 2 == 0,
            "tags": ["a", "b"],
            "nothing": None,
            "deep": {"x": [1, {}]},
        }
        yield Passage(f"p{number}", f"text number {number} of äöü", metadata if number % 3 else {})
