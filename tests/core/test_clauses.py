from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieve_rerank import InvalidInputError
from retrieve_rerank.indexes.clauses import checked, exact
from retrieve_rerank.indexes.collection import ChromaCollection
from retrieve_rerank.indexes.records import to_record
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


@pytest.fixture(scope="module")
def collection() -> Iterator[ChromaCollection]:
    opened = ChromaCollection("clauses")
    opened.write(
        [to_record(Passage(id_, f"text {id_}", metadata)) for id_, metadata in RECORDS.items()],
        np.ones((len(RECORDS), 1)),
    )
    yield opened
    opened.close()


def ids(collection: ChromaCollection, where: Any) -> set[str]:
    return {record.id for record in collection.read(where=where)}


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


@pytest.mark.parametrize("operator", ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin"])
@pytest.mark.parametrize("number", [2020.5, -2.5, 0.5, 2020, 2020.0, 2019.999])
def test_numbers_compare_exactly(collection: ChromaCollection, operator: str, number: float) -> None:
    """Chroma alone finds the year 2020 for year >= 2020.5."""
    where = {"k": {operator: [number] if operator in ("$in", "$nin") else number}}
    assert ids(collection, where) == {id_ for id_, metadata in RECORDS.items() if holds(where, metadata)}


def test_a_filter_reaches_queries_and_deletes() -> None:
    collection = ChromaCollection("reach")
    records = [to_record(Passage(str(year), "text", {"year": year})) for year in (2019, 2020, 2021)]
    collection.write(records, np.ones((3, 1)))
    above = {"year": {"$gte": 2020.5}}
    assert [found.record.id for found in collection.query([[1.0]], 10, where=above)[0]] == ["2021"]
    collection.delete(["2020", "2021"], where=above)
    assert ids(collection, None) == {"2019", "2020"}
    collection.delete(where={"year": {"$lt": 2019.5}})
    assert ids(collection, None) == {"2020"}
    for bad in ({"year": {"$above": 1}}, {"year": {}}):
        with pytest.raises(InvalidInputError):
            collection.delete(["2020"], where=bad)
        with pytest.raises(InvalidInputError):
            collection.delete(where=bad)
    assert ids(collection, None) == {"2020"}
    collection.close()


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
        ("k", "must be a mapping"),
    ],
)
def test_what_is_not_in_the_language_is_refused(where: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        exact(where)


def test_a_value_from_outside_is_no_operator() -> None:
    """{"user": value} with a mapping from a request finds every user; the long form refuses it."""
    stolen = {"$ne": ""}
    assert checked({"user": stolen}) == {"user": {"$ne": ""}}
    with pytest.raises(InvalidInputError, match="dict is no such value"):
        checked({"user": {"$eq": stolen}})


def test_the_long_form_is_plain() -> None:
    class Kind(str, Enum):
        FACT = "fact"

    where = {"$and": ({"k": np.int64(3)}, {"k": {"$in": (np.float64(0.5), 2)}}, {"kind": Kind.FACT})}
    long = checked(where)
    assert long == {"$and": [{"k": {"$eq": 3}}, {"k": {"$in": [0.5, 2]}}, {"kind": {"$eq": "fact"}}]}
    assert [type(value) for value in (long["$and"][0]["k"]["$eq"], long["$and"][2]["kind"]["$eq"])] == [int, str]
    assert checked(long) == long
    (key,) = checked({np.str_("n"): {np.str_("$gt"): 1}})
    assert type(key) is str


def test_a_long_list_is_read_once() -> None:
    """It was printed once for each of its values, for an error that there was not: 4 seconds for 8,000."""

    class Listed(list[str]):
        printed = 0

        def __repr__(self) -> str:
            Listed.printed += 1
            return "[…]"

    values = Listed(f"document {number}" for number in range(1000))
    assert exact({"id": {"$in": values}}) == {"id": {"$in": list(values)}}
    assert Listed.printed == 0
