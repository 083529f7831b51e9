"""Filters mean in Chroma and in BM25 what they say, with known bounds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from enum import Enum, IntEnum
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieve_rerank import InvalidInputError
from retrieve_rerank.indexes.filters import DEEPEST, LONGEST_TEXT, MOST_CLAUSES, MOST_VALUES, chroma_filters, matcher
from retrieve_rerank.indexes.records import Record, to_record
from retrieve_rerank.indexes.store import ChromaCollection
from retrieve_rerank.types import Passage

NUMBERS = [-3, -2, -1, 0, 1, 2, 2019, 2020, 2021, -2.5, -2.0, 0.5, 1.0, 2020.0, 2020.25, 2020.5, 2021.0]
SCALARS: list[Any] = [*NUMBERS, "", "a", "b", "2020", True, False]
VALUES: list[Any] = [*SCALARS, [1, 2], [1.0, 0.5], [2020], [2020.5], ["a", "b"], [""], [True]]
# Every value under k, every second one together with one under j, and a passage without either.
RECORDS: dict[str, dict[str, Any]] = {
    "bare": {},
    **{
        f"{place} {value!r}": {"k": value, **({"j": other} if place % 2 else {})}
        for place, (value, other) in enumerate(zip(VALUES, [*SCALARS[5:], *SCALARS], strict=False))
    },
}


STORED = [to_record(Passage(id_, f"text {id_}", metadata)) for id_, metadata in RECORDS.items()]


@pytest.fixture(scope="module")
def collection() -> Iterator[ChromaCollection]:
    opened = ChromaCollection("filters")
    opened.write(STORED, np.ones((len(STORED), 1)))
    yield opened
    opened.close()


def ids(collection: ChromaCollection, where: Any = None, where_document: Any = None) -> set[str]:
    """Return what Chroma finds, which is what BM25's filter lets through."""
    found = {record.id for record in collection.read(where=where, where_document=where_document)}
    assert through(STORED, where, where_document) == found
    return found


def through(records: list[Record], where: Any, where_document: Any = None) -> set[str]:
    matches = matcher(where, where_document)
    return {record.id for record in records if matches is None or matches(record)}


def same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def holds(where: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """What a filter means, in plain Python."""
    ((key, test),) = where.items()
    if key in ("$and", "$or"):
        return (all if key == "$and" else any)(holds(clause, metadata) for clause in test)
    ((operator, value),) = test.items() if isinstance(test, dict) else {"$eq": test}.items()
    stored = metadata.get(key)
    if operator in ("$ne", "$nin", "$not_contains"):
        opposite = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}[operator]
        return not holds({key: {opposite: value}}, metadata)
    if operator == "$contains":
        return isinstance(stored, list) and any(same(item, value) for item in stored)
    if stored is None or isinstance(stored, list):
        return False
    if operator == "$in":
        return any(same(stored, item) for item in value)
    if operator == "$eq":
        return same(stored, value)
    if isinstance(stored, (bool, str)):
        return False
    return {"$gt": stored > value, "$gte": stored >= value, "$lt": stored < value, "$lte": stored <= value}[operator]


SCALAR = st.sampled_from(SCALARS)
NUMBER = st.sampled_from([*NUMBERS, 2020.75, -0.0, 2**62, 1e300])
LISTS = st.one_of(
    st.lists(NUMBER, min_size=1, max_size=4),
    st.lists(st.sampled_from(["", "a", "b", "2020"]), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=1, max_size=2),
)
TESTS = st.one_of(
    SCALAR,
    st.builds(lambda name, value: {name: value}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), NUMBER),
    st.builds(lambda name, value: {name: value}, st.sampled_from(["$eq", "$ne", "$contains", "$not_contains"]), SCALAR),
    st.builds(lambda name, value: {name: value}, st.sampled_from(["$in", "$nin"]), LISTS),
)
CLAUSES = st.recursive(
    st.builds(lambda key, test: {key: test}, st.sampled_from(["k", "j", "gone"]), TESTS),
    lambda inner: st.builds(
        lambda name, clauses: {name: clauses}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=2, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(where=CLAUSES)
def test_chroma_finds_what_a_filter_means(collection: ChromaCollection, where: dict[str, Any]) -> None:
    assert ids(collection, where) == {id_ for id_, metadata in RECORDS.items() if holds(where, metadata)}


def test_a_filter_reaches_queries_and_deletes() -> None:
    collection = ChromaCollection("reach")
    records = [to_record(Passage(str(year), "text", {"year": year})) for year in (2019, 2020, 2021)]
    collection.write(records, np.ones((3, 1)))
    above = {"year": {"$gte": 2020.5}}
    assert [found.record.id for found in collection.query([[1.0]], 10, where=above)[0]] == ["2021"]

    def left() -> set[str]:
        return {record.id for record in collection.read()}

    collection.delete(["2020", "2021"], where=above)
    assert left() == {"2019", "2020"}
    collection.delete(where={"year": {"$lt": 2019.5}})
    assert left() == {"2020"}
    for bad in ({"year": {"$above": 1}}, {"year": {}}):
        with pytest.raises(InvalidInputError):
            collection.delete(["2020"], where=bad)
        with pytest.raises(InvalidInputError):
            collection.delete(where=bad)
    assert left() == {"2020"}
    collection.close()


# Texts, patterns and what Python's own engine says of them: where the two engines agree.
TEXTS = [
    "one",
    "One two",
    "three\ntwo",
    "%_",
    "ünï ß 42",
    "seen\x00unseen",
    "aaab",
]
PATTERNS = [
    "one",
    "(?i)ONE",
    r"^two",
    r"(?m)^two",
    r"\d+",
    r"o.*t",
    r"\bt",
    "ï|_",
    "(a+)+$",
    r"\Aone\z",
    "unseen",
    "[^a-z ]",
]
PARTS = ["o", "One", "two", "\n", "%", "_", "ß", "unseen", " "]
ON_TEXT = st.recursive(
    st.one_of(
        st.builds(
            lambda name, part: {name: part}, st.sampled_from(["$contains", "$not_contains"]), st.sampled_from(PARTS)
        ),
        st.builds(
            lambda name, part: {name: part}, st.sampled_from(["$regex", "$not_regex"]), st.sampled_from(PATTERNS)
        ),
    ),
    lambda inner: st.builds(
        lambda name, clauses: {name: clauses}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=2, max_size=3)
    ),
    max_leaves=4,
)


def text_holds(where: dict[str, Any], text: str) -> bool:
    ((name, operand),) = where.items()
    if name in ("$and", "$or"):
        return (all if name == "$and" else any)(text_holds(clause, text) for clause in operand)
    if "regex" in name:
        return (re.search(operand.replace(r"\z", r"\Z"), text) is not None) == (name == "$regex")
    return (operand in text.partition("\x00")[0]) == (name == "$contains")


@pytest.fixture(scope="module")
def texts() -> Iterator[ChromaCollection]:
    opened = ChromaCollection("texts")
    opened.write([to_record(Passage(text, text)) for text in TEXTS], np.ones((len(TEXTS), 1)))
    yield opened
    opened.close()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(where_document=ON_TEXT)
def test_chroma_and_bm25_find_the_same_texts(texts: ChromaCollection, where_document: dict[str, Any]) -> None:
    meant = {text for text in TEXTS if text_holds(where_document, text)}
    assert {record.id for record in texts.read(where_document=where_document)} == meant
    assert through([to_record(Passage(text, text)) for text in TEXTS], None, where_document) == meant


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b$", "(a|aa)+$", "(.*a){12}$"])
def test_no_regular_expression_runs_for_long(pattern: str) -> None:
    """Python's engine takes minutes for 46 characters."""
    begin = time.perf_counter()
    assert through([to_record(Passage("x", "a" * 100_000 + "!"))], None, {"$regex": pattern}) == set()
    assert time.perf_counter() - begin < 5


def test_both_filters_must_hold_and_empty_ones_are_none(collection: ChromaCollection) -> None:
    assert ids(collection, {"k": 2020}, {"$contains": "2020.0"}) == {id_ for id_ in RECORDS if id_.endswith(" 2020.0")}
    assert ids(collection, {}, {}) == set(RECORDS)
    assert matcher({}, {}) is None


def test_the_text_is_a_key_of_its_own(collection: ChromaCollection) -> None:
    assert ids(collection, {"#document": {"$contains": "bare"}}) == {"bare"}
    assert "bare" not in ids(collection, {"#document": {"$not_contains": "bare"}})


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"k": {"$above": 1}}, r"operator '\$above' is unknown; there are \$eq"),
        ({"k": {"name": "x"}}, "operator 'name' is unknown"),
        ({"k": {}}, "exactly one operator with its value, not 0"),
        ({"k": {"$gt": 1, "$lt": 2}}, "exactly one operator with its value, not 2"),
        ({"k": 1, "j": 2}, r"exactly one operator or key, not 2; join several: \{'\$and'"),
        ({"$and": [{"k": 1}, {}]}, "exactly one operator or key, not 0"),
        ({"$and": [{"k": 1}]}, "at least two"),
        ({"$or": []}, "at least two"),
        ({"$or": {"k": 1}}, "at least two"),
        ({"$not": [{"k": 1}]}, r"starts with \$"),
        ({"$and": [{"k": 1}, "k"]}, "must be a mapping"),
        ({"#id": "x"}, r"starts with \$ or #"),
        ({"k": None}, "None is stored nowhere"),
        ({"k": {"$ne": None}}, "None is stored nowhere"),
        ({"k": [1]}, "a list is no such value"),
        ({"k": {"$eq": {"$ne": ""}}}, "a dict is no such value"),
        ({"k": {"$in": []}}, "non-empty list"),
        ({"k": {"$in": "ab"}}, "non-empty list"),
        ({"k": {"$in": {"a": 1}}}, "non-empty list"),
        ({"k": {"$in": np.array(3)}}, "non-empty list"),
        ({"k": {"$in": np.ones((1, 1))}}, "a list is no such value"),
        ({"k": {"$in": [1, "a"]}}, "one type"),
        ({"k": {"$nin": [1, True]}}, "one type"),
        ({"k": {"$in": [None]}}, "None is stored nowhere"),
        ({"k": {"$gt": "2020"}}, "compares numbers"),
        ({"k": {"$gt": True}}, "compares numbers"),
        ({"k": float("nan")}, "NaN and infinity"),
        ({"k": {"$lt": float("inf")}}, "NaN and infinity"),
        ({"k": {"$in": [1.0, float("nan")]}}, "NaN and infinity"),
        ({"k": 2**63}, "64 bits"),
        ({"k": object()}, "a object is no such value"),
        ({5: 1}, "not 5"),
        ({"": 1}, "at least one character"),
        ({"k\ud800": 1}, "a key in where holds a lone surrogate"),
        ({"#document": "text"}, r"takes \$contains and \$not_contains"),
        ({"#document": {"$contains": ""}}, "at least one character"),
        *((value, "where must be a mapping") for value in ("k", "", 0)),
        ({"k": 10**5000}, "a number of 16610 bits> does not fit"),
        ({"#document": {"$regex": "a"}}, r"takes \$contains"),
    ],
)
def test_what_is_not_in_the_language_is_refused(where: Any, says: str) -> None:
    for read in (chroma_filters, matcher):
        with pytest.raises(InvalidInputError, match=says):
            read(where, None)


@pytest.mark.parametrize(
    ("where_document", "says"),
    [
        ({"$contains": ""}, "non-empty"),
        ({"$contains": 5}, "non-empty string"),
        ({"$contains": "a\x00"}, "looks for a NUL"),
        *(
            ({"$regex": pattern}, "is no valid regex")
            for pattern in ("(", "(?=a)b", r"(a)\1", "(a{1000}){1000}", "(" * 300)
        ),
        ({"$regex": "a" * 10_001}, "it looks for 10001 characters, and 10000 are the most"),
        ({"$not_contains": "a" * 60_000}, "it looks for 60000 characters"),
        ({"$or": [{"$regex": "a"}] * 11}, "more than 10 regular expressions"),
        ({"$foo": "a"}, r"\$foo"),
        ({"n": "a"}, "'n'"),
        ({"$contains": "a", "$not_contains": "b"}, "exactly one"),
        ({"$and": [{"$contains": "a"}]}, "at least two"),
        ({"$contains": "\ud800"}, "surrogate"),
        *((value, "where_document must be a mapping") for value in ("text", 5, "")),
    ],
)
def test_an_unusable_filter_on_the_text(where_document: Any, says: str) -> None:
    for read in (chroma_filters, matcher):
        with pytest.raises(InvalidInputError, match=says):
            read(None, where_document)


def test_a_text_as_long_as_may_be_looked_for(texts: ChromaCollection) -> None:
    """SQLite takes 50,000 bytes, escapes included."""
    for sign in "%_😀\\":
        assert texts.read(where_document={"$contains": sign * LONGEST_TEXT}) == []


def nested(depth: int) -> dict[str, Any]:
    clause: dict[str, Any] = {"k": {"$gte": 2020.5}}
    for _ in range(depth - 1):
        clause = {"$or": [clause, {"k": {"$nin": [0.5, 2]}}]}
    return clause


AS_LARGE_AS_CAN_BE: list[dict[str, Any]] = [
    {"$or": [{"k": {"$gte": number + 0.5}} for number in range(MOST_CLAUSES // 2 - 1)]},
    {"$or": [{"k": number} for number in range(MOST_CLAUSES - 1)]},
    {"k": {"$in": [number + 0.5 for number in range(MOST_VALUES // 4)]}},
    {"k": {"$nin": list(range(MOST_VALUES // 2))}},
    {"k": {"$in": [f"{number}" for number in range(MOST_VALUES)]}},
    {"$or": [{"k": {"$in": list(range(100 * part, 100 * part + 100))}} for part in range(MOST_VALUES // 200)]},
    nested(DEEPEST),
]
TOO_LARGE: list[dict[str, Any]] = [
    {"$or": [{"k": number} for number in range(20_000)]},
    {"$and": [{"$or": [{"k": 1}, {"k": 2}]}] * 300},
    {"k": {"$in": [number + 0.5 for number in range(20_000)]}},
    {"k": {"$nin": list(range(20_000))}},
    {"k": {"$in": {f"{number}" * 100 for number in range(40_000)}}},
    *map(nested, (DEEPEST + 1, 450, 900, 100_000)),
]


@pytest.mark.parametrize("where", AS_LARGE_AS_CAN_BE, ids=range(len(AS_LARGE_AS_CAN_BE)))
def test_as_large_as_a_filter_may_be(collection: ChromaCollection, where: dict[str, Any]) -> None:
    assert ids(collection, where) == {found.record.id for found in collection.query([[1.0]], 99, where=where)[0]}


@pytest.mark.parametrize("where", TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_a_filter_that_is_too_large(where: dict[str, Any]) -> None:
    """Chroma died of it, or a bare RecursionError came of it, or a message of megabytes."""
    for read in (chroma_filters, matcher):
        with pytest.raises(InvalidInputError, match=r"more than|more values than Chroma takes|nested") as caught:
            read(where, None)
        assert len(str(caught.value)) < 1_000


def test_messages_are_short() -> None:
    for where in ({"k" * 10**6: None}, {"k": ["x" * 10**6]}, {"$and": [{"k": list(range(10**6))}] * 2}, "x" * 10**6):
        with pytest.raises(InvalidInputError) as caught:
            matcher(where, None)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1_000


def for_chroma(where: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = chroma_filters(where, None)["where"]
    return made


def test_a_value_from_outside_is_no_operator() -> None:
    """{"user": value} with a mapping from a request finds every user; the long form refuses it."""
    stolen = {"$ne": ""}
    assert for_chroma({"user": stolen}) == {"user": {"$ne": ""}}
    with pytest.raises(InvalidInputError, match="dict is no such value"):
        for_chroma({"user": {"$eq": stolen}})


class Kind(str, Enum):
    FACT = "fact"


class Level(IntEnum):
    EASY = 1


class Whole(float):
    pass


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Level.EASY, 1), (HTTPStatus.OK, 200), (Whole(1e300), 1e300), (Kind.FACT, "fact"), (np.bool_(True), True)],
)
def test_of_a_subclass_the_value_is_looked_for(value: Any, plain: Any) -> None:
    """The search for an enumeration's number never ended."""
    for where in ({"k": value}, {np.str_("k"): {np.str_("$eq"): value}}, {"k": {"$in": [value]}}):
        long = for_chroma(where)
        assert repr(long) == repr({"k": {"$eq": plain}})  # which tells a subclass's values from plain ones
    assert for_chroma(long) == long
    record = Record("x", "text", {"k": plain})
    assert through([record], {"k": value}) == through([record], {"k": {"$in": {value}}}) == {"x"}


@pytest.mark.parametrize("several", [list, tuple, set, frozenset, np.array, range])
def test_several_values_come_in_any_collection(collection: ChromaCollection, several: Any) -> None:
    values = range(1, 3) if several is range else several([1, 2])
    assert ids(collection, {"k": {"$in": values}}) == ids(collection, {"k": {"$in": [1, 2]}}) != set()


def test_a_long_list_is_read_once() -> None:
    """It was printed once for each of its values, for an error that there was not: 4 seconds for 8,000."""

    class Listed(list[str]):
        printed = 0

        def __repr__(self) -> str:
            Listed.printed += 1
            return "[…]"

    values = Listed(f"document {number}" for number in range(1000))
    assert chroma_filters({"id": {"$in": values}}, None)["where"] == {"id": {"$in": list(values)}}
    assert Listed.printed == 0
