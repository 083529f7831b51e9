"""The filter language on metadata, which is Chroma's, checked and made to mean what it says.

`{key: value}` and `{key: {operator: value}}`, and two or more of these in `{"$and": [...]}` and `{"$or": [...]}`.
Operators:

    $eq, $ne                            text, a number or a boolean; {key: value} is short for $eq
    $gt, $gte, $lt, $lte                a number
    $in, $nin                           a list of texts, of numbers or of booleans; never empty
    $contains, $not_contains            one value, looked for in a list that is stored under the key; or, under the key
                                        "#document", a text looked for in the passage's text

Numbers compare as numbers, exactly: 2 is 2.0, and 2020 is not 2020.5. True is not 1. Whatever lacks the key passes $ne,
$nin and $not_contains, and nothing else.

A mapping under a key is always an operator: `{"user": {"$ne": ""}}` finds every user. Where a value comes from outside,
write `{"user": {"$eq": value}}`, which takes nothing but text, a number or a boolean.

Chroma itself cuts the fraction off a number before it compares it with a stored int, so that year >= 2020.5 finds the
year 2020; and it finds a number in a stored list only if both are ints or both are floats. `exact` says it in clauses
that Chroma gets right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from retrieve_rerank.checks import check_encodable
from retrieve_rerank.errors import InvalidInputError

Where = Mapping[str, Any]
Scalar: TypeAlias = str | int | float  # a bool is an int

TEXT_KEY = "#document"  # Chroma's name for the text; no metadata key may start with #

_ONE = ("$eq", "$ne")
_NUMBER = ("$gt", "$gte", "$lt", "$lte")
_SEVERAL = ("$in", "$nin")
_INSIDE = ("$contains", "$not_contains")
_OPERATORS = (*_ONE, *_NUMBER, *_SEVERAL, *_INSIDE)
_JOINS = ("$and", "$or")
_INT64 = range(-(2**63), 2**63)


def checked(where: Where) -> dict[str, Any]:
    """Return a filter in its long form: one operator under every key, plain Python values.

    Raises:
        InvalidInputError: If the filter is not in the language, saying which part and why.
    """
    if not isinstance(where, Mapping):
        raise InvalidInputError(f"where must be a mapping such as {{'source': 'atlas'}}, got {where!r}")
    if len(where) != 1:
        raise _refusal(
            where,
            f"a clause has exactly one operator or key, not {len(where)}; join several: "
            "{'$and': [{'year': 2020}, {'kind': 'fact'}]}",
        )
    ((key, test),) = where.items()
    if not isinstance(key, str) or not key:
        raise _refusal(where, f"a key must be a string with at least one character, not {key!r}")
    key = str.__str__(key)
    check_encodable(key, "a key in where")
    if key in _JOINS:
        if not isinstance(test, (list, tuple)) or len(test) < 2:
            raise _refusal(where, f"{key} needs a list of at least two clauses; write a single one without it")
        return {key: [checked(clause) for clause in test]}
    if key.startswith("$") or (key.startswith("#") and key != TEXT_KEY):
        raise _refusal(
            where, f"no metadata key starts with $ or #, and {key!r} is none of {', '.join(_JOINS)} and {TEXT_KEY}"
        )
    return {key: _checked_test(where, key, test)}


def _checked_test(clause: Where, key: str, test: object) -> dict[str, Any]:
    if not isinstance(test, Mapping):
        test = {"$eq": test}
    if len(test) != 1:
        raise _refusal(
            clause,
            f"a mapping under a key must be exactly one operator with its value, not {len(test)}; join several tests "
            "by $and",
        )
    ((operator, value),) = test.items()
    operator = str.__str__(operator) if isinstance(operator, str) else operator
    if operator not in _OPERATORS:
        raise _refusal(clause, f"the operator {operator!r} is unknown; there are {', '.join(_OPERATORS)}, $and and $or")
    if key == TEXT_KEY and (operator not in _INSIDE or not isinstance(value, str) or not value):
        raise _refusal(clause, f"{TEXT_KEY} takes {' and '.join(_INSIDE)}, with a text of at least one character")
    if operator in _SEVERAL:
        if not isinstance(value, (list, tuple)) or not value:
            raise _refusal(clause, f"{operator} needs a non-empty list of values")
        values = [_scalar(clause, item) for item in value]
        if len({_kind(item) for item in values}) > 1:
            raise _refusal(clause, f"{operator} needs values of one type: all texts, all numbers or all booleans")
        return {operator: values}
    plain = _scalar(clause, value)
    if operator in _NUMBER and _kind(plain) is not float:
        raise _refusal(clause, f"{operator} compares numbers; store dates as numbers, such as a timestamp or 20240131")
    return {operator: plain}


def _scalar(clause: Where, value: object) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        check_encodable(value, "a value in the where filter")  # which may be long, and is not printed for each
        return str.__str__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(clause, "NaN and infinity cannot be compared")
        return float(value)
    if isinstance(value, int):
        if value not in _INT64:
            raise _refusal(clause, f"{value} does not fit into 64 bits, and is stored nowhere")
        return value if isinstance(value, bool) else int(value)
    what = "None is stored nowhere" if value is None else f"a {type(value).__name__} is no such value"
    raise _refusal(clause, f"a value is text, a number or a boolean, and {what}")


def _kind(value: Scalar) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def _refusal(clause: object, why: str) -> InvalidInputError:
    return InvalidInputError(f"the where filter {clause!r} cannot be used: {why}")


def exact(where: Where) -> dict[str, Any]:
    """Return a filter, checked, as clauses that Chroma gets right.

    Raises:
        InvalidInputError: If the filter is not in the language.
    """
    return _exact(checked(where))


def _exact(where: Where) -> dict[str, Any]:
    ((key, test),) = where.items()
    if key in _JOINS:
        return {key: [_exact(clause) for clause in test]}
    ((operator, value),) = test.items()
    if key == TEXT_KEY:
        if "\x00" in value:
            raise _refusal(where, "Chroma reads a text up to the first NUL only")
        return {key: test}
    if operator in _ONE:
        return _equal(key, value, negated=operator == "$ne")
    if operator in _SEVERAL:
        return _among(key, value, negated=operator == "$nin")
    if operator in _INSIDE:
        return _contains(key, value, negated=operator == "$not_contains")
    return _compare(key, operator, value)


def joined(operator: str, clauses: Sequence[Where]) -> dict[str, Any]:
    """Join clauses, at least one, by "$and" or "$or", which want two or more of them."""
    return {operator: list(clauses)} if len(clauses) > 1 else dict(clauses[0])


def _compare(key: str, operator: str, number: float) -> dict[str, Any]:
    if _is_whole(number):
        return {key: {operator: number}}
    # Floats are compared with the number, and ints with the whole number before or after it.
    below = operator in ("$lt", "$lte")
    floats = {key: {"$lt" if below else "$gt": number}}
    ints = {key: {"$lte": math.floor(number)}} if below else {key: {"$gte": math.ceil(number)}}
    same = [_equal(key, number, negated=False)] if operator in ("$lte", "$gte") else []
    return {"$or": [floats, ints, *same]}


def _equal(key: str, value: Scalar, *, negated: bool) -> dict[str, Any]:
    if _is_whole(value):
        return {key: {"$ne" if negated else "$eq": value}}
    cut = math.trunc(float(value))
    if negated:
        return {"$or": [{key: {"$ne": value}}, {key: {"$eq": cut}}]}
    return {"$and": [{key: {"$eq": value}}, {key: {"$ne": cut}}]}


def _among(key: str, values: Sequence[Scalar], *, negated: bool) -> dict[str, Any]:
    whole: list[Scalar] = []
    huge: list[Scalar] = []
    clauses: list[Where] = []
    for value in values:
        if not _is_whole(value):
            clauses.append(_equal(key, value, negated=negated))
        elif not isinstance(value, float):
            whole.append(value)
        elif int(value) in _INT64:  # Chroma wants a list all ints, or all floats
            whole.append(int(value))
        else:
            huge.append(value)
    clauses += [{key: {"$nin" if negated else "$in": group}} for group in (whole, huge) if group]
    return joined("$and" if negated else "$or", clauses)


def _contains(key: str, value: Scalar, *, negated: bool) -> dict[str, Any]:
    forms: list[Scalar] = [value]
    if _kind(value) is float and _is_whole(value):
        forms = [float(value), *([int(value)] if int(value) in _INT64 else [])]
    operator = "$not_contains" if negated else "$contains"
    return joined("$and" if negated else "$or", [{key: {operator: form}} for form in forms])


def _is_whole(value: Scalar) -> bool:
    """Whether Chroma compares `value` right as it is: anything but a number with a fraction."""
    return not isinstance(value, float) or value.is_integer()
