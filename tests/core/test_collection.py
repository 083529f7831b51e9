"""A Chroma collection, opened safely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, IndexMismatchError, InvalidInputError, Passage, RetrieveRerankError
from retrieve_rerank.indexes import nearest as nearest_module
from retrieve_rerank.indexes import store as collection_module
from retrieve_rerank.indexes.records import Record, to_record
from retrieve_rerank.indexes.store import ChromaCollection
from tests.core.stubs import LetterEncoder, letters, passages, run_python


def fill(collection: ChromaCollection, *texts: str) -> None:
    records = [to_record(passage) for passage in passages(*texts)]
    collection.write(records, [letters(text) for text in texts])


@pytest.mark.parametrize(
    "again", ["{path}", "{path}/", "{path}/.", "{path}/../{name}", "relative", "./relative/", "link"]
)
def test_a_directory_spelled_otherwise_is_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    path = tmp_path / "relative"
    path.mkdir()
    (tmp_path / "link").symlink_to(path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    first = ChromaIndex(LetterEncoder(), path=path)
    first.add(passages("a", "b"))
    second = ChromaIndex(LetterEncoder(), path=again.format(path=path, name=path.name))
    second.add([Passage("new", "abc")])
    assert first.count() == second.count() == 3
    assert [hit.passage.id for hit in first.retrieve("abc", k=1)] == ["new"]
    assert len(second.retrieve("a")) == 3
    assert not list(path.glob(".retrieve-rerank*"))


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    ChromaIndex(LetterEncoder(), path="~/deep/er").add(passages("a"))
    assert (tmp_path / "deep" / "er" / "chroma.sqlite3").is_file()


def test_another_process_finds_what_was_stored(tmp_path: Path) -> None:
    script = """
        import sys
        from retrieve_rerank import ChromaIndex, Passage
        from tests.core.stubs import LetterEncoder

        with ChromaIndex(LetterEncoder(), path=sys.argv[1]) as index:
            index.add([Passage(f"{n}", "a" * n, {"n": n, "deep": {"k": None}}) for n in range(1, 151)])
    """
    run_python(script, str(tmp_path), warnings="ignore")
    index = ChromaIndex(LetterEncoder(), path=tmp_path)
    assert index.count() == 150
    assert index.get(["7"]) == [Passage("7", "aaaaaaa", {"n": 7, "deep": {"k": None}})]
    assert len({hit.passage.id for hit in index.retrieve("a", k=150)}) == 150
    assert index.add([Passage("7", "aaaaaaa", {"n": 7, "deep": {"k": None}})]).unchanged == 1


def test_indexes_in_memory_do_not_see_one_another() -> None:
    one, two = ChromaIndex(LetterEncoder()), ChromaIndex(LetterEncoder("dot", fingerprint={"model": "two"}))
    one.add(passages("a", "b"))
    assert (one.count(), two.count()) == (2, 0)
    two.add(passages("c"))
    one.close()
    assert two.get(["0"]) == [Passage("0", "c")]
    two.close()


def test_nothing_of_a_closed_index_comes_up_in_another() -> None:
    script = """
        from retrieve_rerank import ChromaIndex, Passage
        from tests.core.stubs import LetterEncoder

        with ChromaIndex(LetterEncoder()) as first:
            first.add([Passage("x", "a", {"owners": ["alice", "bob"]})])
        second = ChromaIndex(LetterEncoder())
        second.add([Passage("y", "b", {"n": 1})])
        print(dict(second.get(["y"])[0].metadata))
    """
    assert run_python(script, warnings="ignore").strip() == "{'n': 1}"


def test_a_client_of_the_caller_is_used(tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path.resolve()))
    ChromaIndex(LetterEncoder(), "mine", client=client).add(passages("a"))
    assert client.get_collection("mine", embedding_function=None).count() == 1
    assert ChromaIndex(LetterEncoder(), "mine", path=tmp_path).count() == 1


@pytest.mark.filterwarnings("ignore:legacy embedding function")  # Chroma's, for asking it to embed
@pytest.mark.parametrize("reopened", [False, True])
def test_chromas_own_embedding_model_is_never_attached(tmp_path: Path, reopened: bool) -> None:
    handle = ChromaIndex(LetterEncoder(), path=tmp_path).collection.handle
    if reopened:
        handle = ChromaIndex(LetterEncoder(), path=tmp_path).collection.handle
    assert handle._embedding_function is None
    assert handle.configuration_json.get("embedding_function") in (None, {"type": "legacy"})
    for call in (
        lambda: handle.query(query_texts=["a"]),
        lambda: handle.add(ids=["x"], documents=["a"]),
    ):
        with pytest.raises(ValueError, match="embedding function"):  # and nothing was downloaded
            call()


def test_more_neighbours_are_searched_than_chroma_does_by_itself(tmp_path: Path) -> None:
    handle = ChromaIndex(LetterEncoder(), path=tmp_path).collection.handle
    assert handle.configuration_json["hnsw"]["ef_search"] >= 200


def test_a_live_collection_can_be_used_as_it_is(tmp_path: Path) -> None:
    handle = chromadb.PersistentClient(str(tmp_path.resolve())).create_collection("live", embedding_function=None)
    collection = ChromaCollection("ignored", handle=handle)
    assert (collection.name, collection.metric) == ("live", "euclidean")
    fill(collection, "a", "b")
    assert handle.count() == 2
    assert collection.max_batch > 100
    collection.close()
    assert handle.count() == 2


def test_reading_by_id_crosses_the_limit_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (collection_module, nearest_module):
        monkeypatch.setattr(module, "READ_CHUNK", 3)
    collection = ChromaCollection("chunks")
    fill(collection, *"abcabcab")
    wanted = ["7", "no", *"6543210", "7"]
    assert [record.id for record in collection.read(wanted)] == list("76543210")
    collection.delete(["1", "3", "5", "7", "no"])
    assert [record.id for record in collection.read(list("76543210"))] == list("6420")
    collection.clear()
    assert collection.count() == 0


def test_queries_can_be_limited_to_ids_and_give_vectors() -> None:
    collection = ChromaCollection("limited")
    fill(collection, "a", "ab", "abc")
    found = collection.query([letters("a")], 5, ids=["1", "2", "missing"], with_vectors=True)[0]
    assert [item.record.id for item in found] == ["1", "2"]
    assert found[0].vector is not None
    assert found[0].vector == pytest.approx(np.array(letters("ab")))
    assert collection.query([letters("a"), letters("b")], 5, ids=["missing"]) == [[], []]
    assert collection.query(np.zeros((0, 4)), 5) == []
    assert collection.vectors(["0"])["0"] == pytest.approx(np.array(letters("a")))
    many = [*(f"unknown {number}" for number in range(40_000)), "0"]  # more than SQLite takes at once
    assert set(collection.vectors(many)) == {"0"}


@pytest.mark.parametrize("name", ["abc", "a.b-c_d", "1" * 3, "n" * 512])
def test_good_names_are_taken(name: str, tmp_path: Path) -> None:
    for options in ({}, {"path": tmp_path}):
        with ChromaIndex(LetterEncoder(), name, **options) as index:
            assert index.count() == 0


@pytest.mark.parametrize("name", ["", "ab", None, 5, "n" * 513, "-ab", "ab-", "a b c", "ümlaut", "abc\n", "a/b/c"])
def test_bad_names_are_refused(name: Any, tmp_path: Path) -> None:
    for options in ({}, {"path": tmp_path}):
        with pytest.raises(InvalidInputError, match="name is 3 to 512 letters"):
            ChromaIndex(LetterEncoder(), name, **options)


def test_a_collection_deleted_by_someone_else_is_said_to_be_gone(tmp_path: Path) -> None:
    index = ChromaIndex(LetterEncoder(), path=tmp_path)
    index.add(passages("a"))
    index.collection.client.delete_collection("passages")
    for call in (index.count, index.clear, lambda: index.add(passages("b")), lambda: index.retrieve("a")):
        with pytest.raises(
            RetrieveRerankError, match=r"'passages' is gone, deleted by someone else.*Open the index again"
        ):
            call()


def test_vectors_of_another_width_are_another_encoders() -> None:
    collection = ChromaCollection("widths")
    fill(collection, "a")
    with pytest.raises(IndexMismatchError, match="another length"):
        collection.query([[1.0, 2.0]], 1)
    with pytest.raises(IndexMismatchError, match="another length"):
        collection.write([Record("new", "b", {})], [[1.0, 2.0]])
    assert collection.count() == 1


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="needs fork")
@pytest.mark.parametrize("end", ["index.close()", "globals().pop('index')"])
def test_a_forked_child_is_told_and_may_close_or_drop_what_it_was_given(end: str) -> None:
    script = f"""
        import os, signal, warnings
        warnings.simplefilter("ignore")
        from retrieve_rerank import ChromaIndex, Passage, RetrieveRerankError
        from tests.core.stubs import LetterEncoder

        index = ChromaIndex(LetterEncoder())
        index.add([Passage("x", "a")])
        child = os.fork()
        if child == 0:
            signal.alarm(6)  # ends the child, should it wait
            for call in (index.count, lambda: index.get(["x"]), lambda: index.retrieve("a"), index.clear):
                try:
                    call()
                except RetrieveRerankError as error:
                    assert "spawn" in str(error)
                else:
                    os._exit(7)
            {end}
            os._exit(0)
        print(os.waitpid(child, 0)[1], index.count())
    """
    assert run_python(script, warnings="ignore").strip() == "0 1"


def test_all_records_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_module, "READ_CHUNK", 100)  # SQLite takes about 32,000 variables in a statement
    collection = ChromaCollection("many", metric="cosine")
    records = [Record(str(number), "", {}) for number in range(350)]
    collection.write(records, np.ones((350, 2), np.float32))
    assert sorted(int(record.id) for record in collection.read()) == list(range(350))
    assert len(collection.read(limit=201, offset=5)) == 201
    assert len(collection.read(limit=10, offset=347)) == 3
    assert len(collection.read(limit=0)) == 0
    assert collection.read(limit=5, offset=350) == []
    assert (collection.metric, collection.read(where_document={"$contains": "a"})) == ("cosine", [])
