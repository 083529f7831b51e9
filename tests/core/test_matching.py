"""Filters mean what they mean in Chroma, and numbers are compared exactly."""

from __future__ import annotations

import uuid
from typing import Any

import chromadb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieve_rerank import InvalidInputError, Passage
from retrieve_rerank.indexes.matching import matcher
from retrieve_rerank.indexes.records import Record, to_record

METADATA: list[dict[str, Any]] = [
    {"n": 2020, "s": "a"},
    {"n": 2020.5, "tags": ["x", "y"]},
    {"n": True, "tags": [1, 2]},
    {"n": "2020", "s": "b"},
    {"tags": [1.0, 2.5]},
    {},
    {"n": None, "deep": {"n": 2020}},
]
RECORDS = [
    to_record(Passage(str(number), f"text Alpha {number}", metadata)) for number, metadata in enumerate(METADATA)
]


def found(**filters: Any) -> str:
    matches = matcher(filters.get("where"), filters.get("where_document"))
    assert matches is not None
    return "".join(record.id for record in RECORDS if matches(record))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"n": 2020}, "0"),
        ({"n": 2020.0}, "0"),
        ({"n": 2020.5}, "1"),  # Chroma finds 0, too
        ({"n": True}, "2"),
        ({"n": 1}, ""),  # True is no number
        ({"n": "2020"}, "3"),
        ({"n": {"$ne": 2020}}, "123456"),
        ({"n": {"$ne": 2020.5}}, "023456"),
        ({"n": {"$gt": 2020}}, "1"),
        ({"n": {"$gte": 2020}}, "01"),
        ({"n": {"$lt": 2020.5}}, "0"),
        ({"n": {"$lte": 2020.5}}, "01"),
        ({"n": {"$in": [2020.5, 2020]}}, "01"),
        ({"n": {"$in": [True, False]}}, "2"),
        ({"n": {"$nin": [2020]}}, "123456"),
        ({"tags": {"$contains": "x"}}, "1"),
        ({"tags": {"$contains": 1}}, "24"),  # Chroma finds 2 only
        ({"tags": {"$contains": True}}, ""),
        ({"tags": {"$not_contains": 2}}, "013456"),
        ({"tags": "x"}, ""),
        ({"s": {"$contains": "a"}}, ""),  # of lists only
        ({"$and": [{"n": 2020}, {"s": "a"}]}, "0"),
        ({"$or": [{"s": "b"}, {"$and": [{"n": {"$gt": 1}}, {"s": {"$ne": "a"}}]}]}, "13"),
        ({"#document": {"$contains": "Alpha 3"}}, "3"),
        ({"$or": [{"#document": {"$not_contains": "Alpha"}}, {"n": True}]}, "2"),
        ({"deep": {"$ne": "x"}}, "0123456"),
    ],
)
def test_filters_on_metadata(where: dict[str, Any], expected: str) -> None:
    assert found(where=where) == expected


@pytest.mark.parametrize(
    ("where_document", "expected"),
    [
        ({"$contains": "Alpha"}, "0123456"),
        ({"$contains": "alpha"}, ""),
        ({"$not_contains": "1"}, "023456"),
        ({"$regex": r"(?i)alpha [12]$"}, "12"),
        ({"$not_regex": r"\d$"}, ""),
        ({"$and": [{"$contains": "Alpha"}, {"$or": [{"$contains": "4"}, {"$regex": "5"}]}]}, "45"),
    ],
)
def test_filters_on_the_text(where_document: dict[str, Any], expected: str) -> None:
    assert found(where_document=where_document) == expected


def test_both_filters_must_hold_and_empty_ones_are_none() -> None:
    assert found(where={"n": {"$gt": 1}}, where_document={"$contains": "1"}) == "1"
    assert matcher({}, {}) is None
    assert matcher(None, None) is None


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"n": {"$foo": 1}}, r"'\$foo'"),
        ({"n": None}, "None"),
        ({"n": 1, "m": 2}, "exactly one"),
        ({"$or": [{"n": 1}, {}]}, "exactly one"),
        ({"#document": {"$regex": "a"}}, "#document"),
        ("text", "where must be a mapping"),
        ("", "where must be a mapping"),
        (0, "where must be a mapping"),
    ],
)
def test_an_unusable_filter_on_metadata(where: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        matcher(where, None)


@pytest.mark.parametrize(
    ("where_document", "says"),
    [
        ({"$contains": ""}, "non-empty"),
        ({"$contains": 5}, "non-empty string"),
        ({"$regex": "("}, "no valid regex"),
        ({"$foo": "a"}, r"\$foo"),
        ({"n": "a"}, "'n'"),
        ({"$contains": "a", "$not_contains": "b"}, "exactly one"),
        ({"$and": [{"$contains": "a"}]}, "at least two"),
        ({"$contains": "\ud800"}, "surrogate"),
        ("text", "where_document must be a mapping"),
        (5, "where_document must be a mapping"),
        ("", "where_document must be a mapping"),
    ],
)
def test_an_unusable_filter_on_the_text(where_document: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        matcher(None, where_document)


# What Chroma gets right: whole numbers, and lists of one kind.
KEYS = st.sampled_from(["a", "b"])
SCALARS = st.sampled_from([-1, 0, 1, 2, 1.5, True, False, "", "1", "x"])
LISTS = st.sampled_from([[1, 2], ["x", "1"], [True], [0]])
ASKED = st.sampled_from([-1, 0, 1, 2, True, False, "", "1", "x"])
WHOLE = st.sampled_from([-1, 0, 1, 2])
LEAVES = st.one_of(
    st.tuples(KEYS, st.sampled_from(["$eq", "$ne", "$contains", "$not_contains"]), ASKED),
    st.tuples(KEYS, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), WHOLE),
    st.tuples(
        KEYS,
        st.sampled_from(["$in", "$nin"]),
        st.one_of(
            st.lists(WHOLE, min_size=1, max_size=3),
            st.lists(st.sampled_from(["x", "1", "z"]), min_size=1, max_size=3),
            st.lists(st.booleans(), min_size=1, max_size=2),
        ),
    ),
).map(lambda leaf: {leaf[0]: {leaf[1]: leaf[2]}})
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=2, max_size=3)).map(
        lambda pair: {pair[0]: pair[1]}
    ),
    max_leaves=5,
)
TEXTS = st.sampled_from(["one", "one two", "Two", "three\ntwo", "%_"])
ON_TEXT = st.tuples(
    st.sampled_from(["$contains", "$not_contains", "$regex", "$not_regex"]), st.sampled_from(["one", "two", "o", "Tw"])
).map(lambda leaf: {leaf[0]: leaf[1]})


@pytest.fixture(scope="module")
def client() -> Any:
    return chromadb.EphemeralClient()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TEXTS, st.dictionaries(KEYS, st.one_of(SCALARS, LISTS), max_size=2)), min_size=1, max_size=8),
    st.lists(st.tuples(FILTERS, st.none() | ON_TEXT), min_size=1, max_size=10),
)
def test_chroma_finds_the_same(
    client: Any,
    passages: list[tuple[str, dict[str, Any]]],
    filters: list[tuple[dict[str, Any], dict[str, Any] | None]],
) -> None:
    records = [to_record(Passage(str(number), *passage)) for number, passage in enumerate(passages)]
    collection = client.create_collection(f"c-{uuid.uuid4().hex}", embedding_function=None)
    collection.add(
        ids=[record.id for record in records],
        embeddings=[[1.0, 0.0]] * len(records),
        documents=[record.text for record in records],
        metadatas=[dict(record.metadata) or None for record in records],
    )
    for where, where_document in filters:
        matches = matcher(where, where_document)
        assert matches is not None
        expected = sorted(collection.get(where=where, where_document=where_document, include=[])["ids"])
        assert [record.id for record in records if matches(record)] == expected, (where, where_document)


def test_a_record_without_metadata_is_no_error() -> None:
    matches = matcher({"a": 1}, None)
    assert matches is not None
    assert not matches(Record("x", "text", {}))
