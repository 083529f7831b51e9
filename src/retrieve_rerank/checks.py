"""Checks on what callers hand in, so that every door answers bad input in the same words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, cast

from retrieve_rerank.errors import InvalidInputError, shown


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
    if isinstance(queries, (str, bytes)):
        raise InvalidInputError(f"{what} must be a list of strings, got one {type(queries).__name__}; wrap it: [...]")
    if not isinstance(queries, Iterable) or isinstance(queries, Mapping):  # of which the keys would be asked
        raise InvalidInputError(f"{what} must be a list of strings, got {type(queries).__name__}")
    item = "the query" if what == "queries" else f"one of {what}"
    return [check_query(query, item) for query in queries]


def check_texts(texts: Iterable[str], what: str = "texts") -> list[str]:
    """Return `texts` as a list, or raise InvalidInputError naming the first item that is not a usable string."""
    if isinstance(texts, (str, bytes)):
        raise InvalidInputError(
            f"{what} must be a list of strings, got a single {type(texts).__name__}; wrap it: [...]"
        )
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):  # of which the keys would be taken
        raise InvalidInputError(f"{what} must be a list of strings, got {type(texts).__name__}")
    items = list(texts)
    for position, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidInputError(f"{what}[{position}] must be a string, got {type(item).__name__}")
        check_encodable(item, f"{what}[{position}]")
    return items


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


def check_count(value: int, name: str) -> int:
    """Return `value` as an int of 1 or more, or raise InvalidInputError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidInputError(f"{name} must be a whole number >= 1, got {shown(value)}")
    count = value.__index__()
    if count < 1:
        raise InvalidInputError(f"{name} must be >= 1, got {shown(count)}")
    return count


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
