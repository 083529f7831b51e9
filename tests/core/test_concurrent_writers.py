"""Threads, objects and processes that write one collection at a time: each record is one writer's, whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import AddReport, ChromaIndex, Passage
from retrieve_rerank.indexes.nearest import Search
from tests.core.stubs import LetterEncoder, run_python


class Waiting(LetterEncoder):
    """Its first call waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def encode_documents(self, texts: Any) -> Any:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(10)
        return super().encode_documents(texts)


def meanwhile(encoder: Waiting, call: Callable[[], object], other: Callable[[], object]) -> None:
    """Do something else while a call waits in the encoder."""
    thread = threading.Thread(target=call)
    thread.start()
    assert encoder.begun.wait(10)
    other()
    encoder.go_on.set()
    thread.join(10)
    assert not thread.is_alive()


def test_threads_that_open_the_first_indexes_in_memory_at_once() -> None:
    """Chroma makes its store in memory at the first use, and two threads each found half of it."""
    printed = run_python(
        """
        import threading
        from retrieve_rerank import ChromaIndex
        from retrieve_rerank.testing import LetterEncoder
        start = threading.Barrier(8)
        def make():
            start.wait()
            print(ChromaIndex(LetterEncoder()).count())
        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """,
        forked=True,
    )
    assert printed.split() == ["0"] * 8


@pytest.mark.parametrize("is_deleted", [False, True])
def test_metadata_are_not_written_to_another_threads_text(is_deleted: bool) -> None:
    """What was planned as a change of metadata only found another text, and joined the two."""
    encoder = LetterEncoder()
    index = ChromaIndex(encoder)
    index.add([Passage("y", "old text a", {"v": 0})])
    waiting = Waiting()
    index.encoder = waiting

    def other() -> None:
        index.encoder = encoder
        if is_deleted:
            index.delete(["y"])
        else:
            index.add([Passage("y", "new text c", {"v": 2})])

    meanwhile(waiting, lambda: index.add([Passage("x", "new b"), Passage("y", "old text a", {"v": 1})]), other)
    kept = [] if is_deleted else [Passage("y", "new text c", {"v": 2})]
    assert index.get(["x", "y"]) == [Passage("x", "new b"), *kept]


def test_two_objects_in_one_memory_do_not_mix_their_metadata() -> None:
    client = chromadb.EphemeralClient()
    name = "both-write-it"
    indexes = [ChromaIndex(LetterEncoder(), name, client=client) for _ in range(2)]
    for turn in range(10):
        start = threading.Barrier(2)

        def write(which: int, start: threading.Barrier = start, turn: int = turn) -> None:
            start.wait()
            indexes[which].add([Passage(f"{turn}-{n}", f"text {which}", {f"only {which}": 1}) for n in range(50)])

        threads = [threading.Thread(target=write, args=[which]) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    stored = indexes[0].get([f"{turn}-{n}" for turn in range(10) for n in range(50)])
    assert {(passage.text, *passage.metadata) for passage in stored} <= {("text 0", "only 0"), ("text 1", "only 1")}
    client.delete_collection(name)


def test_two_threads_that_replace_one_source_take_turns() -> None:
    encoder = LetterEncoder()
    index = ChromaIndex(encoder)
    index.replace_source("a.md", [Passage("old", "old")])
    waiting, reports = Waiting(), list[AddReport]()
    index.encoder = waiting
    later = threading.Thread(target=lambda: reports.append(index.replace_source("a.md", [Passage("second", "bb")])))

    def other() -> None:
        later.start()
        later.join(0.3)  # it waits for its turn; it was through by now

    meanwhile(
        waiting,
        lambda: reports.append(index.replace_source("a.md", [Passage("first", "aa"), Passage("first too", "ab")])),
        other,
    )
    later.join(10)
    assert reports == [AddReport(added=2, removed=1), AddReport(added=1, removed=2)]
    assert index.collection.ids() == ["second"]


def test_a_source_may_be_replaced_while_one_is() -> None:
    """From within the passages of another, in one thread."""
    index = ChromaIndex(LetterEncoder())

    def passages() -> Iterator[Passage]:
        yield Passage("outer", "aa")
        index.replace_source("inner.md", [Passage("inner", "bb")])

    index.replace_source("outer.md", passages())
    assert sorted(index.collection.ids()) == ["inner", "outer"]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How large each search took the collection for."""
    seen: list[int] = []
    run = Search.run

    def noted(self: Search, live: Any, size: int) -> Any:
        seen.append(size)
        return run(self, live, size)

    monkeypatch.setattr(Search, "run", noted)
    return seen


def test_a_search_knows_how_many_passages_others_have_written(tmp_path: Path, sizes: list[int]) -> None:
    """How broadly it looks, and whether it compares one by one, hangs on that; it believed a count for 30 seconds."""
    index = ChromaIndex(LetterEncoder(), path=tmp_path)
    index.add([Passage(f"a{n}", "aa") for n in range(10)])
    other = ChromaIndex(LetterEncoder(), path=tmp_path)
    index.retrieve("a")
    other.add([Passage(f"b{n}", "bb") for n in range(10)])
    index.retrieve("a")
    index.retrieve("a")
    other.delete(["b1"])
    index.retrieve("a")
    index.close()
    other.close()
    reader = ChromaIndex(LetterEncoder(), path=tmp_path)
    reader.retrieve("a")
    run_python(
        """
        import sys
        from retrieve_rerank import ChromaIndex, Passage
        from retrieve_rerank.testing import LetterEncoder
        with ChromaIndex(LetterEncoder(), path=sys.argv[1]) as index:
            index.add([Passage("c", "cc")])
        """,
        str(tmp_path),
        forked=True,
    )
    reader.retrieve("a")
    assert sizes == [10, 20, 20, 19, 19, 20]
    reader.close()


def test_a_search_in_memory_knows_how_many_passages_there_are(sizes: list[int]) -> None:
    client = chromadb.EphemeralClient()
    index, other = (ChromaIndex(LetterEncoder(), "both-read-it", client=client) for _ in range(2))
    other.retrieve("a")
    index.add([Passage(f"a{n}", "aa") for n in range(10)])
    other.retrieve("a")
    index.delete(["a1"])
    other.retrieve("a")
    assert sizes == [0, 10, 9]
    client.delete_collection("both-read-it")


def test_one_query_that_finds_all_leaves_none_incomplete() -> None:
    """Chroma's graph may lead one query to everything, and another, in the same call, to a part."""
    ids = [f"p{n}" for n in range(4)]

    class Live:
        def query(self, *, query_embeddings: Any, n_results: int, include: Any, **_: Any) -> Any:
            found = [ids if vector[0] else ids[:1] for vector in query_embeddings]
            none = [[None] * len(row) for row in found]
            distances = [[0.0] * len(row) for row in found]
            return {"ids": found, "documents": none, "metadatas": none, "embeddings": None, "distances": distances}

        def get(self, *, include: Any, ids: list[str] = ids, **_: Any) -> Any:
            vectors = [[1.0, 0.0]] * len(ids) if "embeddings" in include else None
            return {"ids": ids, "documents": None, "metadatas": None, "embeddings": vectors}

    vectors = np.array([[1, 0], [0, 1]], np.float32)
    live: Any = Live()
    found = Search(vectors, 10, {"where": None}, None, None, "dot").run(live, 4)
    assert [len(items) for items in found] == [4, 4]
