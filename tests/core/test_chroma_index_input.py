"""Bad input to an index: a clear error of ours, and what was stored before stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, IndexMismatchError, InvalidInputError, Passage
from tests.core.stubs import Broken, LetterEncoder, passages


@pytest.fixture
def index() -> Iterator[ChromaIndex]:
    """An index of two passages, which must be as they were at the end of every test."""
    before = [Passage("0", "aa", {"n": 1}), Passage("1", "bb")]
    with ChromaIndex(Broken()) as index:
        index.add(before)
        yield index
        index.encoder.answer = None
        assert index.count() == 2
        assert index.get(["0", "1"]) == before
        assert {hit.passage.id for hit in index.retrieve("a")} == {"0", "1"}


@pytest.mark.parametrize("query", ["", " \n", None, 5, b"a", ["a"], "\ud800"])
async def test_an_unusable_query(index: ChromaIndex, query: Any) -> None:
    for call in (index.retrieve, lambda query: index.retrieve_many(["fine", query])):
        with pytest.raises(InvalidInputError, match=r"query|queries\[1\]"):
            call(query)
    with pytest.raises(InvalidInputError, match="query"):
        await index.aretrieve(query)


@pytest.mark.parametrize("queries", ["one text", None, 5])
def test_queries_that_are_no_list(index: ChromaIndex, queries: Any) -> None:
    with pytest.raises(InvalidInputError, match="queries"):
        index.retrieve_many(queries)


@pytest.mark.parametrize("k", [0, -1, True, None, 1.5, "3", math.inf])
async def test_an_unusable_k(index: ChromaIndex, k: Any) -> None:
    for call in (
        lambda: index.retrieve("a", k),
        lambda: index.retrieve_many(["a"], k),
        lambda: index.retrieve_many([], k),
    ):
        with pytest.raises(InvalidInputError, match="k must be"):
            call()
    with pytest.raises(InvalidInputError, match="k must be"):
        await index.aretrieve("a", k)


@pytest.mark.parametrize("k", [10**6, 2**31, 2**32, 10**30])
def test_a_k_of_any_size_returns_what_there_is(index: ChromaIndex, k: int) -> None:
    assert len(index.retrieve("a", k)) == 2


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"where": {"n": {"$foo": 1}}}, r"\$foo"),
        ({"where_document": {"$regex": "("}}, "regex"),
        ({"where_document": {"$foo": "a"}}, r"\$foo"),
        *(({name: value}, name) for name in ("where", "where_document") for value in ("text", 5)),
    ],
)
async def test_an_unusable_filter(index: ChromaIndex, filters: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        index.retrieve("a", **filters)
    with pytest.raises(InvalidInputError, match=says):
        await index.aretrieve("a", **filters)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "iterable of Passage, got NoneType"),
        (5, "got int"),
        ("text", "got str"),
        (Passage("x", "text"), "got Passage"),
        (["text"], r"passages\[0\] must be a Passage, got str"),
        ([Passage("x", "a"), None], r"passages\[1\] must be a Passage, got NoneType"),
        ([Passage("x", "a"), {"id": "y"}], r"passages\[1\].*got dict"),
        ([Passage("x", "half \ud800")], "text of passage 'x'.*surrogate"),
        ([Passage("\ud800", "a")], "id.*surrogate"),
        ([Passage("0", "new"), Passage("x", "a", {"v": object()})], r"metadata\['v'\] of passage 'x'"),
        ([Passage("x", "a", {3: "v"})], "key 3"),
    ],
)
def test_unusable_passages(index: ChromaIndex, given: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        index.add(given)


@pytest.mark.parametrize("size", [0, -5, True, 2.0, "10"])
@pytest.mark.parametrize("given", [[], [Passage("x", "a")]])
def test_an_unusable_batch_size(index: ChromaIndex, given: list[Passage], size: Any) -> None:
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
def test_unusable_ids(index: ChromaIndex, ids: Any, says: str) -> None:
    for call in (index.get, index.delete):
        with pytest.raises(InvalidInputError, match=says):
            call(ids)


NO_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda texts: np.full((len(texts), 4), math.nan),
    "one infinity": lambda texts: np.diag([1, 1, 1, math.inf])[: len(texts)] * np.inf,
}
SHAPES: dict[str, Callable[[Any], Any]] = {
    "flat": lambda texts: np.ones(4),
    "deep": lambda texts: np.ones((1, len(texts), 4)),
    "scalar": lambda texts: np.float32(1),
    "too few": lambda texts: np.ones((0, 4)),
    "too many": lambda texts: np.ones((len(texts) + 1, 4)),
    "ragged": lambda texts: [[1.0, 2.0], [1.0]],
    "text": lambda texts: "no vector",
    "nothing": lambda texts: None,
}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # 0 * infinity, in the test itself
@pytest.mark.parametrize("answer", NO_NUMBERS)
def test_vectors_that_are_no_numbers(index: ChromaIndex, answer: str) -> None:
    index.encoder.answer = NO_NUMBERS[answer]
    for call in (lambda: index.add([Passage("0", "new"), Passage("x", "b")]), lambda: index.retrieve("a")):
        with pytest.raises(InvalidInputError, match=r"vector (0|of '0') holds NaN or infinity"):
            call()


@pytest.mark.parametrize("answer", SHAPES)
async def test_vectors_of_a_wrong_shape_are_not_stored_and_find_nothing(index: ChromaIndex, answer: str) -> None:
    index.encoder.answer = SHAPES[answer]
    with pytest.raises(InvalidInputError, match=r"vectors of shape \(2, dimension\)"):
        index.add([Passage("0", "new"), Passage("x", "b")])
    for call in (lambda: index.retrieve("a"), lambda: index.retrieve_many(["a", "b"])):
        with pytest.raises(InvalidInputError, match="vectors of shape"):
            call()
    with pytest.raises(InvalidInputError, match="vectors of shape"):
        await index.aretrieve("a")


def test_the_first_vectors_must_have_the_encoders_dimension() -> None:
    encoder = Broken()
    encoder.answer = lambda texts: np.ones((len(texts), 7))
    with ChromaIndex(encoder) as index, pytest.raises((InvalidInputError, IndexMismatchError)):
        index.add(passages("a"))


@pytest.mark.parametrize(
    "answer", [lambda texts: [[1.0, 0.0, 0.0, 1.0]] * len(texts), lambda texts: np.ones((len(texts), 4), int)]
)
def test_vectors_may_come_as_lists_or_whole_numbers(answer: Any) -> None:
    encoder = Broken()
    encoder.answer = answer
    with ChromaIndex(encoder) as index:
        index.add(passages("a", "b"))
        assert len(index.retrieve("a")) == 2


def test_an_encoder_that_fails_leaves_the_index_as_it_was(index: ChromaIndex) -> None:
    def fail(texts: Any) -> Any:
        raise ZeroDivisionError("the model is tired")

    index.encoder.answer = fail
    with pytest.raises(ZeroDivisionError, match="tired"):  # not ours, so it comes as it is
        index.add(passages("x", "y", "z"))
    with pytest.raises(ZeroDivisionError, match="tired"):
        index.retrieve("a")


@pytest.mark.parametrize("encoder", [None, "a model name", object(), lambda texts: texts])
def test_what_is_no_encoder(encoder: Any) -> None:
    with pytest.raises(InvalidInputError, match="the encoder lacks encode_queries, encode_documents"):
        ChromaIndex(encoder)


@pytest.mark.parametrize("metric", ["l2", "ip", "manhattan", "COSINE", 5])
def test_an_unknown_metric(metric: Any) -> None:
    with pytest.raises(InvalidInputError, match="metric must be one of cosine, dot, euclidean"):
        ChromaIndex(LetterEncoder(), metric=metric)
    with pytest.raises(InvalidInputError, match="metric must be one of"):
        ChromaIndex(LetterEncoder(metric))


def test_a_path_and_a_client(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not both"):
        ChromaIndex(LetterEncoder(), path=tmp_path, client=chromadb.EphemeralClient())


@pytest.mark.parametrize("inside", ["", "below"])
def test_a_path_that_is_a_file(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"cannot open a Chroma index in .*file.*Give a directory"):
        ChromaIndex(LetterEncoder(), path=file / inside)
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_path_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # a test may run as root, whom no mode of a directory stops
    with pytest.raises(InvalidInputError, match=r"Permission denied.*Give a directory that can be written"):
        ChromaIndex(LetterEncoder(), path=tmp_path)


@pytest.mark.parametrize("path", [5, "nul\0byte"])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"path|Chroma index"):
        ChromaIndex(LetterEncoder(), path=path)


def test_a_damaged_store_is_said_to_be_one_and_left_alone(tmp_path: Path) -> None:
    content = b"this is no database" * 500
    (tmp_path / "chroma.sqlite3").write_bytes(content)
    with pytest.raises(InvalidInputError, match="not a database"):
        ChromaIndex(LetterEncoder(), path=tmp_path)
    assert (tmp_path / "chroma.sqlite3").read_bytes() == content


def test_a_vector_that_cannot_be_searched_is_named() -> None:
    class SomeNaN(LetterEncoder):
        def encode_documents(self, texts: Any) -> Any:
            vectors = super().encode_documents(texts)
            vectors[[text == "bad" for text in texts]] = math.nan
            return vectors

    index = ChromaIndex(SomeNaN())
    index.add([Passage("p0", "good")])
    with pytest.raises(InvalidInputError, match="the vector of 'p7' holds NaN"):
        index.add([Passage("p0", "good"), Passage("p1", "new"), Passage("p7", "bad")])


def test_a_filter_with_more_values_than_chroma_takes(index: ChromaIndex) -> None:
    """It looked like a failure of the store."""
    with pytest.raises(InvalidInputError, match="the filter has more values than Chroma takes"):
        index.retrieve("aa", where={"n": {"$in": list(range(33_000))}})
