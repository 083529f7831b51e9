"""A vector store of LangChain's is filled by several workers, and asked before anything is encoded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.api import ClientAPI
from langchain_core.documents import Document

from retrieve_rerank import AddReport, InvalidInputError, Passage
from retrieve_rerank.langchain import ChromaVectorStore
from retrieve_rerank.testing import EncoderEmbeddings
from tests.chroma_server import ChromaServer
from tests.ray.stubs import Traced, encoded, passages

pytest.importorskip("ray.data")

from retrieve_rerank.ray import index_store
from retrieve_rerank.ray.indexing import _add_texts

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_second_run_encodes_what_changed(
    chroma_server: ChromaServer, chroma_client: ClientAPI, tmp_path: Path
) -> None:
    address = {"host": chroma_server.host, "port": chroma_server.port}

    def store() -> ChromaVectorStore:
        embeddings = EncoderEmbeddings(Traced(tmp_path))
        return ChromaVectorStore("langchain", embeddings, client=chromadb.HttpClient(**address))

    report = index_store(passages(60), store, batch_size=20, concurrency=2)
    assert (report.added, report.updated, report.unchanged) == (60, 0, 0)
    before = encoded(tmp_path)
    changed = [*passages(60), Passage("p7", "another text", {"number": 7}), *passages(5, start=60)]
    report = index_store(changed, store, batch_size=20, concurrency=2)
    assert (report.added, report.updated) == (5, 1)
    assert encoded(tmp_path) <= before + 6 + 1
    there = ChromaVectorStore("langchain", EncoderEmbeddings(Traced(tmp_path)), client=chroma_client)
    found = there.get_by_ids(["p7", "p61"])
    assert [(document.page_content, document.metadata) for document in found] == [
        ("another text", {"number": 7}),
        ("text number 61 of äöü", next(passages(1, start=61)).metadata),
    ]
    with pytest.raises(InvalidInputError, match="a function that makes the store"):
        index_store(passages(1), there)


class Mute:
    """A store that cannot be asked."""

    def __init__(self) -> None:
        self.texts: dict[str, Document] = {}

    def add_texts(self, texts: Any, metadatas: Any = None, *, ids: Any = None) -> list[str]:
        self.texts.update(zip(ids, map(Document, texts), strict=True))
        return list(ids)

    def get_by_ids(self, ids: list[str]) -> list[Document]:
        raise NotImplementedError


def test_a_store_that_cannot_be_asked_gets_everything() -> None:
    store = Mute()
    assert [_add_texts(store, list(passages(3))).added for _ in range(2)] == [3, 3]


def test_metadata_are_compared_as_they_are() -> None:
    """True is not 1, and a number that is none is what it was."""

    class Asked(Mute):
        def get_by_ids(self, ids: list[str]) -> list[Document]:
            return [Document("a", id=id_, metadata={"1": {"flag": 1}, "2": {"x": float("nan")}}[id_]) for id_ in ids]

    passages = [Passage("1", "a", {"flag": True}), Passage("2", "a", {"x": float("nan")})]
    store = Asked()
    assert _add_texts(store, passages) == AddReport(updated=1, unchanged=1)
    assert list(store.texts) == ["1"]
