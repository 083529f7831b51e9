"""The errors this package raises on purpose.

RetrieveRerankError
├── ModelError                          a checkpoint cannot be loaded, is of the wrong kind, or gave unusable numbers
├── IndexMismatchError (ValueError)     a collection was made by another encoder, metric or format
├── IndexLockedError                    another process is writing the directory
├── MissingDependencyError (ImportError)  an extra of this package is not installed
├── InvalidInputError (ValueError)      an argument cannot be used as it is
└── RemoteError                         an inference server or a Chroma server failed

Every message says what was given, what was expected and what to do.
"""

from __future__ import annotations

import importlib
import os
import re
import reprlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

_LONGEST_MESSAGE = 1_900  # bytes: what was given may be megabytes


class RetrieveRerankError(Exception):
    """Base of every error that this package raises on purpose. A message that is far too long loses its middle."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_without_middle(each) if isinstance(each, str) else each for each in arguments))


class ModelError(RetrieveRerankError):
    """A checkpoint cannot be loaded, is of the wrong kind, or gave unusable numbers."""


class IndexMismatchError(RetrieveRerankError, ValueError):
    """A collection does not belong to this encoder, metric or format version."""


class IndexLockedError(RetrieveRerankError):
    """Another process holds the index for writing."""


class InvalidInputError(RetrieveRerankError, ValueError):
    """An argument cannot be used as it is."""


class RemoteError(RetrieveRerankError):
    """A server that the call needs cannot be reached or failed."""


class MissingDependencyError(RetrieveRerankError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        package: The module that is missing.
        extra: The extra of this package that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package!r} is not installed. Install it with: pip install "retrieve-rerank[{extra}]"')
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class TruncationWarning(UserWarning):
    """Some texts were longer than the model reads; the rest of them was not seen."""


class DegradedWarning(UserWarning):
    """A part of the search failed, and the result is what the rest could give."""


# What may lie between the user's code and ours.
_BETWEEN = frozenset(
    {"retrieve_rerank", "langchain_core", "langchain_classic", "llama_index", "llama_index_instrumentation"}
    | {"wrapt", "asyncio", "concurrent", "contextlib"}
)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn where the user's code called this package or a framework, however deep inside the warning arises."""
    level, frame = 1, sys._getframe(0)  # noqa: SLF001 - warnings has no other way before Python 3.12
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class _Shown(reprlib.Repr):
    """Shows a number by its size where its digits would fill the screen."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1_000 else f"<a number of {x.bit_length()} bits>"


_repr = _Shown()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 4, 120, 120


def shown(value: object) -> str:
    """Return a value for a message: short, whatever it is, and however deep; also where its own repr fails."""
    return _repr.repr(value)


def _without_middle(message: str) -> str:
    """Return a message with a gap if it is very long: what was expected, and what to do, stand at its end."""
    if len(message) * 4 <= _LONGEST_MESSAGE:
        return message
    given = message.encode("utf-8", "backslashreplace")
    if len(given) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2
    return f"{given[:half].decode('utf-8', 'ignore')} … {given[-half:].decode('utf-8', 'ignore')}"


_LONGEST_REASON = 300
_QUOTE = r"""(?:\\*b?\\*(["']))?"""
_REST = r"""(?:(?!\2).)+"""  # of a quoted value
# What a library may put into its message: a header, a setting, a parameter or a user in an address, a token of a
# well-known shape.
_SECRETS = (
    re.compile(
        rf"""(?i)(authorization(?:\\*["']\s*,|\\*["']?\s*[:=])\s*{_QUOTE})(?(2){_REST}|(?:[\w-]+\s+)?[^\s"',;]+)"""
    ),
    re.compile(
        r"""(?i)((?:api[-_ ]?key(?: provided)?|access[-_]?key|token|passw(?:or)?d|passphrase|secret|signature)"""
        rf"""(?:\\*["']\s*,|\\*["']?\s*[:=])\s*{_QUOTE})(?(2){_REST}|[^\s"',;&)]+)"""
    ),
    re.compile(r"""(?i)(\bbearer\s+)[^\s"',;]+"""),
    re.compile(r"(?i)(\b(?:apikey|basic)\s+)[\w+/=.-]{16,}"),
    re.compile(r"""(?i)([?&](?:key|sig|auth|code|pass|pwd|sas|jwt|x-(?:amz|goog)-[\w-]+)=)[^&\s"']+"""),
    re.compile(r"(://)[^\s/]+(?=@)"),
    re.compile(
        r"()\b(?:hf_|sk-|gsk_|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|nvapi-|pcsk_|AKIA|ASIA|AIza|eyJ)"
        r"[\w-]{8,}(?:\.[\w-]+)*"
    ),
)


def in_one_line(error: BaseException, hide: Callable[[str], str] = str) -> str:
    """Return an error's kind and message, short, in one line, and without tokens and passwords.

    Args:
        error: Whatever was raised, by whatever library.
        hide: Takes out secrets that the caller knows.
    """
    text = hide(" ".join(f"{type(error).__name__}: {error}".split()).rstrip(":. "))
    if known := os.environ.get("HF_TOKEN"):  # what the hub's client uses where no token is given
        text = text.replace(known, "***")
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def require(package: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Raises:
        MissingDependencyError: If `package` itself is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        # A dependency of the dependency that is missing is a broken installation, not a missing extra.
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise
        raise MissingDependencyError(package, extra) from error
