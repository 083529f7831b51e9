"""The filters on metadata and text, in Chroma's language: checked, made to mean what they say, and the same in BM25.

On metadata: `{key: value}` and `{key: {operator: value}}`, and two or more of these in `{"$and": [...]}` and
`{"$or": [...]}`. Operators:

    $eq, $ne                            text, a number or a boolean; {key: value} is short for $eq
    $gt, $gte, $lt, $lte                a number
    $in, $nin                           several texts, numbers or booleans: a list, tuple, set or array, never empty
    $contains, $not_contains            one value, looked for in a list that is stored under the key; or, under the key
                                        "#document", a text looked for in the passage's text

On the text: `{operator: text}` with $contains and $not_contains, which read a text up to its first NUL, $regex and
$not_regex, joined in the same way. Regular expressions are Rust's, which take time in proportion to the text, and have
neither look-around nor references back.

Numbers compare as numbers, exactly: 2 is 2.0, and 2020 is not 2020.5. True is not 1. Whatever lacks the key passes $ne,
$nin and $not_contains, and nothing else.

A mapping under a key is always an operator: `{"user": {"$ne": ""}}` finds every user. Where a value comes from outside,
write `{"user": {"$eq": value}}`, which takes nothing but text, a number or a boolean.

Chroma itself cuts the fraction off a number before it compares it with a stored int, so that year >= 2020.5 finds the
year 2020; and it finds a number in a stored list only if both are ints or both are floats. `chroma_filters` says it in
clauses that Chroma gets right. A filter that is too large for Chroma, which may end the process, is refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from retrieve_rerank.checks import check_encodable, check_mapping
from retrieve_rerank.errors import InvalidInputError, shown
from retrieve_rerank.indexes.records import Record

Where = Mapping[str, Any]
Scalar: TypeAlias = str | int | float  # a bool is an int
Matches = Callable[[Record], bool]

TEXT_KEY = "#document"  # Chroma's name for the text; no metadata key may start with #

# Of one filter. SQLite, on which Chroma stands, takes expressions 1,000 deep, where each clause of $or is one deeper
# than the one before it, and 32,766 values; Chroma takes clauses nested about 60 deep, and dies of thousands of them.
MOST_CLAUSES = 900
DEEPEST = 40
MOST_VALUES = 30_000
LONGEST_TEXT = 10_000  # characters that are looked for; SQLite takes 50,000 bytes
MOST_REGEXES = 10  # each may take a quarter of a second to be read

_ONE = ("$eq", "$ne")
_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_SEVERAL = ("$in", "$nin")
_INSIDE = ("$contains", "$not_contains")
_OPERATORS = (*_ONE, *_ORDER, *_SEVERAL, *_INSIDE)
_ON_TEXT = (*_INSIDE, "$regex", "$not_regex")
_JOINS: dict[str, Callable[[Any], bool]] = {"$and": all, "$or": any}
_LEAST_INT, _LARGEST_INT = -(2**63), 2**63 - 1


def chroma_filters(where: Where | None, where_document: Where | None) -> dict[str, Any]:
    """Return two filters, checked, as Chroma gets them right, by the names of its arguments; empty ones are None.

    Raises:
        InvalidInputError: If a filter is not in the language or too large, saying which part and why.
    """
    on_metadata, on_text = _both(where, where_document)
    return {"where": None if on_metadata is None else _exact(on_metadata), "where_document": on_text}


def matcher(where: Where | None, where_document: Where | None) -> Matches | None:
    """Return what tells whether a record passes both filters, or None where there is no filter.

    Raises:
        InvalidInputError: If a filter is not in the language or too large, saying which part and why.
    """
    on_metadata, on_text = _both(where, where_document)
    parts = [] if on_metadata is None else [_metadata_test(on_metadata)]
    if on_text is not None:
        parts.append(_text_test(on_text))
    if len(parts) < 2:
        return parts[0] if parts else None
    return _joined_test(all, parts)


def joined(join: str, clauses: Sequence[Where]) -> dict[str, Any]:
    """Join clauses, at least one, by "$and" or "$or", which want two or more of them."""
    return {join: list(clauses)} if len(clauses) > 1 else check_mapping(clauses[0], "a filter")


# What a filter may be


def _both(where: Where | None, where_document: Where | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    given = {"where": where, "where_document": where_document}
    none = [name for name, value in given.items() if value is None or (isinstance(value, Mapping) and not value)]
    on_metadata, on_text = (None if name in none else _Reader(name).read(value) for name, value in given.items())  # type: ignore[arg-type]
    return on_metadata, on_text


class _Reader:
    """Reads one filter into its long form, and counts what it asks of Chroma."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._clauses = self._values = self._regexes = 0

    def read(self, clause: Where, depth: int = 1) -> dict[str, Any]:
        """Return a clause in its long form; `depth` counts the clauses around it and itself."""
        if not isinstance(clause, Mapping):
            example = {"source": "atlas"} if self._name == "where" else {"$contains": "word"}
            raise InvalidInputError(f"{self._name} must be a mapping such as {example}, got {shown(clause)}")
        if len(clause) != 1:
            raise self._refusal(
                clause,
                f"a clause has exactly one operator or key, not {len(clause)}; join several: "
                "{'$and': [{'year': 2020}, {'kind': 'fact'}]}",
            )
        self._clauses += 1
        if self._clauses > MOST_CLAUSES:
            raise self._refusal(
                clause,
                f"it has more than {MOST_CLAUSES} clauses, comparisons with a fraction counted twice; write several "
                "values of a key as {key: {'$in': [...]}}, or search in several calls",
            )
        if depth > DEEPEST:
            raise self._refusal(clause, f"its clauses are nested more than {DEEPEST} deep; write it flatter")
        ((key, test),) = clause.items()
        if not isinstance(key, str) or not key:
            raise self._refusal(clause, f"a key must be a string with at least one character, not {shown(key)}")
        key = str.__str__(key)
        check_encodable(key, f"a key in {self._name}")
        if key in _JOINS:
            if not isinstance(test, (list, tuple)) or len(test) < 2:
                raise self._refusal(clause, f"{key} needs a list of at least two clauses; write one clause without it")
            return {key: [self.read(part, depth + 1) for part in test]}
        if self._name == "where_document":
            return self._on_text(clause, key, test)
        if key.startswith("$") or (key.startswith("#") and key != TEXT_KEY):
            raise self._refusal(
                clause, f"no metadata key starts with $ or #, and {shown(key)} is none of $and, $or and {TEXT_KEY}"
            )
        return {key: self._on_metadata(clause, key, test)}

    def _on_metadata(self, clause: Where, key: str, test: object) -> dict[str, Any]:
        if not isinstance(test, Mapping):
            test = {"$eq": test}
        if len(test) != 1:
            raise self._refusal(
                clause,
                "a mapping under a key must be exactly one operator with its value, not "
                f"{len(test)}; join several tests by $and",
            )
        ((name, value),) = test.items()
        name = str.__str__(name) if isinstance(name, str) else name
        if key == TEXT_KEY:
            if name not in _INSIDE or not isinstance(value, str) or not value:
                raise self._refusal(
                    clause, f"{TEXT_KEY} takes {' and '.join(_INSIDE)}, with a text of at least one character"
                )
            return self._on_text(clause, name, value)
        if name not in _OPERATORS:
            known = ", ".join(_OPERATORS)
            raise self._refusal(clause, f"the operator {shown(name)} is unknown; there are {known}, $and and $or")
        if name in _SEVERAL:
            return {name: self._several(clause, name, value)}
        plain = self._scalar(clause, value)
        if name in _ORDER and _kind(plain) is not float:
            raise self._refusal(
                clause, f"{name} compares numbers; store dates as numbers, such as a timestamp or 20240131"
            )
        self._clauses += name in _ORDER and not _is_whole(plain)  # as Chroma gets four of it
        return {name: plain}

    def _several(self, clause: Where, name: str, value: object) -> list[Scalar]:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping)) or not value:
            raise self._refusal(clause, f"{name} needs one or more values, in a non-empty list, tuple, set or array")
        values = [self._scalar(clause, item) for item in value]
        if len({_kind(item) for item in values}) > 1:
            raise self._refusal(clause, f"{name} needs values of one type: all texts, all numbers or all booleans")
        # A whole number is compared with stored ints and floats; one with a fraction, with what may be mistaken for it.
        self._values += sum(1 if isinstance(item, str) else 2 if _is_whole(item) else 4 for item in values)
        if self._values > MOST_VALUES:
            raise self._refusal(
                clause,
                f"the filter has more values than Chroma takes: at most {MOST_VALUES} texts, {MOST_VALUES // 2} whole "
                f"numbers or {MOST_VALUES // 4} numbers with fractions in all; search in several calls",
            )
        return values

    def _on_text(self, clause: Where, name: str, text: object) -> dict[str, Any]:
        if name not in _ON_TEXT:
            known = ", ".join(_ON_TEXT)
            raise self._refusal(clause, f"{shown(name)} is no operator on text; there are {known}, $and and $or")
        if not isinstance(text, str) or not text:
            raise self._refusal(clause, f"{name} takes a non-empty string, got {shown(text)}")
        text = str.__str__(text)
        check_encodable(text, f"{name} in {self._name}")
        if "\x00" in text:  # {"$contains": "\x00"} would find everything
            raise self._refusal(clause, "it looks for a NUL, and Chroma reads a text up to the first NUL only")
        if len(text) > LONGEST_TEXT:
            raise self._refusal(clause, f"it looks for {len(text)} characters, and {LONGEST_TEXT} are the most")
        if name.endswith("regex"):
            self._regexes += 1
            if self._regexes > MOST_REGEXES:
                raise self._refusal(clause, f"it has more than {MOST_REGEXES} regular expressions; join them by |")
            _compiled(text)
        return {name: text}

    def _scalar(self, clause: Where, value: object) -> Scalar:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str):
            check_encodable(value, f"a value in {self._name}")  # which may be long, and is not printed for each
            return str.__str__(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            number = int.__int__(value)  # of a subclass, such as an enumeration, the value
            if not _LEAST_INT <= number <= _LARGEST_INT:
                raise self._refusal(clause, f"{shown(number)} does not fit into 64 bits, and is stored nowhere")
            return number
        if isinstance(value, float):
            if not math.isfinite(value):
                raise self._refusal(clause, "NaN and infinity cannot be compared")
            return float.__float__(value)
        what = "None is stored nowhere" if value is None else f"a {type(value).__name__} is no such value"
        raise self._refusal(clause, f"a value is text, a number or a boolean, and {what}")

    def _refusal(self, clause: object, why: str) -> InvalidInputError:
        return InvalidInputError(f"the {self._name} filter {shown(clause)} cannot be used: {why}")


def _kind(value: Scalar) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def _is_whole(value: Scalar) -> bool:
    """Whether Chroma compares `value` right as it is: anything but a number with a fraction."""
    return not isinstance(value, float) or value.is_integer()


@lru_cache(maxsize=MOST_REGEXES)
def _compiled(pattern: str) -> Callable[[str], bool]:
    """Return a search for a regular expression by Rust's engine, which is Chroma's, too, and never runs for long."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")).isinstance_python
    except SchemaError as error:
        why = str(error).splitlines()[-1].rpartition("rror: ")[2].rstrip(".")
        raise InvalidInputError(
            f"{shown(pattern)} is no valid regex: {why:.200}. The language is that of Rust, without look-around "
            "and references back"
        ) from error


# What Chroma gets right


def _exact(where: Where) -> dict[str, Any]:
    ((key, test),) = where.items()
    if key in _JOINS:
        return {key: [_exact(clause) for clause in test]}
    ((name, value),) = test.items()
    if key == TEXT_KEY:
        return {key: test}
    if name in _ORDER:
        return _compare(key, name, value)
    if name in _INSIDE:
        return _contains(key, value, negated=name == "$not_contains")
    values = value if name in _SEVERAL else [value]
    return _among(key, values, negated=name in ("$ne", "$nin"))


def _compare(key: str, name: str, number: float) -> dict[str, Any]:
    if _is_whole(number):
        return {key: {name: number}}
    # Floats are compared with the number, and ints with the whole number before or after it.
    below = name in ("$lt", "$lte")
    floats = {key: {"$lt" if below else "$gt": number}}
    ints = {key: {"$lte": math.floor(number)}} if below else {key: {"$gte": math.ceil(number)}}
    same = [_among(key, [number], negated=False)] if name in ("$lte", "$gte") else []
    return {"$or": [floats, ints, *same]}


def _among(key: str, values: Sequence[Scalar], *, negated: bool) -> dict[str, Any]:
    fractions = [value for value in values if not _is_whole(value)]
    whole = [value for value in values if _is_whole(value)]
    ints: list[Scalar] = [int(value) if isinstance(value, float) and _fits(value) else value for value in whole]
    huge = [value for value in ints if isinstance(value, float)]  # Chroma wants a list all ints, or all floats
    fitting = [value for value in ints if not isinstance(value, float)]
    clauses = [_one_of(key, group, negated=negated) for group in (fitting, huge) if group]
    if fractions:
        # Of these, Chroma also finds the ints that are left when the fraction is cut off.
        cut: list[Scalar] = list(dict.fromkeys(math.trunc(float(value)) for value in fractions))
        parts = [_one_of(key, fractions, negated=negated), _one_of(key, cut, negated=not negated)]
        clauses.append(joined("$or" if negated else "$and", parts))
    return joined("$and" if negated else "$or", clauses)


def _one_of(key: str, values: Sequence[Scalar], *, negated: bool) -> dict[str, Any]:
    if len(values) == 1:
        return {key: {"$ne" if negated else "$eq": values[0]}}
    return {key: {"$nin" if negated else "$in": list(values)}}


def _contains(key: str, value: Scalar, *, negated: bool) -> dict[str, Any]:
    forms: list[Scalar] = [value]
    if _kind(value) is float and _is_whole(value):
        forms = [float(value), *([int(value)] if _fits(float(value)) else [])]
    name = "$not_contains" if negated else "$contains"
    return joined("$and" if negated else "$or", [{key: {name: form}} for form in forms])


def _fits(value: float) -> bool:
    return _LEAST_INT <= int(value) <= _LARGEST_INT


# The same on records that are not in Chroma


def _metadata_test(where: Where) -> Matches:
    ((key, test),) = where.items()
    if key in _JOINS:
        return _joined_test(_JOINS[key], [_metadata_test(part) for part in test])
    if key == TEXT_KEY:
        return _text_test(test)
    ((name, operand),) = test.items()
    holds = _value_test(name, operand)
    return lambda record: holds(record.metadata.get(key))


def _text_test(test: Where) -> Matches:
    ((name, operand),) = test.items()
    if name in _JOINS:
        return _joined_test(_JOINS[name], [_text_test(part) for part in operand])
    if name.endswith("regex"):
        find = _compiled(operand)
        return lambda record: find(record.text) == (name == "$regex")
    return lambda record: (operand in record.text.partition("\x00")[0]) == (name == "$contains")


def _value_test(name: str, operand: Any) -> Callable[[Any], bool]:
    if name in _SEVERAL:
        wanted = set(map(_tagged, operand))
        return lambda value: (_tagged(value) in wanted) == (name == "$in")
    if name in _ORDER:
        compare = _ORDER[name]
        return lambda value: _tagged(value)[0] == "number" and compare(value, operand)
    same = _tagged(operand)
    if name in _ONE:
        return lambda value: (_tagged(value) == same) == (name == "$eq")
    # Of lists only.
    return lambda value: (isinstance(value, list) and same in map(_tagged, value)) == (name == "$contains")


def _joined_test(join: Callable[[Any], bool], parts: Sequence[Matches]) -> Matches:
    return lambda record: join(part(record) for part in parts)


def _tagged(value: Any) -> tuple[str, Any]:
    """Return a value so that two are equal only if they are of one kind; lists and what is missing equal nothing."""
    if isinstance(value, bool):
        return "truth value", value
    if isinstance(value, (int, float)):
        return "number", value
    return ("text", value) if isinstance(value, str) else ("other", None)
