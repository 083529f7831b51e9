"""LlamaIndex's metadata filters as Chroma's `where` and `where_document`.

What Chroma cannot express raises: a filter that is dropped or bent finds the wrong nodes without a word. `not` is
pushed down to the leaves. There, Chroma's $ne, $nin and $not_contains match records that lack the key, which is what
the negation of ==, in and contains means; <, <=, > and >= have no such opposite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from retrieve_rerank.errors import InvalidInputError
from retrieve_rerank.indexes.filters import TEXT_KEY, Scalar, Where, joined

_COMPARE = {
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_ON_TEXT = (
    FilterOperator.TEXT_MATCH,
    FilterOperator.TEXT_MATCH_INSENSITIVE,
    FilterOperator.CONTAINS,
    FilterOperator.ANY,
    FilterOperator.ALL,
)
_SAME = {FilterCondition.AND: "$and", FilterCondition.OR: "$or", FilterCondition.NOT: "$and"}
_OPPOSITE = {FilterCondition.AND: "$or", FilterCondition.OR: "$and", FilterCondition.NOT: "$or"}
# The characters with a meaning in the regular expressions of Rust, which Chroma's are.
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$#&\-~])")


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter in Chroma's words: on metadata, and on the text. A record must pass both."""

    where: Where | None = None
    where_document: Where | None = None

    def both(self, other: Condition) -> Condition:
        """Return the condition that holds where this one and `other` hold."""
        return Condition(
            _every([clause for clause in (self.where, other.where) if clause]),
            _every([clause for clause in (self.where_document, other.where_document) if clause]),
        )


def to_condition(filters: MetadataFilters | None) -> Condition:
    """Translate filters; None and an empty list of filters are no condition.

    Raises:
        InvalidInputError: If Chroma cannot express a filter, saying which and why.
    """
    if filters is None:
        return Condition()
    if not isinstance(filters, MetadataFilters):
        raise InvalidInputError(f"filters must be a MetadataFilters, got {type(filters).__name__}")
    if not filters.filters:
        return Condition()
    where: list[Where] = []
    on_text: list[Where] = []
    for clause in _conjuncts(_group(filters, negated=False)):
        if not _has_regex(clause):
            where.append(clause)
        elif all(key == TEXT_KEY for key in _keys(clause)):
            on_text.append(_of_text(clause))
        else:
            raise InvalidInputError(
                "a text_match_insensitive filter is combined by 'or' with filters on metadata, which Chroma cannot do; "
                "use text_match (case-sensitive) there, or combine them by 'and'"
            )
    return Condition(_every(where), _every(on_text))


def _group(filters: MetadataFilters, *, negated: bool) -> Where:
    if not filters.filters:
        raise InvalidInputError("a group of filters inside another is empty; leave it out")
    condition = filters.condition or FilterCondition.AND
    inner = negated != (condition is FilterCondition.NOT)  # NOT: none of its filters holds
    clauses = [
        _group(item, negated=inner) if isinstance(item, MetadataFilters) else _leaf(item, negated=inner)
        for item in filters.filters
    ]
    return joined((_OPPOSITE if negated else _SAME)[condition], clauses)


def _leaf(item: MetadataFilter, *, negated: bool) -> Where:
    if item.key == TEXT_KEY:
        _check_on_text(item)
    elif item.key.startswith(("#", "$")):
        raise _refusal(item, "Chroma stores no key that starts with # or $")
    translate = _TRANSLATE.get(item.operator)
    if translate is None:
        raise _refusal(item, "Chroma cannot find records that lack a key; store a value that says so, and filter on it")
    return translate(item, negated)


def _comparison(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001 - one signature for all translators
    if not isinstance(item.value, (int, float)):
        raise _refusal(item, "Chroma compares numbers only; store dates as numbers, such as a timestamp or 20240131")
    _check_finite(item, item.value)
    if negated:
        raise _refusal(
            item,
            "its negation also holds for records that lack the key, which Chroma cannot ask for; use the opposite "
            "comparison, which asks for records that have it",
        )
    return {item.key: {_COMPARE[item.operator]: item.value}}


def _equality(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    if item.value is None:
        raise _refusal(item, "Chroma stores no None, so nothing can equal it")
    if isinstance(item.value, list):
        raise _refusal(item, "it compares with one value; use in, contains, any or all for lists")
    _check_finite(item, item.value)
    return {item.key: {"$ne" if negated != (item.operator is FilterOperator.NE) else "$eq": item.value}}


def _membership(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    return {item.key: {"$nin" if negated != (item.operator is FilterOperator.NIN) else "$in": _values(item)}}


def _has_one(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    if isinstance(item.value, list) or item.value is None:
        raise _refusal(item, "it looks for one value in a list; use any or all for several")
    _check_finite(item, item.value)
    return _contains(item.key, item.value, negated=negated)


def _has_several(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    all_of_them = negated != (item.operator is FilterOperator.ALL)
    clauses = [_contains(item.key, value, negated=negated) for value in _values(item)]
    return joined("$and" if all_of_them else "$or", clauses)


def _text(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    if item.key != TEXT_KEY:
        raise _refusal(
            item,
            f"Chroma finds substrings in a node's text only: use the key {TEXT_KEY!r}; for list-valued metadata use "
            "contains",
        )
    wanted = str(item.value)
    if item.operator is FilterOperator.TEXT_MATCH:
        return _contains(TEXT_KEY, wanted, negated=negated)
    return {TEXT_KEY: {"$not_regex" if negated else "$regex": "(?i)" + _SPECIAL.sub(r"\\\1", wanted)}}


def _contains(key: str, value: Scalar, *, negated: bool) -> Where:
    return {key: {"$not_contains" if negated else "$contains": value}}


_TRANSLATE: dict[FilterOperator, Callable[[MetadataFilter, bool], Where]] = {
    **dict.fromkeys(_COMPARE, _comparison),
    FilterOperator.EQ: _equality,
    FilterOperator.NE: _equality,
    FilterOperator.IN: _membership,
    FilterOperator.NIN: _membership,
    FilterOperator.CONTAINS: _has_one,
    FilterOperator.ANY: _has_several,
    FilterOperator.ALL: _has_several,
    FilterOperator.TEXT_MATCH: _text,
    FilterOperator.TEXT_MATCH_INSENSITIVE: _text,
}


def _check_on_text(item: MetadataFilter) -> None:
    if item.operator not in _ON_TEXT:
        raise _refusal(item, "the text can be searched with text_match, text_match_insensitive, contains, any and all")
    for value in item.value if isinstance(item.value, list) else [item.value]:
        if not isinstance(value, str) or not value:
            raise _refusal(item, "what is looked for in the text must be a text with at least one character")


def _values(item: MetadataFilter) -> list[str] | list[int] | list[float]:
    if not isinstance(item.value, list) or not item.value:
        raise _refusal(item, "its value must be a list with at least one item")
    for value in item.value:
        _check_finite(item, value)
    return item.value


def _check_finite(item: MetadataFilter, value: Scalar) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(item, "NaN and infinity cannot be compared")


def _refusal(item: MetadataFilter, why: str) -> InvalidInputError:
    return InvalidInputError(f"the filter {item.key!r} {item.operator.value} {item.value!r} cannot be used: {why}")


def _every(clauses: list[Where]) -> Where | None:
    """Join clauses that must all hold; none is None."""
    return joined("$and", clauses) if clauses else None


def _conjuncts(clause: Where) -> list[Where]:
    """Return the clauses that all must hold for `clause` to hold."""
    if "$and" not in clause:
        return [clause]
    return [leaf for part in clause["$and"] for leaf in _conjuncts(part)]


def _keys(clause: Where) -> list[str]:
    """Return the keys that `clause` asks about."""
    parts = _parts(clause)
    return [key for part in parts for key in _keys(part)] if parts else list(clause)


def _has_regex(clause: Where) -> bool:
    """Return whether `clause` has a regular expression in it, which Chroma takes in `where_document` only."""
    parts = _parts(clause)
    if parts:
        return any(_has_regex(part) for part in parts)
    return any(operator in ("$regex", "$not_regex") for test in clause.values() for operator in test)


def _of_text(clause: Where) -> Where:
    """Return a clause on the text as `where_document` has it: without the key."""
    for operator in ("$and", "$or"):
        if operator in clause:
            return {operator: [_of_text(part) for part in clause[operator]]}
    test: Where = clause[TEXT_KEY]
    return test


def _parts(clause: Where) -> list[Where]:
    return [part for operator in ("$and", "$or") for part in clause.get(operator, [])]
