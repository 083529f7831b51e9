"""Clauses in Chroma's filter language, with its traps kept inside.

Chroma cuts the fraction off a number before it compares it with a stored int, so that year == 2020.5 finds the year
2020; and it finds a number in a list only if both are ints or both are floats. The clauses made here mean what they
say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXT_KEY = "#document"  # Chroma's name for the text; no metadata key may start with #

Where = Mapping[str, Any]
Scalar = str | int | float

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter in Chroma's words: on metadata, and on the text. A record must pass both."""

    where: Where | None = None
    where_document: Where | None = None

    def both(self, other: Condition) -> Condition:
        """Return the condition that holds where this one and `other` hold."""
        return Condition(
            joined("$and", [clause for clause in (self.where, other.where) if clause]),
            joined("$and", [clause for clause in (self.where_document, other.where_document) if clause]),
        )


def joined(operator: str, clauses: Sequence[Where]) -> Where | None:
    """Join clauses by "$and" or "$or", which want two or more of them; none is None."""
    if len(clauses) < 2:
        return clauses[0] if clauses else None
    return {operator: list(clauses)}


def compare(key: str, operator: str, number: float) -> Where:
    """Return `key` "$lt", "$lte", "$gt" or "$gte" `number`."""
    if _is_whole(number):
        return {key: {operator: number}}
    # Floats are compared with the number, and ints with the whole number before or after it.
    below = operator in ("$lt", "$lte")
    floats = {key: {"$lt" if below else "$gt": number}}
    ints = {key: {"$lte": math.floor(number)}} if below else {key: {"$gte": math.ceil(number)}}
    same = [equal(key, number, negated=False)] if operator in ("$lte", "$gte") else []
    return {"$or": [floats, ints, *same]}


def equal(key: str, value: Scalar, *, negated: bool) -> Where:
    """Return `key` == `value`, or its negation, which also holds where the key is missing."""
    if isinstance(value, str) or _is_whole(value):
        return {key: {"$ne" if negated else "$eq": value}}
    cut = math.trunc(value)
    if negated:
        return {"$or": [{key: {"$ne": value}}, {key: {"$eq": cut}}]}
    return {"$and": [{key: {"$eq": value}}, {key: {"$ne": cut}}]}


def among(key: str, values: Sequence[Scalar], *, negated: bool) -> Where:
    """Return `key` in `values` (at least one, of one type), or its negation."""
    if all(isinstance(value, str) or _is_whole(value) for value in values):
        return {key: {"$nin" if negated else "$in": list(values)}}
    return joined("$and" if negated else "$or", [equal(key, value, negated=negated) for value in values]) or {}


def contains(key: str, value: Scalar, *, negated: bool) -> Where:
    """Return that the list under `key`, or the text, has `value` in it, or its negation."""
    forms: list[Scalar] = [value]
    if not isinstance(value, str) and _is_whole(value):
        forms = [float(value), *([int(value)] if int(value) in _INT64 else [])]
    operator = "$not_contains" if negated else "$contains"
    return joined("$and" if negated else "$or", [{key: {operator: form}} for form in forms]) or {}


def conjuncts(clause: Where) -> list[Where]:
    """Return the clauses that all must hold for `clause` to hold."""
    if "$and" not in clause:
        return [clause]
    return [leaf for part in clause["$and"] for leaf in conjuncts(part)]


def keys(clause: Where) -> list[str]:
    """Return the keys that `clause` asks about."""
    parts = _parts(clause)
    return [key for part in parts for key in keys(part)] if parts else list(clause)


def has_regex(clause: Where) -> bool:
    """Return whether `clause` has a regular expression in it, which Chroma takes in `where_document` only."""
    parts = _parts(clause)
    if parts:
        return any(has_regex(part) for part in parts)
    return any(operator in ("$regex", "$not_regex") for test in clause.values() for operator in test)


def of_text(clause: Where) -> Where:
    """Return a clause on the text as `where_document` has it: without the key."""
    for operator in ("$and", "$or"):
        if operator in clause:
            return {operator: [of_text(part) for part in clause[operator]]}
    test: Where = clause[TEXT_KEY]
    return test


def _parts(clause: Where) -> list[Where]:
    return [part for operator in ("$and", "$or") for part in clause.get(operator, [])]


def _is_whole(number: float) -> bool:
    return isinstance(number, int) or number.is_integer()
