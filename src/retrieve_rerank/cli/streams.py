"""stdout is for data, stderr for people, text from outside made harmless for both; and how a command ends."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TextIO

import typer

from retrieve_rerank.errors import DegradedWarning, RetrieveRerankError, TruncationWarning

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

P = ParamSpec("P")

# What a terminal could take for a command, and what turns the direction of writing: C0 and C1 controls but tab and
# line feed, DEL, bidirectional overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# JSON escapes C0 itself. U+0085, U+2028 and U+2029 would end a line for some readers.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_OURS = f"{Path(__file__).parents[1]}{os.sep}"  # where our code is
_BLOCK = 1 << 20  # bytes read at once, if there are as many
_GLANCE = 0.5  # seconds after which waiting for lines looks whether Ctrl-C was pressed
_STOPPED = 130  # what shells give a program that Ctrl-C ended


def with_examples(text: str, *examples: str, title: str = "Examples") -> str:
    """Return a help text with examples, whose lines stay as they are."""
    return f"{text}\n\n\b\n{title}:\n" + "\n".join(f"  {example}" for example in examples)


def clean(text: str) -> str:
    """Return text from outside with everything replaced that a terminal could obey."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def one_line(text: str, length: int) -> str:
    """Return the beginning of a text, harmless and on one line."""
    words = " ".join(clean(text[: 4 * length]).split())
    return words if len(words) <= length else words[: length - 1] + "…"


def json_line(record: Mapping[str, object]) -> str:
    """Return a record as one line of JSON without anything that a terminal could obey."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def arriving(stream: int) -> Iterator[list[bytes]]:
    """Yield the lines of a stream as they come, without their ends: all that are there by now at once."""
    rest: list[bytes] = []  # pieces of a line that goes on: put together once
    while block := _read(stream):
        first, *others = block.split(b"\n")
        rest.append(first)
        if others:
            yield [b"".join(rest), *others[:-1]]
            rest = [others[-1]]
    if last := b"".join(rest):
        yield [last]


def _read(stream: int) -> bytes:
    """Wait for bytes; none are the end.

    A Ctrl-C that arrives just before a read begins, or on another thread, does not interrupt the read: so it is not
    begun before there is something to read, and waiting looks up now and then.
    """
    if sys.platform != "win32":  # whose `select` knows sockets only
        while not select.select([stream], [], [], _GLANCE)[0]:
            pass
    return os.read(stream, _BLOCK)


def for_people(*, json: bool) -> bool:
    """Whether data are shown as a table: on a terminal, unless JSON is asked for."""
    return not json and sys.stdout.isatty()


def show_bars() -> bool:
    """Whether progress is drawn: a log file wants none."""
    return sys.stderr.isatty()


def put(record: Mapping[str, object]) -> None:
    """Write one line of JSON at once."""
    sys.stdout.write(json_line(record))
    sys.stdout.flush()


def show(*things: RenderableType) -> None:
    """Write tables and text, as wide as the terminal. Text from outside must be clean."""
    screen = console()
    for thing in things:
        screen.print(thing)


def result(tell: Callable[[], None]) -> None:
    """Tell a result on stdout. Whoever reads it may have gone, which must not change what the command ends with."""
    try:
        tell()
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()


@contextmanager
def files_first(tell: Callable[[], None]) -> Iterator[list[str]]:
    """Write files, then tell the result on stdout, then name the files: put a line for each into what this gives.

    Whoever reads stdout may have gone, which must cost no file and no status; and where a file fails, the result is
    told all the same.
    """
    written: list[str] = []
    try:
        yield written
    finally:
        result(tell)
        for line in written:
            say(line)


def write_files(written: list[str], *files: tuple[str, Path | None, Callable[[Path], object]]) -> None:
    """Write every file that was asked for, whatever becomes of the others.

    Args:
        written: Takes a line for each, as of `files_first`.
        *files: What it is, where to, and what writes it there.

    Raises:
        OSError: If some could not be written, naming them.
    """
    failed: dict[str, Exception] = {}
    for name, path, write in files:
        if path is None:
            continue
        try:
            write(path)
        except BrokenPipeError:  # /dev/stdout, say, and whoever read has enough
            continue
        except Exception as error:  # noqa: BLE001 - hours of scoring may be in the next file
            failed[f"{name} {path}"] = error
        else:
            written.append(f"{name}: {path}")
    if failed:
        reasons = "; ".join(f"{file}: {str(error) or type(error).__name__}" for file, error in failed.items())
        raise OSError(f"could not be written: {reasons}") from next(iter(failed.values()))


def console() -> Console:
    """Return a console on stdout that takes text as it is. It knows NO_COLOR, COLUMNS and TERM=dumb."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def say(message: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{clean(message)}\n")
    sys.stderr.flush()


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command end as a program should: one message without a traceback, whatever happens.

    A command has the keyword `debug`, which shows the traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.get("debug"))
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by whoever started this, as by >&-
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - to the end
            _prepare(getattr(sys, name))
        try:
            with _warnings(debug=debug):
                command(*args, **kwargs)
                sys.stdout.flush()
        except BrokenPipeError:  # whoever read has enough: no failure
            _drop_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            say("\nretrieve-rerank: stopped")
            raise typer.Exit(_STOPPED) from None
        except typer.Exit:
            raise
        except (RetrieveRerankError, OSError, RecursionError, MemoryError) as error:
            _fail(str(error) or type(error).__name__, debug=debug)
        except Exception as error:
            if _is_about_the_call(error):
                raise
            _fail(f"unexpected {type(error).__name__}: {error} (--debug shows where)", debug=debug)

    return run


def _is_about_the_call(error: Exception) -> bool:
    """Whether typer made the error, about options: it shows those itself, with status 2."""
    return isinstance(error, (typer.BadParameter.__mro__[1], typer.Abort))


def _fail(message: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    say(f"retrieve-rerank: {message}")
    raise typer.Exit(1) from None


def _prepare(stream: TextIO) -> None:
    if isinstance(stream, io.TextIOWrapper):
        if stream.isatty():
            stream.reconfigure(errors="replace")  # an old console may lack some characters
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _drop_stdout() -> None:
    # Python flushes stdout once more at its end, and would complain then.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


@contextmanager
def _warnings(*, debug: bool) -> Iterator[None]:
    """Show each of our warnings once, on one line; those of libraries only for debugging."""
    said: set[str] = set()

    def show_once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = issubclass(category, (TruncationWarning, DegradedWarning)) or filename.startswith(_OURS)
        text = " ".join(str(message).split())
        if text not in said and (ours or debug):
            said.add(text)
            say(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show_once
        yield
