"""Checks on what callers hand in, so that every door answers bad input in the same words."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar, cast

from retrieve_rerank.errors import InvalidInputError, shown

T = TypeVar("T")


def check_query(query: str, what: str = "the query") -> str:
    """Return `query`, or raise InvalidInputError if it is not a string with something in it."""
    if not isinstance(query, str):
        raise InvalidInputError(f"{what} must be a string, got {type(query).__name__}")
    if not query.strip():
        raise InvalidInputError(f"{what} is empty (got {shown(query)}); give at least one word")
    check_encodable(query, what)
    return query


def check_queries(queries: Iterable[str], what: str = "queries") -> list[str]:
    """Return `queries` as a list, or raise InvalidInputError if it is no list or one of them is not usable."""
    item = "the query" if what == "queries" else f"one of {what}"
    return [check_query(query, item) for query in _list_of_strings(queries, what)]


def check_texts(texts: Iterable[str], what: str = "texts") -> list[str]:
    """Return `texts` as a list, or raise InvalidInputError naming the first item that is not a usable string."""
    items = _list_of_strings(texts, what)
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidInputError(f"{what}[{position}] must be a string, got {type(item).__name__}")
        check_encodable(item, f"{what}[{position}]")
    return items


def _list_of_strings(values: Iterable[str], what: str) -> list[str]:
    if isinstance(values, (str, bytes)):
        raise InvalidInputError(f"{what} must be a list of strings, got one {type(values).__name__}; wrap it: [...]")
    if isinstance(values, Mapping):  # of which the keys would be taken
        raise InvalidInputError(f"{what} must be a list of strings, got {type(values).__name__}")
    return list(check_iterable(values, what, "strings"))


def is_iterable(values: object) -> bool:
    """Whether `values` can be walked through; an array of no dimension, which says that it can, can not."""
    try:
        iter(cast("Iterable[object]", values))
    except TypeError:
        return False
    return True


def check_iterable(values: Iterable[T], what: str, of: str) -> Iterable[T]:
    """Return an iterator over `values`, or raise InvalidInputError if there is none, as over an array of no dimension.

    Args:
        values: Whatever the caller gave.
        what: What the error calls it.
        of: What it should hold.
    """
    try:
        return iter(values)
    except TypeError as error:
        raise InvalidInputError(f"{what} must be a list of {of}, got {type(values).__name__}") from error


def check_mapping(value: Mapping[str, T] | None, what: str) -> dict[str, T]:
    """Return `value` as a dict, an empty one for None, or raise InvalidInputError if its keys are no strings."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidInputError(f"{what} must be a mapping whose keys are strings, got {shown(value)}")
    return dict(value)


def check_encodable(text: str, what: str) -> None:
    """Raise InvalidInputError if `text` holds lone surrogates, which no model and no store can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{what} holds a lone surrogate ({text[error.start]!r} at character {error.start}), which is not valid "
            "Unicode; decode the source with the right encoding, or clean it with "
            "text.encode('utf-8', 'replace').decode()"
        ) from error


def check_prompt(value: str | None, name: str) -> str | None:
    """Return an instruction to a model, or raise InvalidInputError if it is no text."""
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(f"{name} must be a text that is put before each input, got {shown(value)}")
    return value


def check_count(value: int, name: str, *, least: int = 1, most: int = sys.maxsize) -> int:
    """Return `value` as an int from `least` to `most`, or raise InvalidInputError."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise InvalidInputError(f"{name} must be a whole number >= {least}, got {shown(value)}")
    if count < least:
        raise InvalidInputError(f"{name} must be >= {least}, got {shown(count)}")
    if count > most < sys.maxsize:
        raise InvalidInputError(f"{name} must be <= {most}, got {shown(count)}")
    return min(count, most)  # beyond what Python counts to is as good as all


def check_flag(value: bool, name: str) -> bool:  # noqa: FBT001
    """Return `value` as a bool, or raise InvalidInputError, as for the text "false", which Python takes for true."""
    if not (isinstance(value, int) and value in (0, 1)) and type(value).__name__ not in ("bool", "bool_"):  # numpy's
        raise InvalidInputError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def check_choice(value: str, choices: Iterable[str], name: str) -> str:
    """Return `value` as a plain string, or raise InvalidInputError if it is none of the choices."""
    known = tuple(choices)
    if not isinstance(value, str) or (plain := str.__str__(value)) not in known:
        wanted = f"one of {', '.join(known)};" if len(known) > 2 else f"{' or '.join(map(repr, known))},"
        raise InvalidInputError(f"{name} must be {wanted} got {shown(value)}")
    return plain


def check_threshold(value: float | None) -> float | None:
    """Return `value` as a float in [0, 1] or None, or raise InvalidInputError."""
    if value is None:
        return None
    if not 0 <= (number := number_of(value)) <= 1:
        raise InvalidInputError(
            f"score_threshold is compared with the relevance score, which lies in [0, 1]; got {shown(value)}"
        )
    return number


def check_seconds(value: float | None, name: str) -> float | None:
    """Return `value` as a float above 0 or None, or raise InvalidInputError."""
    if value is None:
        return None
    if not 0 < (number := number_of(value)) < math.inf:
        raise InvalidInputError(f"{name} must be a number of seconds above 0, or None for no limit; got {shown(value)}")
    return number


def number_of(value: object) -> float:
    """Return a real number as a float; NaN, for which no comparison holds, for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if cast(Any, value) > 0 else -math.inf
