"""Every public door, called with values that nobody expects: a result or an error of ours, soon and short.

Each room's doors are called in a process of their own, as what is handed to Chroma could end it. A call is a valid one
with one argument, or a part of one, replaced. GENERATED_CALLS in the environment sets how many, GENERATED_SEED which.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
import types
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.forking import python
from tests.generated import Door
from tests.odd_values import Theirs, nearly, odd

CALLS = int(os.environ.get("GENERATED_CALLS", "300"))
SEED = int(os.environ.get("GENERATED_SEED", "1"))
ROOMS = ("core", "indexes", "langchain", "llama_index", "evaluation", "command_line")
SECONDS = 5  # of the processor
PATIENCE = 60  # seconds by the clock after which a call hangs
LONGEST = 2_000  # bytes of a message

_SOURCES = f"{os.sep}retrieve_rerank{os.sep}"


class TooLong(BaseException):
    """The call hangs."""


@dataclass
class Calls:
    """Calls of doors, and what was wrong with them."""

    draw: random.Random
    journal: Path
    wrong: list[str] = field(default_factory=list)

    def one(self, door: Door) -> None:
        arguments = dict(door.valid)
        told = []
        for name in self.draw.sample(sorted(arguments), min(len(arguments), self.draw.choice([1, 1, 1, 1, 2]))):
            what, arguments[name] = nearly(arguments[name], self.draw) if self.draw.random() < 0.5 else odd(self.draw)
            told.append(f"{name}={what}")
        described = f"{door.name}({', '.join(told)})"
        self.journal.write_text(described, encoding="utf-8")
        begin = time.process_time()
        faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            found = door.call(**arguments)
            if isinstance(found, types.GeneratorType):
                list(found)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
            if why := _fault(error, door):
                self.wrong.append(f"{described}: {why}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        if (seconds := time.process_time() - begin) > SECONDS:
            self.wrong.append(f"{described}: took {seconds:.1f} s")
        if door.after is not None:
            try:
                door.after()
            except BaseException as error:  # noqa: BLE001
                self.wrong.append(f"{described}: afterwards {_place(error)} {_short(error)}")


def _fault(error: BaseException, door: Door) -> str:
    """Return what is wrong with an error; nothing if it may be."""
    from retrieve_rerank.errors import RetrieveRerankError

    if isinstance(error, SystemExit) and error.code in (0, 1, 2):
        return ""
    try:
        message = str(error)
    except BaseException as second:  # noqa: BLE001
        return f"{type(error).__name__} cannot be shown: {type(second).__name__}"
    ours = any(_SOURCES in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    length = len(message.encode("utf-8", "surrogatepass"))
    if isinstance(error, RetrieveRerankError):
        return f"{type(error).__name__} of {length} bytes at {_place(error)}" if length > LONGEST else ""
    if isinstance(error, Theirs) or (isinstance(error, Exception) and not ours):
        return ""
    if isinstance(error, TypeError) and "unexpected keyword argument" in message:
        return ""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    if door.made and any(
        f"{os.sep}{name}{os.sep}" in innermost for name in ("pydantic", "llama_index", "langchain_core")
    ):
        return ""
    return f"{_place(error)} {_short(error)}"


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _SOURCES in frame.filename]
    return f"{frames[-1].filename.split(_SOURCES)[-1]}:{frames[-1].lineno}" if frames else "?"


def _short(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except Exception:  # noqa: BLE001
        return type(error).__name__


def _stop(*_: object) -> None:
    raise TooLong


def run_room(room: str, folder: Path, calls: int, seed: int) -> list[str]:
    """Call a room's doors, each as often; return what was wrong."""
    signal.signal(signal.SIGALRM, _stop)
    warnings.simplefilter("ignore")
    (folder / "here").mkdir()
    os.chdir(folder / "here")  # where odd names of files would lie
    made = Calls(random.Random(f"{room} {seed}"), folder / "journal")
    doors = list(getattr(importlib.import_module(f"tests.generated.{room}"), room)(folder))
    gc.collect()
    gc.freeze()  # what is imported and made is not looked through again when a model or an index is closed
    for number in range(calls):
        made.one(doors[number % len(doors)])
    return made.wrong


@pytest.mark.parametrize("room", ROOMS)
def test_generated_calls(room: str, tmp_path: Path) -> None:
    command = [*python(), "-m", "tests.test_generated_calls", room, str(tmp_path), str(CALLS // len(ROOMS)), str(SEED)]
    process = subprocess.run(command, capture_output=True, timeout=280 + CALLS, check=False)
    journal = (tmp_path / "journal").read_text(encoding="utf-8") if (tmp_path / "journal").exists() else "nothing"
    assert process.returncode == 0, f"status {process.returncode} at {journal}: {process.stderr.decode()[-2000:]}"
    wrong = json.loads(process.stdout.decode().splitlines()[-1])
    assert wrong == []


def main() -> None:
    room, folder, calls, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    wrong = run_room(room, folder, calls, seed)
    for place, count in Counter(line.split("): ", 1)[-1][:90] for line in wrong).most_common():
        print(count, place, file=sys.stderr)
    print(json.dumps(wrong), flush=True)
    os._exit(0)  # threads of calls that hang


if __name__ == "__main__":
    main()
