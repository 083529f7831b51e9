"""Filters of the language in `clauses` on records that are not in Chroma, and Chroma's filters on the text."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

from retrieve_rerank.checks import check_encodable
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.clauses import TEXT_KEY, Where, checked
from retrieve_rerank.indexes.records import Record

Matches = Callable[[Record], bool]
_Test = Callable[[Any], bool]

_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_JOIN: dict[str, Callable[[Any], bool]] = {"$and": all, "$or": any}
_TEXT_OPERATORS = ("$contains", "$not_contains", "$regex", "$not_regex")


def matcher(where: Where | None, where_document: Where | None) -> Matches | None:
    """Return what tells whether a record passes both filters, or None where there is no filter.

    Args:
        where: Filter on metadata, in the language of `clauses`.
        where_document: Filter on the text, such as `{"$contains": "France"}`; `$regex` is Python's.

    Raises:
        InvalidInputError: If a filter cannot be used, saying why.
    """
    parts: list[Matches] = []
    if where or not isinstance(where, (Mapping, NoneType)):  # an empty one is no filter
        parts.append(_metadata(checked(where)))
    if where_document or not isinstance(where_document, (Mapping, NoneType)):
        parts.append(_document(where_document))
    if len(parts) < 2:
        return parts[0] if parts else None
    return _joined(all, parts)


def _metadata(where: Where) -> Matches:
    ((key, test),) = where.items()
    if key in _JOIN:
        return _joined(_JOIN[key], [_metadata(part) for part in test])
    if key == TEXT_KEY:
        return _document(test)
    ((name, operand),) = test.items()
    holds = _value_test(name, operand)
    return lambda record: holds(record.metadata.get(key))


def _document(where: Any) -> Matches:
    if not isinstance(where, Mapping) or len(where) != 1:
        raise InvalidInputError(
            f"where_document must be a mapping of exactly one operator, such as {{'$contains': 'word'}}; got {where!r}"
        )
    ((name, operand),) = where.items()
    if name in _JOIN:
        if not isinstance(operand, (list, tuple)) or len(operand) < 2:
            raise InvalidInputError(f"where_document: {name} joins a list of at least two filters, got {operand!r}")
        return _joined(_JOIN[name], [_document(part) for part in operand])
    if name not in _TEXT_OPERATORS:
        raise InvalidInputError(
            f"where_document: {name!r} is no operator on text; there are {', '.join(_TEXT_OPERATORS)}, $and and $or"
        )
    if not isinstance(operand, str) or not operand:
        raise InvalidInputError(f"where_document: {name} takes a non-empty string, got {operand!r}")
    check_encodable(operand, f"{name} in where_document")
    if name.endswith("regex"):
        try:
            find = re.compile(operand).search
        except re.error as error:
            raise InvalidInputError(f"where_document: {operand!r} is no valid regex: {error}") from error
        return lambda record: (find(record.text) is not None) == (name == "$regex")
    return lambda record: (operand in record.text) == (name == "$contains")


def _value_test(name: str, operand: Any) -> _Test:
    if name in ("$in", "$nin"):
        wanted = set(map(_kind, operand))
        return lambda value: (_kind(value) in wanted) == (name == "$in")
    if name in _ORDER:
        compare = _ORDER[name]
        return lambda value: _kind(value)[0] == "number" and compare(value, operand)
    same = _kind(operand)
    if name in ("$eq", "$ne"):
        return lambda value: (_kind(value) == same) == (name == "$eq")
    # Of lists only.
    return lambda value: (isinstance(value, list) and same in map(_kind, value)) == (name == "$contains")


def _joined(join: Callable[[Any], bool], parts: Sequence[Matches]) -> Matches:
    return lambda record: join(part(record) for part in parts)


def _kind(value: Any) -> tuple[str, Any]:
    """Return a value so that two are equal only if they are of one kind; lists and what is missing equal nothing."""
    if isinstance(value, bool):
        return "truth value", value
    if isinstance(value, (int, float)):
        return "number", value
    return ("text", value) if isinstance(value, str) else ("other", None)
