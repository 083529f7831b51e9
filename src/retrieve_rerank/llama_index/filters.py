"""LlamaIndex's metadata filters as Chroma's `where` and `where_document`.

What Chroma cannot express raises: a filter that is dropped or bent finds the wrong nodes without a word. `not` is
pushed down to the leaves. There, Chroma's $ne, $nin and $not_contains match records that lack the key, which is what
the negation of ==, in and contains means; <, <=, > and >= have no such opposite. Regular expressions are taken in
`where_document` only, so that clauses are taken apart and looked into.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from retrieve_rerank.errors import InvalidInputError, shown
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
            _every(_given(self.where, other.where)),
            _every(_given(self.where_document, other.where_document)),
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
    if isinstance(filters.filters, list) and not filters.filters:
        return Condition()
    where: list[Where] = []
    on_text: list[Where] = []
    try:
        clauses = _conjuncts(_group(filters, negated=False))
    except RecursionError as error:
        raise InvalidInputError("the filters are nested too deep; join them in fewer groups") from error
    for clause in clauses:
        leaves = _leaves(clause)
        if not any(operator in ("$regex", "$not_regex") for _, test in leaves for operator in test):
            where.append(clause)
        elif all(key == TEXT_KEY for key, _ in leaves):
            on_text.append(_of_text(clause))
        else:
            raise InvalidInputError(
                "a text_match_insensitive filter is combined by 'or' with filters on metadata, which Chroma cannot do; "
                "use text_match (case-sensitive) there, or combine them by 'and'"
            )
    return Condition(_every(where), _every(on_text))


def _group(filters: MetadataFilters, *, negated: bool) -> Where:
    items = filters.filters
    if not isinstance(items, list) or not all(isinstance(one, (MetadataFilter, MetadataFilters)) for one in items):
        raise InvalidInputError(f"the filters must be a list of MetadataFilter, got {shown(items)}")
    if not items:
        raise InvalidInputError("a group of filters inside another is empty; leave it out")
    condition = filters.condition or FilterCondition.AND
    inner = negated != (condition is FilterCondition.NOT)  # NOT: none of its filters holds
    clauses = [
        _group(item, negated=inner) if isinstance(item, MetadataFilters) else _leaf(item, negated=inner)
        for item in items
    ]
    every = (condition is not FilterCondition.OR) != negated
    return joined("$and" if every else "$or", clauses)


def _leaf(item: MetadataFilter, *, negated: bool) -> Where:
    key, operator = item.key, item.operator
    _check(item)
    if operator in _COMPARE:
        return {key: {_COMPARE[operator]: _number(item, negated=negated)}}
    if operator in (FilterOperator.EQ, FilterOperator.NE):
        value = _single(item, "it compares with one value; use in, contains, any or all for lists")
        return {key: {"$ne" if negated != (operator is FilterOperator.NE) else "$eq": value}}
    if operator in (FilterOperator.IN, FilterOperator.NIN):
        return {key: {"$nin" if negated != (operator is FilterOperator.NIN) else "$in": _several(item)}}
    contains = "$not_contains" if negated else "$contains"
    if operator in (FilterOperator.ANY, FilterOperator.ALL):
        every = negated != (operator is FilterOperator.ALL)
        return joined("$and" if every else "$or", [{key: {contains: each}} for each in _several(item)])
    value = _single(item, "it looks for one value in a list; use any or all for several")
    if operator is FilterOperator.TEXT_MATCH_INSENSITIVE:
        return {key: {"$not_regex" if negated else "$regex": "(?i)" + _SPECIAL.sub(r"\\\1", str(value))}}
    return {key: {contains: value}}


def _check(item: MetadataFilter) -> None:
    """Raise InvalidInputError if Chroma has no such filter, whatever the negation."""
    if not isinstance(item.key, str) or not isinstance(item.operator, FilterOperator):
        raise InvalidInputError(
            f"a filter has a string as its key and a FilterOperator, got {shown(item.key)} and {shown(item.operator)}"
        )
    on_text = item.key == TEXT_KEY
    if on_text and item.operator not in _ON_TEXT:
        raise _refusal(item, "the text can be searched with text_match, text_match_insensitive, contains, any and all")
    if not on_text and item.key.startswith(("#", "$")):
        raise _refusal(item, "Chroma stores no key that starts with # or $")
    if item.operator is FilterOperator.IS_EMPTY:
        raise _refusal(item, "Chroma cannot find records that lack a key; store a value that says so, and filter on it")
    if not on_text and item.operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE):
        raise _refusal(
            item,
            f"Chroma finds substrings in a node's text only: use the key {TEXT_KEY!r}; for list-valued metadata use "
            "contains",
        )
    for value in item.value if isinstance(item.value, list) else [item.value]:
        if on_text and (not isinstance(value, str) or not value):
            raise _refusal(item, "what is looked for in the text must be a text with at least one character")
        if isinstance(value, float) and not math.isfinite(value):
            raise _refusal(item, "NaN and infinity cannot be compared")


def _number(item: MetadataFilter, *, negated: bool) -> float:
    if not isinstance(item.value, (int, float)):
        raise _refusal(item, "Chroma compares numbers only; store dates as numbers, such as a timestamp or 20240131")
    if negated:
        raise _refusal(
            item,
            "its negation also holds for records that lack the key, which Chroma cannot ask for; use the opposite "
            "comparison, which asks for records that have it",
        )
    return item.value


def _single(item: MetadataFilter, why: str) -> Scalar:
    if item.value is None:
        raise _refusal(item, "Chroma stores no None, so nothing can equal it")
    if isinstance(item.value, list):
        raise _refusal(item, why)
    return item.value


def _several(item: MetadataFilter) -> list[str] | list[int] | list[float]:
    if not isinstance(item.value, list) or not item.value:
        raise _refusal(item, "its value must be a list with at least one item")
    return item.value


def _refusal(item: MetadataFilter, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"the filter {shown(item.key)} {item.operator.value} {shown(item.value)} cannot be used: {why}"
    )


def _given(*clauses: Where | None) -> list[Where]:
    """Return the clauses that are not empty; of what is no clause, its check says so."""
    return [
        clause for clause in clauses if clause is not None and not (isinstance(clause, Mapping) and len(clause) == 0)
    ]


def _every(clauses: list[Where]) -> Where | None:
    """Join clauses that must all hold; none is None."""
    return joined("$and", clauses) if clauses else None


def _conjuncts(clause: Where) -> list[Where]:
    """Return the clauses that all must hold for `clause` to hold."""
    if "$and" not in clause:
        return [clause]
    return [leaf for part in clause["$and"] for leaf in _conjuncts(part)]


def _leaves(clause: Where) -> list[tuple[str, Where]]:
    """Return the keys that `clause` asks about, each with what is asked."""
    parts = [part for operator in ("$and", "$or") for part in clause.get(operator, [])]
    return [leaf for part in parts for leaf in _leaves(part)] if parts else list(clause.items())


def _of_text(clause: Where) -> Where:
    """Return a clause on the text as `where_document` has it: without the key."""
    for operator in ("$and", "$or"):
        if operator in clause:
            return {operator: [_of_text(part) for part in clause[operator]]}
    test: Where = clause[TEXT_KEY]
    return test
