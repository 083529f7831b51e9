"""Bad input to a BM25 index: a clear error of ours, and what was stored before stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import BM25Index, InvalidInputError, Passage


@pytest.fixture
def index() -> Iterator[BM25Index]:
    """An index of two passages, which must be as they were at the end of every test."""
    before = [Passage("0", "alpha alpha", {"n": 1}), Passage("1", "beta alpha")]
    with BM25Index() as index:
        index.add(before)
        yield index
        assert index.count() == 2
        assert index.get(["0", "1"]) == before
        assert {hit.passage.id for hit in index.retrieve("alpha")} == {"0", "1"}


@pytest.mark.parametrize("query", ["", " \n", None, 5, b"a", ["a"], "\ud800"])
async def test_an_unusable_query(index: BM25Index, query: Any) -> None:
    for call in (index.retrieve, lambda query: index.retrieve_many(["fine", query])):
        with pytest.raises(InvalidInputError, match="query"):
            call(query)
    with pytest.raises(InvalidInputError, match="query"):
        await index.aretrieve(query)


@pytest.mark.parametrize("queries", ["one text", None, 5])
def test_queries_that_are_no_list(index: BM25Index, queries: Any) -> None:
    with pytest.raises(InvalidInputError, match="queries"):
        index.retrieve_many(queries)


@pytest.mark.parametrize("k", [0, -1, True, None, 1.5, "3", math.inf])
async def test_an_unusable_k(index: BM25Index, k: Any) -> None:
    for call in (
        lambda: index.retrieve("a", k),
        lambda: index.retrieve_many(["a"], k),
        lambda: index.retrieve_many([], k),
    ):
        with pytest.raises(InvalidInputError, match="k must be"):
            call()
    with pytest.raises(InvalidInputError, match="k must be"):
        await index.aretrieve("a", k)


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"where": {"n": {"$foo": 1}}}, r"\$foo"),
        ({"where_document": {"$contains": ""}}, "non-empty"),
        *(({name: value}, name) for name in ("where", "where_document") for value in ("text", 5)),
    ],
)
@pytest.mark.parametrize("query", ["alpha", "unknown"])
async def test_an_unusable_filter(index: BM25Index, query: str, filters: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        index.retrieve(query, **filters)
    with pytest.raises(InvalidInputError, match=says):
        await index.aretrieve(query, **filters)
    with pytest.raises(InvalidInputError, match=says):
        index.retrieve_many([], **filters)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "iterable of Passage, got NoneType"),
        (5, "got int"),
        ("text", "got str"),
        (Passage("x", "text"), "got Passage"),
        (["text"], r"passages\[0\] must be a Passage, got str"),
        ([Passage("x", "a"), None], r"passages\[1\] must be a Passage, got NoneType"),
        ([Passage("x", "half \ud800")], "text of passage 'x'.*surrogate"),
        ([Passage("\ud800", "a")], "id.*surrogate"),
        ([Passage("0", "new"), Passage("x", "a", {"v": object()})], r"metadata\['v'\] of passage 'x'"),
        ([Passage("x", "a", {3: "v"})], "key 3"),  # type: ignore[dict-item]
    ],
)
def test_unusable_passages(index: BM25Index, given: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        index.add(given)


@pytest.mark.parametrize("size", [0, True, 2.0, "10"])
def test_an_unusable_batch_size(index: BM25Index, size: Any) -> None:
    for given in ([], [Passage("x", "a")]):
        with pytest.raises(InvalidInputError, match="batch_size"):
            index.add(given, batch_size=size)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ("0", "wrap it"),
        ([0], r"ids\[0\] must be a string"),
        (["0", None], r"ids\[1\]"),
        (["0", ""], r"ids\[1\] is empty"),
        (["\ud800"], "surrogate"),
        (5, "int"),
        (None, "NoneType"),
    ],
)
def test_unusable_ids(index: BM25Index, ids: Any, says: str) -> None:
    for call in (index.get, index.delete):
        with pytest.raises(InvalidInputError, match=says):
            call(ids)


def test_saving_without_a_directory(index: BM25Index) -> None:
    with pytest.raises(InvalidInputError, match="path="):
        index.save()


@pytest.mark.parametrize("number", [-0.1, math.nan, math.inf, True, "1"])
def test_an_unusable_formula(number: Any) -> None:
    for name in ("k1", "b"):
        with pytest.raises(InvalidInputError, match=f"{name} must be a number"):
            BM25Index(**{name: number})
    with pytest.raises(InvalidInputError, match=r"from 0 to 1, got 1\.5"):
        BM25Index(b=1.5)


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_path_that_is_a_file(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"cannot open a BM25 index in .*file.*Give a directory"):
        BM25Index(path=file / inside)
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("path", ["", 5, "nul\0byte"])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(InvalidInputError, match="BM25 index"):
        BM25Index(path=path)
