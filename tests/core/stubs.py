"""The public stubs, an encoder that breaks, and a way to run a script in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import Hit, Passage
from retrieve_rerank.testing import LetterEncoder, ListRetriever, TableScorer
from retrieve_rerank.testing.stubs import hits_of as found
from retrieve_rerank.testing.stubs import letters
from tests.forking import python

__all__ = [
    "Broken",
    "LetterEncoder",
    "ListRetriever",
    "SlowRetriever",
    "TableScorer",
    "close_to",
    "found",
    "letters",
    "passages",
    "run_python",
]


class Broken(LetterEncoder):
    """Encodes well until `answer` is set; from then on its vectors are what that returns for the texts."""

    answer: Callable[[Sequence[str]], Any] | None = None

    def _encode(self, texts: Sequence[str]) -> Any:
        return super()._encode(texts) if self.answer is None else self.answer(texts)


class SlowRetriever(ListRetriever):
    """Takes a while; the first calls hang until they are released. Sync only, as many retrievers are."""

    def __init__(self, texts: Sequence[str], seconds: float = 0.0, *, hangs: int = 0) -> None:
        super().__init__(texts)
        self.seconds, self.hangs = seconds, hangs
        self.release = threading.Event()
        self.threads: list[str] = []

    def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        self.threads.append(threading.current_thread().name)
        self.hangs -= 1
        if self.hangs >= 0:
            self.release.wait(60)
        else:
            time.sleep(self.seconds)
        return super().retrieve(query, k, **options)


def close_to(expected: Any) -> Any:
    """Return what is equal to an array but for what adding up in another order changes."""
    return pytest.approx(np.asarray(expected), abs=1e-5)


def passages(*texts: str) -> list[Passage]:
    """Return passages with the ids 0, 1, 2, ..."""
    return [Passage(str(position), text) for position, text in enumerate(texts)]


def run_python(script: str, *arguments: str, timeout: float = 60, warnings: str = "error", forked: bool = False) -> str:
    """Run a script in a process of its own, from the repository's root, and return what it prints.

    Args:
        script: Python, which may be indented.
        *arguments: Its `sys.argv[1:]`.
        timeout: Seconds that it may take.
        warnings: What is done with a warning.
        forked: Start at once, with everything imported.

    Raises:
        subprocess.TimeoutExpired: If it does not end in time.
        AssertionError: If it fails.
    """
    process = subprocess.run(
        [*(python() if forked else [sys.executable]), "-W", warnings, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
