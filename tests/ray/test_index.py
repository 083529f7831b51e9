"""Indexing on a cluster ends in the collection that one process makes, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from langchain_core.documents import Document

from retrieve_rerank import (
    AddReport,
    BiEncoder,
    ChromaIndex,
    IndexMismatchError,
    InvalidInputError,
    Passage,
    RemoteError,
    RetrieveRerankError,
    TruncationWarning,
)
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.langchain import ChromaVectorStore
from retrieve_rerank.testing import EncoderEmbeddings
from tests.chroma_server import ChromaServer, close, free_port
from tests.ray.stubs import Traced, encoded, passages, workers

pytest.importorskip("ray.data")

import pyarrow as pa

from retrieve_rerank.ray import PassagesFailedError, index, index_store
from retrieve_rerank.ray.indexing import _add_texts

pytestmark = pytest.mark.usefixtures("cluster")

PASSAGES = int(os.environ.get("RAY_PASSAGES", "2000"))
DEMO_PASSAGES = int(os.environ.get("RAY_DEMO_PASSAGES", "40"))
BATCH = max(50, PASSAGES // 50)


def assert_same(left: ChromaIndex, right: ChromaIndex, *, tolerance: float = 1e-6) -> None:
    """Compare ids, texts, metadata, vectors, metric and what the collections say of themselves."""
    records = [{record.id: record for record in every_record(side)} for side in (left, right)]
    assert records[0].keys() == records[1].keys()
    assert all(records[0][id_].equals(records[1][id_]) for id_ in records[0])
    for ids in chunks(sorted(records[0]), 1_000):
        vectors = [side.collection.vectors(ids) for side in (left, right)]
        np.testing.assert_allclose([vectors[0][i] for i in ids], [vectors[1][i] for i in ids], atol=tolerance)
    assert left.metric == right.metric
    assert left.collection.handle.metadata == right.collection.handle.metadata


def every_record(index: ChromaIndex) -> Iterator[Record]:
    for start in range(0, index.count(), 1_000):
        yield from index.collection.read(limit=1_000, offset=start)


def chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def meanwhile(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.parametrize("door", ["index", "index_store"])
def test_a_killed_worker_and_a_killed_server_change_nothing(tmp_path: Path, door: str) -> None:
    encoder, count = Traced(tmp_path, seconds=0.05), PASSAGES if door == "index" else PASSAGES // 2
    with ChromaServer(tmp_path / "server") as server:

        def kill() -> None:
            wait_until(lambda: encoded(tmp_path) > count // 5)
            os.kill(workers(tmp_path)[0], signal.SIGKILL)
            wait_until(lambda: encoded(tmp_path) > count // 2)
            server.kill()
            time.sleep(0.5)
            server.start()

        killing = meanwhile(kill)
        where = {"host": server.host, "port": server.port}

        def store() -> ChromaVectorStore:
            return ChromaVectorStore("killed", EncoderEmbeddings(encoder), client=chromadb.HttpClient(**where))

        def run() -> AddReport:
            options = {"batch_size": BATCH, "concurrency": 3}
            if door == "index_store":
                return index_store(passages(count), store, **options)
            return index(passages(count), encoder, collection="killed", **where, **options)

        report = run()
        killing.join(600)
        assert not killing.is_alive()
        assert len(workers(tmp_path)) > 3, "no worker was killed in the middle"
        assert report.updated == 0
        assert report.added + report.unchanged == count
        assert report.unchanged <= BATCH  # what the lost worker had stored and not yet said
        assert count <= encoded(tmp_path) <= count + BATCH  # its batch, and nothing else, is encoded twice

        alone = ChromaIndex(Traced(tmp_path / "elsewhere"))
        alone.encoder.folder.mkdir()
        alone.add(passages(count))
        client = server.client()
        assert_same(alone, ChromaIndex(encoder, "killed", client=client))
        close(client)

        before = encoded(tmp_path)
        report = run()
        assert (report.added, report.updated, report.unchanged) == (0, 0, count)
        assert encoded(tmp_path) == before


def test_a_real_encoder_makes_the_vectors_that_it_makes_alone(
    chroma_server: ChromaServer, chroma_client: ClientAPI, bi_encoder_path: Path
) -> None:
    encoder = BiEncoder(bi_encoder_path, precision="float32")
    long = Passage("long", "word " * 600)
    where = {"collection": "real", "host": chroma_server.host, "port": chroma_server.port}
    with pytest.warns(TruncationWarning, match="longer than"):
        report = index([*passages(DEMO_PASSAGES), long], encoder, **where, batch_size=20, concurrency=1)
    assert report.added == DEMO_PASSAGES + 1
    alone = ChromaIndex(encoder)
    with pytest.warns(TruncationWarning):
        alone.add([*passages(DEMO_PASSAGES), long])
    assert_same(alone, ChromaIndex(encoder, "real", client=chroma_client), tolerance=1e-5)


def test_of_equal_ids_the_last_wins_wherever_it_is(
    chroma_server: ChromaServer, chroma_client: ClientAPI, tmp_path: Path
) -> None:
    given = [
        Passage("twice", "first"),
        *passages(30),
        Passage("twice", "last"),
        Passage("back", "new"),
        *passages(30, start=30),
        Passage("back", "old"),  # as it is stored: the worker that sees this one first leaves it alone
    ]
    encoder = Traced(tmp_path)
    with ChromaIndex(encoder, "twice", client=chroma_client) as there:
        there.add([Passage("back", "old")])
        where = {"collection": "twice", "host": chroma_server.host, "port": chroma_server.port}
        index(given, encoder, **where, batch_size=10, concurrency=3)
        alone = ChromaIndex(encoder)
        alone.add(given)
        assert_same(alone, there)


def test_what_fails_is_named_and_the_rest_is_stored(chroma_server: ChromaServer, tmp_path: Path) -> None:
    import ray

    rows = [{"id": p.id, "text": p.text} for p in passages(60)]
    rows[5]["id"] = ""
    rows[45]["text"] = "stop"

    def blocks() -> ray.data.Dataset:
        # Of ten rows, which stay together in each run; of smaller ones, batches are made as they come.
        return ray.data.from_items(rows, override_num_blocks=6)

    where = {"collection": "faults", "host": chroma_server.host, "port": chroma_server.port, "batch_size": 10}
    encoder = Traced(tmp_path)
    with pytest.raises(PassagesFailedError, match="the model failed on purpose") as caught:
        index(blocks(), encoder, **where, concurrency=1)
    assert caught.value.report.added == 58
    assert len(caught.value.failures) == 2  # the others of its batch are none of them
    assert "non-empty" in caught.value.failures["'' ('text number 5 of äöü')"]
    assert "purpose" in caught.value.failures["p45"]
    with pytest.raises(PassagesFailedError, match="stopped") as caught:
        index(blocks(), encoder, **where, concurrency=1, max_failed=0)
    assert caught.value.report.added == 0
    rows[5]["id"], rows[45]["text"] = "p5", "go on"
    report = index(blocks(), encoder, **where, concurrency=1)
    assert report.added + report.unchanged == 60
    assert encoded(tmp_path) == 60  # nothing twice


def test_of_rows_that_come_in_another_order_the_last_wins(chroma_server: ChromaServer, tmp_path: Path) -> None:
    """Small blocks are put together as they come: here the second of two files is there long before the first."""
    import ray

    done = tmp_path / "the second was read"

    def late(table: pa.Table) -> pa.Table:
        if "new" in table["text"].to_pylist():
            done.touch()
        else:
            wait_until(done.exists, 60)
            time.sleep(1.0)
        return table

    rows = [{"id": "x", "text": "old"}, {"id": "x", "text": "new"}]
    slow = ray.data.from_items(rows, override_num_blocks=2).map_batches(late, batch_size=1, batch_format="pyarrow")
    where = {"collection": "order", "host": chroma_server.host, "port": chroma_server.port}
    encoder = Traced(tmp_path)
    index(slow, encoder, **where, concurrency=1)
    client = chroma_server.client()
    assert [p.text for p in ChromaIndex(encoder, "order", client=client).get(["x"])] == ["new"]
    close(client)


def test_what_cannot_work_says_so_before_anything_is_encoded(
    chroma_server: ChromaServer, chroma_client: ClientAPI, tmp_path: Path
) -> None:
    ChromaIndex(Traced(tmp_path, name="other"), "taken", client=chroma_client)
    where = {"collection": "taken", "host": chroma_server.host, "port": chroma_server.port}
    encoder = Traced(tmp_path)
    with pytest.raises(IndexMismatchError, match="made by another encoder"):
        index(passages(3), encoder, **where)
    with pytest.raises(RemoteError, match=r"cannot open the Chroma server at 127\.0\.0\.1"):
        index(passages(3), encoder, host="127.0.0.1", port=free_port())

    def no_encoder() -> Traced:
        raise MemoryError("too little for the model")

    with pytest.raises(RetrieveRerankError, match="MemoryError: too little for the model"):
        index(passages(3), no_encoder, **where)
    encoder.lock = threading.Lock()
    with pytest.raises(InvalidInputError, match="cannot be sent to the workers"):
        index(passages(3), encoder, **where)
    with pytest.raises(InvalidInputError, match="passage 'p'"):
        index([Passage("p", "text", {"bad": object()})], Traced(tmp_path), **where)
    with pytest.raises(InvalidInputError, match="are more than the 3 of the cluster's 4"):
        index(
            passages(3),
            Traced(tmp_path),
            collection="full",
            host="127.0.0.1",
            port=chroma_server.port,
            concurrency=(4, 4),
        )
    with pytest.raises(InvalidInputError, match="GPUs are more than the 0"):  # for which Ray would wait for ever
        index(passages(3), Traced(tmp_path), **where, num_gpus=1)
    with pytest.raises(InvalidInputError, match=r"\(least, most\)"):
        index(passages(3), Traced(tmp_path), **where, concurrency=(2, 1))
    for wrong in (-1, None, True):
        with pytest.raises(InvalidInputError, match="max_failed must be a whole number >= 0"):
            index(passages(3), Traced(tmp_path), **where, max_failed=wrong)
    assert encoded(tmp_path) == 0


def test_nothing_is_an_empty_collection(chroma_server: ChromaServer, chroma_client: ClientAPI, tmp_path: Path) -> None:
    where = {"collection": "nothing", "host": chroma_server.host, "port": chroma_server.port}
    assert index([], Traced(tmp_path), **where, concurrency=1).added == 0
    assert ChromaIndex(Traced(tmp_path), "nothing", client=chroma_client).count() == 0


# A vector store of LangChain's is filled by several workers, and asked before anything is encoded again


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
