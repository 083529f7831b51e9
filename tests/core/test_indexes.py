"""What indexes by vectors and by words promise alike: bad input is a clear error of ours, and what was stored stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import AddReport, BM25Index, ChromaIndex, IndexMismatchError, InvalidInputError, Passage
from tests.core.stubs import Broken, LetterEncoder, passages

BEFORE = [Passage("0", "alpha alpha", {"n": 1}), Passage("1", "beta alpha")]
OPEN: dict[str, Callable[[Any], Any]] = {
    "Chroma": lambda path: ChromaIndex(LetterEncoder(), path=path),
    "BM25": lambda path: BM25Index(path=path),
}


def stays(index: Any) -> Iterator[Any]:
    """Yield an index of two passages, which must be as they were at the end of every test."""
    with index:
        index.add(BEFORE)
        yield index
        if isinstance(index, ChromaIndex):
            index.encoder.answer = None
        assert index.count() == 2
        assert index.get(["0", "1"]) == BEFORE
        assert {hit.passage.id for hit in index.retrieve("alpha")} == {"0", "1"}


@pytest.fixture
def dense() -> Iterator[ChromaIndex]:
    yield from stays(ChromaIndex(Broken()))


@pytest.fixture(params=list(OPEN))
def index(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from stays(BM25Index() if request.param == "BM25" else ChromaIndex(Broken()))


@pytest.mark.parametrize("query", ["", " \n", None, 5, b"a", ["a"], "\ud800"])
async def test_an_unusable_query(index: Any, query: Any) -> None:
    for call in (index.retrieve, lambda query: index.retrieve_many(["fine", query])):
        with pytest.raises(InvalidInputError, match=r"query|queries\[1\]"):
            call(query)
    with pytest.raises(InvalidInputError, match="query"):
        await index.aretrieve(query)


@pytest.mark.parametrize("queries", ["one text", None, 5])
def test_queries_that_are_no_list(index: Any, queries: Any) -> None:
    with pytest.raises(InvalidInputError, match="queries"):
        index.retrieve_many(queries)


@pytest.mark.parametrize("k", [0, -1, True, None, 1.5, "3", math.inf])
async def test_an_unusable_k(index: Any, k: Any) -> None:
    for call in (
        index.retrieve,
        lambda query, k: index.retrieve_many([query], k),
        lambda _, k: index.retrieve_many([], k),
    ):
        with pytest.raises(InvalidInputError, match="k must be"):
            call("a", k)
    with pytest.raises(InvalidInputError, match="k must be"):
        await index.aretrieve("a", k)


@pytest.mark.parametrize("k", [10**6, 2**31, 2**32, 10**30])
def test_a_k_of_any_size_returns_what_there_is(index: Any, k: int) -> None:
    assert len(index.retrieve("alpha", k)) == 2


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"where": {"n": {"$foo": 1}}}, r"\$foo"),
        ({"where_document": {"$regex": "("}}, "regex"),
        *(({name: value}, name) for name in ("where", "where_document") for value in ("text", 5)),
    ],
)
@pytest.mark.parametrize("query", ["alpha", "unknown"])
async def test_an_unusable_filter(index: Any, query: str, filters: dict[str, Any], says: str) -> None:
    for call in (index.retrieve, lambda query, **given: index.retrieve_many([query], **given)):
        with pytest.raises(InvalidInputError, match=says):
            call(query, **filters)
    with pytest.raises(InvalidInputError, match=says):
        await index.aretrieve(query, **filters)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "iterable of Passage, got NoneType"),
        (5, "got int"),
        ("text", "got str"),
        (Passage("x", "text"), "got Passage"),
        (["text"], r"passages\[0\] must be a Passage, got str"),
        ([Passage("x", "a"), {"id": "y"}], r"passages\[1\].*got dict"),
        ([Passage("x", "half \ud800")], "text of passage 'x'.*surrogate"),
        ([Passage("\ud800", "a")], "id.*surrogate"),
        ([Passage("0", "new"), Passage("x", "a", {"v": object()})], r"metadata\['v'\] of passage 'x'"),
        ([Passage("x", "a", {3: "v"})], "key 3"),  # type: ignore[dict-item]
    ],
)
def test_unusable_passages(index: Any, given: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        index.add(given)


@pytest.mark.parametrize("size", [0, -5, True, 2.0, "10"])
def test_an_unusable_batch_size(index: Any, size: Any) -> None:
    for given in ([], [Passage("x", "a")]):
        with pytest.raises(InvalidInputError, match="batch_size"):
            index.add(given, batch_size=size)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ("0", "wrap it"),
        ([0], r"ids\[0\] must be a string"),
        (["0", ""], r"ids\[1\] is empty"),
        (["\ud800"], "surrogate"),
        (5, "int"),
    ],
)
def test_unusable_ids(index: Any, ids: Any, says: str) -> None:
    for call in (index.get, index.delete):
        with pytest.raises(InvalidInputError, match=says):
            call(ids)


@pytest.fixture(params=list(OPEN))
def empty(request: pytest.FixtureRequest) -> Iterator[Any]:
    with OPEN[request.param](None) as index:
        yield index


def test_batches_before_one_that_fails_are_kept(empty: Any) -> None:
    bad = [*passages("alpha", "beta", "gamma"), Passage("bad", "delta", {"x": object()})]
    with pytest.raises(InvalidInputError, match="'bad'"):
        empty.add(bad, batch_size=2)
    assert [passage.text for passage in empty.get(["0", "1", "2", "bad"])] == ["alpha", "beta"]
    assert {hit.passage.id for hit in empty.retrieve("alpha beta gamma delta")} == {"0", "1"}


def test_a_generator_is_taken_batch_by_batch(empty: Any) -> None:
    taken = 0

    def endless() -> Iterator[Passage]:
        nonlocal taken
        for number in range(10**9):
            taken += 1
            if number == 25:
                raise KeyboardInterrupt
            yield Passage(f"{number}", "alpha")

    with pytest.raises(KeyboardInterrupt):
        empty.add(endless(), batch_size=10)
    assert taken == 26
    assert empty.count() == 20  # the batches that were whole
    assert empty.add(passage for passage in BEFORE).unchanged == 0
    assert len(empty.retrieve("alpha")) == 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((1, 1.0), (1, True), (0, False), ("1", 1), (None, "None"), ([1], [1.0]), ([1.0], ["1"])),
        (1.7e9 + 0.12345, 1.7e9 + 0.12346),
    ],
)
def test_equal_is_not_enough_to_be_unchanged(empty: Any, old: Any, new: Any) -> None:
    empty.add([Passage("x", "alpha", {"v": old})])
    assert empty.add([Passage("x", "alpha", {"v": new})]) == AddReport(updated=1)
    found = empty.get(["x"])[0].metadata["v"]
    assert (found, type(found)) == (new, type(new))


@pytest.mark.parametrize("number", [-0.1, math.nan, math.inf, True, "1"])
def test_an_unusable_formula(number: Any) -> None:
    for name in ("k1", "b"):
        with pytest.raises(InvalidInputError, match=f"{name} must be a number"):
            BM25Index(**{name: number})
    with pytest.raises(InvalidInputError, match=r"from 0 to 1, got 1\.5"):
        BM25Index(b=1.5)


def test_saving_without_a_directory() -> None:
    with BM25Index() as index, pytest.raises(InvalidInputError, match="path="):
        index.save()


# Encoders


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
def test_vectors_that_are_no_numbers(dense: ChromaIndex, answer: str) -> None:
    dense.encoder.answer = NO_NUMBERS[answer]
    for call in (lambda: dense.add([Passage("0", "new"), Passage("x", "b")]), lambda: dense.retrieve("a")):
        with pytest.raises(InvalidInputError, match=r"vector (0|of '0') holds NaN or infinity"):
            call()


@pytest.mark.parametrize("answer", SHAPES)
async def test_vectors_of_a_wrong_shape_are_not_stored_and_find_nothing(dense: ChromaIndex, answer: str) -> None:
    dense.encoder.answer = SHAPES[answer]
    with pytest.raises(InvalidInputError, match=r"vectors of shape \(2, dimension\)"):
        dense.add([Passage("0", "new"), Passage("x", "b")])
    for call in (lambda: dense.retrieve("a"), lambda: dense.retrieve_many(["a", "b"])):
        with pytest.raises(InvalidInputError, match="vectors of shape"):
            call()
    with pytest.raises(InvalidInputError, match="vectors of shape"):
        await dense.aretrieve("a")


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


def test_an_encoder_that_fails_leaves_the_index_as_it_was(dense: ChromaIndex) -> None:
    def fail(texts: Any) -> Any:
        raise ZeroDivisionError("the model is tired")

    dense.encoder.answer = fail
    with pytest.raises(ZeroDivisionError, match="tired"):  # not ours, so it comes as it is
        dense.add(passages("x", "y", "z"))
    with pytest.raises(ZeroDivisionError, match="tired"):
        dense.retrieve("a")


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


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("inside", ["", "below"])
def test_a_path_that_is_a_file(tmp_path: Path, inside: str, kind: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=rf"cannot open a {kind} index in .*file.*Give a directory"):
        OPEN[kind](file / inside)
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_path_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # a test may run as root, whom no mode of a directory stops
    with pytest.raises(InvalidInputError, match=r"Permission denied.*Give a directory that can be written"):
        ChromaIndex(LetterEncoder(), path=tmp_path)


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize("path", [5, "nul\0byte"])
def test_a_path_that_is_none(path: Any, kind: str) -> None:
    with pytest.raises(InvalidInputError, match=f"path|{kind} index"):
        OPEN[kind](path)


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


def test_a_filter_with_more_values_than_chroma_takes(dense: ChromaIndex) -> None:
    """It looked like a failure of the store."""
    with pytest.raises(InvalidInputError, match="the filter has more values than Chroma takes"):
        dense.retrieve("aa", where={"n": {"$in": list(range(33_000))}})
