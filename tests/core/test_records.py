"""A passage comes back from Chroma as it was."""

from __future__ import annotations

import datetime
import enum
import http
import json
import math
import struct
from collections import OrderedDict
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieve_rerank import BM25Index, ChromaIndex, InvalidInputError, Passage
from retrieve_rerank.indexes.records import JSON_KEY, NODE_KEY, Record, to_record, user_metadata
from tests.core.stubs import LetterEncoder, run_python
from tests.odd_values import nested


class Colour(str, enum.Enum):
    RED = "red"


class Shouting(str):
    def __str__(self) -> str:
        return "LOUD"


def there_and_back(metadata: dict[str, Any]) -> dict[str, Any]:
    return dict(to_record(Passage("a", "text", metadata)).passage.metadata)


def same(left: Any, right: Any) -> bool:
    """Equal, with equal types all the way down: 1, 1.0 and True differ, and NaN equals NaN."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = st.text(st.characters(exclude_categories=("Cs",)), max_size=6) | st.sampled_from(
    ["", "#", "#document", "$and", "$", "chroma:document", "chroma", "hnsw:space", "_type", "document_id", "_node_type"]
)
metadatas = st.dictionaries(keys, values, max_size=5)


def without_negative_zero(value: Any) -> bool:
    if isinstance(value, float):
        return not (value == 0 and math.copysign(1, value) < 0)
    if isinstance(value, dict):
        return all(map(without_negative_zero, value.values()))
    return all(map(without_negative_zero, value)) if isinstance(value, list) else True


@given(metadatas)
def test_json_like_metadata_is_the_same_in_a_record(metadata: dict[str, Any]) -> None:
    assert same(there_and_back(metadata), metadata)


@pytest.fixture(scope="module")
def index() -> ChromaIndex:
    return ChromaIndex(LetterEncoder())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(metadatas, min_size=1, max_size=4))
def test_json_like_metadata_is_the_same_after_chroma(index: ChromaIndex, given_metadata: list[dict[str, Any]]) -> None:
    # Minus zero is in a test of filters, below. The same ids again and again: each write replaces the last.
    wanted = [metadata for metadata in given_metadata if without_negative_zero(metadata)]
    passages = [Passage(f"{number}", f"text {number}", metadata) for number, metadata in enumerate(wanted)]
    index.add(passages)
    stored = index.get([passage.id for passage in passages])
    for passage, found in zip(passages, stored, strict=True):
        assert (found.id, found.text) == (passage.id, passage.text)
        assert same(found.metadata, passage.metadata)
    assert index.add(passages).unchanged == len(passages)


def test_floats_are_the_same_to_the_last_digit_after_chroma(index: ChromaIndex) -> None:
    random = Random(11)
    drawn = [struct.unpack("d", random.randbytes(8))[0] for _ in range(1500)]  # every pattern of bits
    drawn += [random.random() for _ in range(500)]
    drawn += [round(random.uniform(-1e6, 1e6), random.randrange(8)) for _ in range(500)]
    drawn += [random.randrange(10**6) * 10.0 ** random.randrange(-30, 30) for _ in range(500)]
    drawn += [math.pi, 1 / 3, 0.1, 5e-324, 1.7976931348623157e308, 2.0**53 + 2, 1e15, 1e16, 123456789012345678.0]
    floats = [value for value in drawn if without_negative_zero(value)]
    index.add(Passage(f"float {number}", "text", {"x": x, "l": [x]}) for number, x in enumerate(floats))
    found = index.get([f"float {number}" for number in range(len(floats))])
    wrong = [
        value for value, one in zip(floats, found, strict=True) if not same(one.metadata, {"x": value, "l": [value]})
    ]
    assert wrong == []


def test_rounding_in_chroma_does_not_hide_a_float_from_filters(index: ChromaIndex) -> None:
    index.add([Passage("third", "text", {"share": 1 / 3}), Passage("half", "text", {"share": 0.5})])
    found = index.retrieve("text", where={"share": {"$lt": 0.4}})
    assert [hit.passage.id for hit in found] == ["third"]


@pytest.mark.parametrize(
    ("stored", "where"),
    [
        (-0.0, {"x": 0}),
        (-0.0, {"x": {"$gte": 0}}),
        (-0.0, {"x": {"$lt": 1}}),
        ([-0.0, 1.5], {"x": {"$contains": 0}}),
        ([1, 2.5], {"x": {"$contains": 1}}),
        ([1, 2.5], {"x": {"$contains": 2.5}}),
    ],
)
def test_filters_see_numbers_that_chroma_would_not_give_back(stored: Any, where: Any) -> None:
    with ChromaIndex(LetterEncoder()) as vectors, BM25Index() as words:
        for one in (vectors, words):
            one.add([Passage("it", "text", {"x": stored}), Passage("other", "text", {"x": [3.0, 4.0]})])
            assert [hit.passage.id for hit in one.retrieve("text", where=where)] == ["it"]
            assert same(one.get(["it"])[0].metadata, {"x": stored})
            assert one.add([Passage("it", "text", {"x": stored})]).unchanged == 1


@pytest.mark.parametrize("stored", [math.inf, [1, math.inf], [1, 2.5, 2**60], [1, "a"], [True, 1.5]])
def test_what_filters_cannot_see_comes_back_all_the_same(index: ChromaIndex, stored: Any) -> None:
    index.add([Passage("it", "text", {"x": stored})])
    assert same(index.get(["it"])[0].metadata, {"x": stored})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(5), 5),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        ((1, 2), [1, 2]),
        ((), []),
        ([np.int32(1), np.int32(2)], [1, 2]),
        (OrderedDict(a=(1,)), {"a": [1]}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Colour.RED, "red"),
        (Shouting("red"), "red"),
    ],
)
def test_relatives_of_json_values_become_them(value: Any, plain: Any) -> None:
    back = there_and_back({"key": value})["key"]
    assert same(back, plain)
    assert type(back) is type(plain)


def test_a_kind_of_string_is_a_plain_key() -> None:
    """Chroma's server takes no other."""
    record = to_record(Passage("x", "a", {Colour.RED: 1, np.str_("n"): {Colour.RED: [1]}}))
    assert record.metadata == to_record(Passage("x", "a", {"red": 1, "n": {"red": [1]}})).metadata
    assert {type(key) for key in record.metadata} == {str}


def test_a_kind_of_int_is_stored_at_once() -> None:
    script = """
        import enum
        from retrieve_rerank import Passage
        from retrieve_rerank.indexes.records import to_record
        Level = enum.IntEnum("Level", "LOW HIGH")
        print(to_record(Passage("a", "text", {"level": Level.HIGH})).metadata["level"] == 2)
    """
    assert run_python(script, timeout=4).strip() == "True"


@pytest.mark.parametrize(
    "value",
    [b"bytes", {1, 2}, object(), 1j, datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1), np.array([1]), len],
)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"deep": [value]}])
def test_what_json_cannot_say_is_refused_with_its_place(value: Any, wrap: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"metadata\['key'\] of passage 'a' is a .*cannot be stored"):
        there_and_back({"key": wrap(value)})


def circular() -> dict[str, Any]:
    value: list[Any] = []
    value.append(value)
    return {"key": value}


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({5: "x"}, "has the key 5; keys must be strings"),
        ({None: "x"}, "has the key None"),
        ({"key": {5: "x"}}, r"metadata\['key'\] .*keys are not all strings"),
        ({"key": "\ud800"}, r"metadata\['key'\] .*surrogate"),
        ({"key": ["fine", "\ud800"]}, r"metadata\['key'\] .*surrogate"),
        ({"half \ud800": 1}, r"passage 'a'.*surrogate"),
        ({"key": {"half \ud800": 1}}, r"passage 'a'.*surrogate"),
        ({JSON_KEY: "x"}, "reserved; rename it"),
        pytest.param(circular(), "passage 'a'", id="circular"),
        pytest.param(nested("dict", 5000), "passage 'a'", id="deep"),
        pytest.param({"key": 10**5000}, "passage 'a'", id="digits"),
    ],
)
def test_unusable_metadata_is_refused(metadata: dict[Any, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        there_and_back(metadata)


@pytest.mark.parametrize(
    ("id_", "text", "says"), [("\ud800", "text", "id"), ("a", "half \udfff", "text of passage 'a'")]
)
def test_lone_surrogates_in_id_and_text_are_refused(id_: str, text: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{says}.*surrogate"):
        to_record(Passage(id_, text))


def test_values_that_chroma_can_filter_stay_visible_to_it() -> None:
    metadata = {
        "s": "x",
        "i": 1,
        "f": 0.5,
        "b": True,
        "l": ["x", "y"],
        "n": None,
        "d": {"k": 1},
        "e": [],
        "m": [1, "x"],
    }
    stored = dict(to_record(Passage("a", "text", metadata)).metadata)
    assert json.loads(stored.pop(JSON_KEY)) == {"n": None, "d": {"k": 1}, "e": [], "m": [1, "x"]}
    assert stored == {"s": "x", "i": 1, "f": 0.5, "b": True, "l": ["x", "y"]}
    # And no key of ours where Chroma can say it all.
    assert dict(to_record(Passage("a", "text", {"x": 1})).metadata) == {"x": 1}
    assert dict(to_record(Passage("a", "text")).metadata) == {}


def test_the_callers_metadata_is_neither_kept_nor_changed() -> None:
    metadata = {"tags": ["x"], "deep": {"k": [1]}}
    record = to_record(Passage("a", "text", metadata))
    metadata["tags"].append("y")
    metadata["deep"]["k"].append(2)
    assert dict(record.passage.metadata) == {"tags": ["x"], "deep": {"k": [1]}}


def test_a_llama_index_node_gives_back_the_users_metadata() -> None:
    node = {NODE_KEY: json.dumps({"metadata": {"x": {"y": 1}}}), "_node_type": "TextNode", "doc_id": "d", "x": "flat"}
    assert user_metadata(node) == {"x": {"y": 1}}
    assert Record("a", "text", node).passage == Passage("a", "text", {"x": {"y": 1}})


@pytest.mark.parametrize("content", ["", "no json", "[1]", "3", '{"metadata": 5}', "{}", '{"metadata": {"other": 1}}'])
def test_a_key_that_only_looks_like_llama_indexes_is_the_users(content: str) -> None:
    assert there_and_back({NODE_KEY: content, "x": 1}) == {NODE_KEY: content, "x": 1}


def test_bookkeeping_goes_beside_the_users_keys_and_wins() -> None:
    record = to_record(
        Passage("a", "text", {"x": 1, "doc_id": "user's"}), {"doc_id": "d", NODE_KEY: '{"metadata": {}}'}
    )
    assert record.metadata["doc_id"] == "d"
    assert record.metadata["x"] == 1


def heavy() -> dict[str, dict[str, Any]]:
    """Metadata of which each was logged by Chroma, and then kept every later call from succeeding."""
    return {
        "a long list": {"pages": list(range(6_600)), "x": 1},
        "many keys": {f"k{number}": number for number in range(7_000)},
        "many lists": {f"l{number}": [f"{item}" for item in range(1_000)] for number in range(40)},
        "mixed": {"l": [float(item) for item in range(3_900)], **{f"k{number}": "x" for number in range(3_900)}},
    }


def test_what_chroma_cannot_apply_never_reaches_it(tmp_path: Path) -> None:
    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        for name, metadata in heavy().items():
            index.add([Passage(name, "b", metadata), Passage(f"beside {name}", "b", {"x": 1})])
            assert dict(index.get([name])[0].metadata) == metadata
        assert index.count() == 8
        index.add([Passage(name, "b", {f"other{number}": number for number in range(5_000)}) for name in heavy()])
        assert [passage.id for passage in index.get(list(heavy()))] == list(heavy())
        index.add([Passage("a batch", "b"), *(Passage(str(n), "b", {"l": list(range(640))}) for n in range(300))])
        assert index.count() == 309
        assert index.retrieve("b", where={"x": 1})
    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        assert index.check().ok


@pytest.mark.parametrize("key", ["chroma:", "chroma:x", "chroma:uri", "chroma:document"])
def test_keys_that_chroma_forgets_are_kept(key: str) -> None:
    for value in ("x", 1, [1, 2], {"y": None}):
        assert there_and_back({key: value, "x": 1}) == {key: value, "x": 1}


def test_values_of_subclasses_are_taken_as_what_they_are() -> None:
    class Level(enum.IntEnum):
        EASY = 1

    class Name(str, enum.Enum):
        A = "a"

    metadata = {
        "int": Level.EASY,
        "status": http.HTTPStatus.OK,
        "str": Name.A,
        "numpy": np.float64(0.5),
        "flag": np.bool_(True),
        "list": [Level.EASY, np.int64(2)],
    }
    plain = {"int": 1, "status": 200, "str": "a", "numpy": 0.5, "flag": True, "list": [1, 2]}
    with ChromaIndex(LetterEncoder()) as index:
        index.add([Passage(Name.A, Name.A, metadata)])
        (found,) = index.get(["a"])
        assert (found.id, found.text, dict(found.metadata)) == ("a", "a", plain)
        assert {key: type(found.metadata[key]) for key in plain} == {key: type(plain[key]) for key in plain}
        assert index.add([Passage("a", "a", metadata)]).unchanged == 1
        assert [passage.id for passage in index.get([Name.A])] == ["a"]
        index.replace_source(Name.A, [Passage("b", "b")], source_key=Name.A)
        assert index.replace_source("a", [], source_key="a").removed == 1
        index.delete([Name.A])
        assert index.count() == 0
    with ChromaIndex(LetterEncoder(), Shouting("abc")) as index:
        assert index.collection.name == "abc"
