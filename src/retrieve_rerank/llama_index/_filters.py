"""LlamaIndex's metadata filters as Chroma's `where` and `where_document`.

What Chroma cannot express raises: a filter that is dropped or bent finds the wrong nodes without a word. `not` is pushed
down to the leaves. There, Chroma's $ne, $nin and $not_contains match records that lack the key, which is what the
negation of ==, in and contains means; <, <=, > and >= have no such opposite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from retrieve_rerank.errors import InvalidInputError

TEXT_KEY = "#document"  # Chroma's name for the text; no metadata key may start with #

Where = Mapping[str, Any]

_COMPARE = {
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
}
_OPPOSITE = {FilterCondition.AND: "$or", FilterCondition.OR: "$and", FilterCondition.NOT: "$or"}
_SAME = {FilterCondition.AND: "$and", FilterCondition.OR: "$or", FilterCondition.NOT: "$and"}
_ON_TEXT = (
    FilterOperator.TEXT_MATCH,
    FilterOperator.TEXT_MATCH_INSENSITIVE,
    FilterOperator.CONTAINS,
    FilterOperator.ANY,
    FilterOperator.ALL,
)
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
            _joined("$and", [clause for clause in (self.where, other.where) if clause]),
            _joined("$and", [clause for clause in (self.where_document, other.where_document) if clause]),
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
    return Condition(_joined("$and", where), _joined("$and", on_text))


def _group(filters: MetadataFilters, *, negated: bool) -> Where:
    if not filters.filters:
        raise InvalidInputError("a group of filters inside another is empty; leave it out")
    condition = filters.condition or FilterCondition.AND
    inner = negated != (condition is FilterCondition.NOT)  # NOT: none of its filters holds
    clauses = [
        _group(item, negated=inner) if isinstance(item, MetadataFilters) else _leaf(item, negated=inner)
        for item in filters.filters
    ]
    joined = _joined((_OPPOSITE if negated else _SAME)[condition], clauses)
    return joined or {}


def _leaf(item: MetadataFilter, *, negated: bool) -> Where:
    if item.key == TEXT_KEY:
        _check_on_text(item)
    elif item.key.startswith(("#", "$")):
        raise _refusal(item, "Chroma stores no key that starts with # or $")
    if item.operator in _COMPARE:
        return _comparison(item, negated=negated)
    translate = _TRANSLATE.get(item.operator)
    if translate is None:
        raise _refusal(item, "Chroma cannot find records that lack a key; store a value that says so, and filter on it")
    return translate(item, negated)


def _comparison(item: MetadataFilter, *, negated: bool) -> Where:
    _number(item)
    if negated:
        raise _refusal(
            item, "its negation also holds for records that lack the key, which Chroma cannot ask for; use the opposite "
            "comparison, which asks for records that have it"
        )
    return {item.key: {_COMPARE[item.operator]: item.value}}


def _equal(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001 - one signature for all
    if isinstance(item.value, list):
        raise _refusal(item, "it compares with one value; use in, contains, any or all for lists")
    if item.value is None:
        raise _refusal(item, "Chroma stores no None, so nothing can equal it")
    unequal = negated != (item.operator is FilterOperator.NE)
    return {item.key: {"$ne" if unequal else "$eq": _finite(item, item.value)}}


def _among(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    outside = negated != (item.operator is FilterOperator.NIN)
    return {item.key: {"$nin" if outside else "$in": _values(item)}}


def _has(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    if isinstance(item.value, list) or item.value is None:
        raise _refusal(item, "it looks for one value in a list; use any or all for several")
    return _contains(item.key, _finite(item, item.value), negated=negated)


def _has_several(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    every = negated != (item.operator is FilterOperator.ALL)
    clauses = [_contains(item.key, value, negated=negated) for value in _values(item)]
    return _joined("$and" if every else "$or", clauses) or {}


def _text(item: MetadataFilter, negated: bool) -> Where:  # noqa: FBT001
    if item.key != TEXT_KEY:
        raise _refusal(
            item,
            f"Chroma finds substrings in a node's text only: use the key {TEXT_KEY!r}; for list-valued metadata use "
            "contains",
        )
    if item.operator is FilterOperator.TEXT_MATCH:
        return _contains(TEXT_KEY, str(item.value), negated=negated)
    pattern = "(?i)" + _SPECIAL.sub(r"\\\1", str(item.value))
    return {TEXT_KEY: {"$not_regex" if negated else "$regex": pattern}}


_TRANSLATE: dict[FilterOperator, Callable[[MetadataFilter, bool], Where]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: _equal,
    FilterOperator.IN: _among,
    FilterOperator.NIN: _among,
    FilterOperator.CONTAINS: _has,
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


def _contains(key: str, value: str | float, *, negated: bool) -> Where:
    return {key: {"$not_contains" if negated else "$contains": value}}


def _values(item: MetadataFilter) -> list[str] | list[int] | list[float]:
    if not isinstance(item.value, list) or not item.value:
        raise _refusal(item, "its value must be a list with at least one item")
    for value in item.value:
        _finite(item, value)
    return item.value


def _number(item: MetadataFilter) -> None:
    if not isinstance(item.value, (int, float)):
        raise _refusal(item, "Chroma compares numbers only; store dates as numbers, such as a timestamp or 20240131")
    _finite(item, item.value)


def _finite(item: MetadataFilter, value: str | float) -> str | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise _refusal(item, "NaN and infinity cannot be compared")
    return value


def _refusal(item: MetadataFilter, why: str) -> InvalidInputError:
    return InvalidInputError(f"the filter {item.key!r} {item.operator.value} {item.value!r} cannot be used: {why}")


def _joined(operator: str, clauses: Sequence[Where]) -> Where | None:
    # Chroma wants two clauses or more under $and and $or.
    if len(clauses) < 2:
        return clauses[0] if clauses else None
    return {operator: list(clauses)}


def _conjuncts(clause: Where) -> list[Where]:
    if "$and" not in clause:
        return [clause]
    return [leaf for part in clause["$and"] for leaf in _conjuncts(part)]


def _parts(clause: Where) -> list[Where]:
    return [part for operator in ("$and", "$or") for part in clause.get(operator, [])]


def _keys(clause: Where) -> list[str]:
    parts = _parts(clause)
    return [key for part in parts for key in _keys(part)] if parts else list(clause)


def _has_regex(clause: Where) -> bool:
    parts = _parts(clause)
    if parts:
        return any(_has_regex(part) for part in parts)
    return any(operator in ("$regex", "$not_regex") for test in clause.values() for operator in test)


def _of_text(clause: Where) -> Where:
    """Return a clause on the text as Chroma's `where_document` has it: without the key."""
    for operator in ("$and", "$or"):
        if operator in clause:
            return {operator: [_of_text(part) for part in clause[operator]]}
    test: Where = clause[TEXT_KEY]
    return test
