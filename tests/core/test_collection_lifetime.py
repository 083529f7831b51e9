"""What becomes of a collection when many write it, when it is closed, and when nobody holds it any more."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import chromadb
import pytest

from retrieve_rerank import ChromaIndex, Passage, RetrieveRerankError
from retrieve_rerank.indexes.client import drop_collection
from tests.core.stubs import LetterEncoder


def test_two_threads_that_write_one_passage_do_not_mix_its_metadata() -> None:
    class Meeting(LetterEncoder):
        """Both threads have planned their write before either one writes."""

        barrier = threading.Barrier(2, timeout=10)

        def encode_documents(self, texts):  # type: ignore[no-untyped-def]
            self.barrier.wait()
            return super().encode_documents(texts)

    index = ChromaIndex(Meeting())
    threads = [threading.Thread(target=index.add, args=([Passage("x", name, {name: 1})],)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = index.get(["x"])[0]
    assert dict(stored.metadata) == {stored.text: 1}


def test_a_closed_store_lets_go_of_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index = ChromaIndex(LetterEncoder(), path=folder)
    index.add([Passage("x", "a")])
    index.close()
    index.close()
    with pytest.raises(RetrieveRerankError, match="was closed; open the index again"):
        index.count()
    shutil.rmtree(folder)
    with ChromaIndex(LetterEncoder(), path=folder) as again:
        assert again.count() == 0
        assert again.add([Passage("x", "a"), Passage("y", "b")]).added == 2


def test_an_index_in_memory_goes_with_the_last_that_holds_it() -> None:
    client = chromadb.EphemeralClient()
    gc.collect()
    before = client.count_collections()
    index = ChromaIndex(LetterEncoder())
    index.add([Passage("x", "a")])
    assert client.count_collections() == before + 1
    del index
    gc.collect()
    assert client.count_collections() == before


def test_dropping_deletes_only_rows_with_lists_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged index may fill the disk when many rows are deleted; lists that stay turn up in later rows."""
    deleted: list[str] = []
    delete = chromadb.Collection.delete

    def counted(self: chromadb.Collection, ids: list[str]) -> object:
        deleted.extend(ids)
        return delete(self, ids)

    monkeypatch.setattr(chromadb.Collection, "delete", counted)
    client = chromadb.PersistentClient(str(tmp_path))
    old = client.create_collection("old", embedding_function=None)
    rows = 2500
    metadatas: Any = [{"n": number, **({"tags": ["x", "y"]} if number % 500 == 7 else {})} for number in range(rows)]
    old.add(ids=[str(number) for number in range(rows)], embeddings=[[1.0, 0.0]] * rows, metadatas=metadatas)
    drop_collection(client, "old", os.getpid())
    assert deleted == ["7", "507", "1007", "1507", "2007"]
    assert not client.list_collections()
    new = client.create_collection("new", embedding_function=None)
    new.add(ids=[str(number) for number in range(rows)], embeddings=[[1.0, 0.0]] * rows, metadatas=[{"n": 1}] * rows)
    assert new.get(include=["metadatas"])["metadatas"] == [{"n": 1}] * rows
