"""The passages of one source, replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import AddReport, ChromaIndex, InvalidInputError, Passage
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.store import ChromaCollection
from tests.core.stubs import LetterEncoder

OTHER = Passage("b-1", "bread", {"source": "b"})


@pytest.fixture
def index() -> Iterator[ChromaIndex]:
    with ChromaIndex(LetterEncoder()) as index:
        index.add([OTHER, Passage("loose", "nobody's")])
        index.replace_source("a", [Passage("a-1", "abc"), Passage("a-2", "bcd", {"n": 1, "source": "a"})])
        yield index


def ids_of(index: ChromaIndex, source: str) -> set[str]:
    return set(index.collection.ids(where={"source": source}))


def test_what_changed_is_encoded_and_what_is_gone_is_removed(index: ChromaIndex) -> None:
    encoder: Any = index.encoder
    encoder.documents.clear()
    new = [Passage("a-2", "bcd", {"n": 1}), Passage("a-3", "cde", {"source": "a"}), Passage("loose", "taken")]
    assert index.replace_source("a", iter(new), batch_size=1) == AddReport(1, 1, 1, removed=1)
    assert encoder.documents == ["cde", "taken"]
    assert ids_of(index, "a") == {"a-2", "a-3", "loose"}
    assert index.get(["a-1", "b-1"]) == [OTHER]
    assert dict(index.get(["a-2"])[0].metadata) == {"n": 1, "source": "a"}
    assert dict(new[0].metadata) == {"n": 1}  # the caller's stays as it was
    assert index.replace_source("a", new) == AddReport(unchanged=3)


def test_a_source_without_passages_is_gone(index: ChromaIndex) -> None:
    assert index.replace_source("a", []) == AddReport(removed=2)
    assert repr(AddReport(removed=2)) == "AddReport(added=0, updated=0, unchanged=0, removed=2)"
    assert index.count() == 2


def test_whoever_is_interrupted_has_lost_nothing_and_may_go_on(index: ChromaIndex) -> None:
    new = [Passage(f"new-{number}", "abc") for number in range(4)]

    def broken() -> Iterator[Passage]:
        yield from new[:3]
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        index.replace_source("a", broken(), batch_size=1)
    assert {"a-1", "a-2"} <= ids_of(index, "a")
    index.replace_source("a", new)
    assert ids_of(index, "a") == {passage.id for passage in new}


@pytest.mark.parametrize(
    ("source", "passage", "message"),
    [
        ("a", Passage("a-9", "x", {"source": "b"}), "'a-9' says that its 'source' is 'b', not 'a'"),
        ("a", Passage("a-9", "x", {"source": 1}), "is 1, not 'a'"),
        ("a", Passage("b-1", "mine now"), "'b-1' is stored as one of source 'b'; an id belongs to one source"),
        ("", Passage("a-9", "x"), "source_id must be a non-empty string"),
        (7, Passage("a-9", "x"), "source_id must be a non-empty string, got 7"),
    ],
)
def test_passages_of_two_sources_are_kept_apart(
    index: ChromaIndex, source: Any, passage: Passage, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        index.replace_source(source, [Passage("a-1", "abc"), passage])
    assert index.get(["b-1"]) == [OTHER]
    assert ids_of(index, "a") == {"a-1", "a-2"}


@pytest.mark.parametrize("key", ["", "$and", "#id", "chroma:document"])
def test_a_key_that_cannot_be_searched_by_is_refused(index: ChromaIndex, key: str) -> None:
    with pytest.raises(InvalidInputError, match="source_key"):
        index.replace_source("a", [], source_key=key)


def test_a_source_is_no_operator(index: ChromaIndex) -> None:
    index.replace_source("$ne", [Passage("odd", "abc")], source_key="file")
    assert index.replace_source("$ne", [], source_key="file") == AddReport(removed=1)
    assert index.count() == 4


def test_more_stale_passages_and_more_results_than_one_statement_takes() -> None:
    """SQLite takes about 32,000 variables."""
    many = 33_000
    client = chromadb.EphemeralClient()
    cheap: Any = {"hnsw": {"space": "cosine", "ef_construction": 20, "max_neighbors": 8}}
    client.create_collection("replaced-source", configuration=cheap, embedding_function=None)
    with ChromaIndex(LetterEncoder(), "replaced-source", client=client) as index:
        vectors = np.random.default_rng(3).normal(size=(many, 4)).astype(np.float32)
        records = [Record(f"{number}", f"text {number}", {"source": "big"}) for number in range(many)]
        for start in range(0, many, 5_000):
            index.collection.write(records[start : start + 5_000], vectors[start : start + 5_000])
        found = index.collection.query(vectors[:1], many, with_vectors=True)[0]
        assert many >= len({item.record.id for item in found}) > 32_766  # the graph may not lead to each
        assert found[0].record == records[0]
        assert all(item.record.text == f"text {item.record.id}" for item in found)
        assert [item.distance for item in found] == sorted(item.distance for item in found)
        assert found[5].vector == pytest.approx(vectors[int(found[5].record.id)])
        assert many >= len(index.retrieve("abc", many + 1)) > 32_766
        assert index.replace_source("big", [Passage("7", "text 7")]) == AddReport(unchanged=1, removed=many - 1)
        assert index.count() == 1


def test_a_collection_gives_ids_by_filter() -> None:
    collection = ChromaCollection("ids")
    collection.write([Record("x", "", {"n": 1}), Record("y", "", {"n": 2})], [[1.0, 0.0], [0.0, 1.0]])
    assert collection.ids(where={"n": 2}) == ["y"]
    assert collection.ids(limit=1) in (["x"], ["y"])
