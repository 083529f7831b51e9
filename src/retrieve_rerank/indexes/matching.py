"""Chroma's filter language, for records that are not in Chroma.

As in Chroma, a filter on a key looks at plain values only: $ne, $nin and $not_contains also hold for records that lack
the key, and $contains asks whether a list has the value in it. Unlike in Chroma, a number equals a number exactly,
whether it is whole or not, and a truth value is no number.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retrieve_rerank.checks import check_encodable
from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.records import JSON_KEY, Record

Where = Mapping[str, Any]
Matches = Callable[[Record], bool]
_Test = Callable[[Any], bool]

_TEXT_KEY = "#document"
_MISSING = object()
_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_JOIN: dict[str, Callable[[Any], bool]] = {"$and": all, "$or": any}
_OPERATORS = ("$eq", "$ne", *_ORDER, "$in", "$nin", "$contains", "$not_contains")
_TEXT_OPERATORS = ("$contains", "$not_contains", "$regex", "$not_regex")


def matcher(where: Where | None, where_document: Where | None) -> Matches | None:
    """Return what tells whether a record passes both filters, or None where there is no filter.

    Args:
        where: Filter on metadata, such as `{"source": "atlas"}` or `{"$and": [{"year": {"$gte": 2020}}, …]}`.
        where_document: Filter on the text, such as `{"$contains": "France"}`; `$regex` is Python's.

    Raises:
        InvalidInputError: If a filter cannot be used, saying why.
    """
    parts: list[Matches] = []
    for name, value, build in (("where", where, _metadata), ("where_document", where_document, _document)):
        if value is not None and not isinstance(value, Mapping):
            raise InvalidInputError(f"{name} must be a mapping such as {{'source': 'atlas'}}, got {value!r}")
        if value:
            parts.append(build(value))
    if len(parts) < 2:
        return parts[0] if parts else None
    return _joined(all, parts)


def _metadata(where: Where) -> Matches:
    key, test = _single(where, "where")
    if not isinstance(key, str):
        raise InvalidInputError(f"where: a key must be a string, got {key!r}")
    check_encodable(key, "a key in where")
    if key in _JOIN:
        return _joined(_JOIN[key], [_metadata(part) for part in _parts(key, test, "where")])
    if key == _TEXT_KEY:
        if not isinstance(test, Mapping):
            raise InvalidInputError(f"where: {_TEXT_KEY!r} takes $contains or $not_contains, got {test!r}")
        return _document(test, operators=("$contains", "$not_contains"))
    if key.startswith("$"):
        raise InvalidInputError(f"where: {key!r} is no operator that joins filters; there are {', '.join(_JOIN)}")
    name, operand = _single(test, f"where[{key!r}]") if isinstance(test, Mapping) else ("$eq", test)
    holds = _value_test(key, name, operand)
    if key == JSON_KEY:  # ours, not the user's
        return lambda record: holds(_MISSING)
    return lambda record: holds(record.metadata.get(key, _MISSING))


def _document(where: Where, operators: Sequence[str] = _TEXT_OPERATORS) -> Matches:
    name, operand = _single(where, "where_document")
    if name in _JOIN:
        return _joined(_JOIN[name], [_document(part, operators) for part in _parts(name, operand, "where_document")])
    if name not in operators:
        raise InvalidInputError(f"where_document: {name!r} is no operator on text; there are {', '.join(operators)}")
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


def _value_test(key: str, name: str, operand: Any) -> _Test:
    where = f"where[{key!r}]"
    if name not in _OPERATORS:
        raise InvalidInputError(f"{where}: {name!r} is no operator; there are {', '.join(_OPERATORS)}")
    if name in ("$in", "$nin"):
        if not isinstance(operand, (list, tuple)) or not operand:
            raise InvalidInputError(f"{where}: {name} takes a non-empty list, got {operand!r}")
        wanted = {_kind(_checked(item, f"{where}: {name}")) for item in operand}
        return lambda value: (_kind(value) in wanted) == (name == "$in")
    _checked(operand, f"{where}: {name}")
    if name in _ORDER:
        if not _is_number(operand):
            raise InvalidInputError(f"{where}: {name} compares numbers, got {operand!r}")
        compare = _ORDER[name]
        return lambda value: _is_number(value) and compare(value, operand)
    same = _kind(operand)
    if name in ("$eq", "$ne"):
        return lambda value: (_kind(value) == same) == (name == "$eq")
    return lambda value: (
        (isinstance(value, list) and any(_kind(item) == same for item in value)) == (name == "$contains")
    )


def _joined(join: Callable[[Any], bool], parts: Sequence[Matches]) -> Matches:
    return lambda record: join(part(record) for part in parts)


def _single(where: Any, what: str) -> tuple[Any, Any]:
    """Return the one key of a filter and what stands under it."""
    if not isinstance(where, Mapping) or len(where) != 1:
        raise InvalidInputError(
            f"{what} must have exactly one operator or key, got {where!r}; join several by $and or $or"
        )
    return next(iter(where.items()))


def _parts(name: str, parts: Any, what: str) -> list[Any]:
    if not isinstance(parts, (list, tuple)) or len(parts) < 2:
        raise InvalidInputError(f"{what}: {name} joins a list of at least two filters, got {parts!r}")
    return list(parts)


def _kind(value: Any) -> tuple[str, Any]:
    """Return a value so that two are equal only if they are of one kind."""
    if isinstance(value, bool):
        return "truth value", value
    if isinstance(value, (int, float)):
        return "number", value
    return ("text", value) if isinstance(value, str) else ("other", None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _checked(operand: Any, what: str) -> Any:
    if not isinstance(operand, (str, int, float)) or (isinstance(operand, float) and not math.isfinite(operand)):
        raise InvalidInputError(f"{what} takes text, a finite number or a truth value, got {operand!r}")
    if isinstance(operand, str):
        check_encodable(operand, f"a text in {what}")
    return operand
