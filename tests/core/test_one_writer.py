"""One directory, many processes: one writes, all read, nothing is lost. CHROMA_WRITERS says how many."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, IndexLockedError, InvalidInputError
from retrieve_rerank._files import FileLock
from retrieve_rerank.indexes.access import Share
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.store import ChromaCollection
from tests.core.stubs import LetterEncoder, letters, passages, run_python

WRITERS = [int(number) for number in os.environ.get("CHROMA_WRITERS", "2,8").split(",")]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# Children are forked before anything is opened: Chroma starts in each of them, and importing it costs once only.
PRELUDE = """
    import json, os, signal, sys, time
    from pathlib import Path

    import chromadb
    import numpy as np

    from retrieve_rerank import ChromaIndex, IndexLockedError, InvalidInputError, Passage
    from tests.core.stubs import LetterEncoder

    path = Path(sys.argv[1])
    LONG = 1200  # more than Chroma keeps in its log
    made = np.random.default_rng(2).normal(size=(8 * LONG, 16)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)

    def opened(**options):
        encoder = LetterEncoder(vector=lambda text: made[int(text)].tolist(), dimension=16)
        return ChromaIndex(encoder, path=path, **options)

    def some(first, count):
        return [Passage(f"p{number}", str(number)) for number in range(first, first + count)]

    class Child:
        "A forked process that runs work(said, heard): two functions to speak with the parent."

        def __init__(self, work):
            down, up = os.pipe(), os.pipe()
            self.pid = os.fork()
            if self.pid == 0:
                hear, tell = os.fdopen(down[0]), os.fdopen(up[1], "w", buffering=1)
                os.close(down[1])  # so that the end of the parent is heard
                try:
                    work(lambda what: print(json.dumps(what), file=tell, flush=True), lambda: hear.readline().strip())
                except BaseException as error:
                    print(json.dumps(f"{type(error).__name__}: {error}"), file=tell, flush=True)
                os._exit(0)
            os.close(down[0]), os.close(up[1])
            self.tell, self.hear = os.fdopen(down[1], "w", buffering=1), os.fdopen(up[0])

        def heard(self):
            return json.loads(self.hear.readline() or '"silence"')

        def say(self, what="go"):
            print(what, file=self.tell, flush=True)

        def end(self):
            self.tell.close()
            os.waitpid(self.pid, 0)

    def look(first, count):
        "What a fresh process sees: how many there are, and how many of these are not their own nearest neighbour."
        def work(said, heard):
            with opened() as index:
                found = index.retrieve_many([str(number) for number in range(first, first + count)], 1)
                lost = sum(not hits or hits[0].passage.text != str(first + n) for n, hits in enumerate(found))
                said([index.count(), lost])
        child = Child(work)
        answer = child.heard()
        child.end()
        return answer
"""


def run(script: str, *arguments: object, timeout: float = 120) -> list[Any]:
    whole = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    lines = run_python(whole, *map(str, arguments), timeout=timeout, warnings="ignore").splitlines()
    return [json.loads(line) for line in lines]


@forks
@pytest.mark.parametrize("writers", WRITERS)
def test_of_many_writers_one_writes_and_the_others_wait_or_are_told(tmp_path: Path, writers: int) -> None:
    script = """
        count, each = int(sys.argv[2]), 300

        def writer(number):
            def work(said, heard):
                index = opened()
                said("open")
                heard()
                try:
                    index.add(some(number * each, each), batch_size=100)
                    said("wrote")
                except IndexLockedError as error:
                    said("told")
                    assert index.count() >= 0 and index.retrieve("0") is not None  # reading goes on
                heard()
                index.close()
                with opened(lock_timeout=100) as index:
                    index.add(some(number * each, each), batch_size=100)
                said("wrote")
            return work

        opened().close()
        children = [Child(writer(number)) for number in range(count)]
        print(json.dumps([child.heard() for child in children]))
        for child in children:
            child.say()
        print(json.dumps(sorted(child.heard() for child in children)))
        for child in children:
            child.say()
        print(json.dumps([child.heard() for child in children]))
        for child in children:
            child.end()
        print(json.dumps(look(0, count * each)))
    """
    # The parent opens nothing before the forks but what it closes.
    script = script.replace("opened().close()", "first = Child(lambda said, heard: opened().close()); first.end()")
    opened, told, waited, found = run(script, tmp_path / "index", writers)
    assert opened == ["open"] * writers
    assert told == ["told"] * (writers - 1) + ["wrote"]
    assert waited == ["wrote"] * writers
    assert found == [writers * 300, 0]


@forks
def test_who_opened_before_another_one_wrote_destroys_nothing_and_sees_it(tmp_path: Path) -> None:
    """Chroma's own client would write the vectors back as it knew them."""
    script = """
        def old(said, heard):
            index = opened()
            said(len(index.retrieve("0", LONG)))
            heard()
            said(len({hit.passage.id for hit in index.retrieve("0", 2 * LONG)}))  # a reader sees what was written
            index.add(some(LONG, LONG), batch_size=400)  # and a writer goes on from there
            index.close()
            said("wrote")

        def new(said, heard):
            heard()
            with opened() as index:
                index.add(some(0, LONG), batch_size=500)
            said("wrote")

        first = Child(lambda said, heard: opened().close())
        first.end()
        old, new = Child(old), Child(new)
        print(old.heard())
        new.say()
        print(json.dumps(new.heard()))
        new.end()
        old.say()
        print(old.heard())
        print(json.dumps(old.heard()))
        old.end()
        print(json.dumps(look(0, 2 * LONG)))
    """
    assert run(script, tmp_path / "index") == [0, "wrote", 1200, "wrote", [2400, 0]]


@forks
def test_readers_that_come_and_go_while_another_writes_destroy_nothing(tmp_path: Path) -> None:
    """A process that opens a directory applies Chroma's log, and may write the vectors that another one writes."""
    script = """
        def writer(said, heard):
            with opened() as index:
                said("open")
                index.add(some(0, 4 * LONG), batch_size=2 * LONG)
            said("wrote")

        def reader(said, heard):
            with opened() as index:
                index.retrieve("0")
                said("read")

        writer = Child(writer)
        writer.heard()
        readers = 0
        while os.waitpid(writer.pid, os.WNOHANG) == (0, 0) or not readers:
            both = [Child(reader), Child(reader)]
            assert [child.heard() for child in both] == ["read"] * 2
            for child in both:
                child.end()
            readers += 2
        print(json.dumps(writer.heard()))
        print(json.dumps(look(0, 4 * LONG)))
    """
    assert run(script, tmp_path / "index") == ["wrote", [4800, 0]]


@forks
def test_a_lock_goes_with_the_process_that_held_it_and_with_nothing_else(tmp_path: Path) -> None:
    script = """
        def holder(said, heard):
            index = opened()
            index.add(some(0, 10))
            child = os.fork()  # inherits everything that is open
            if child == 0:
                try:
                    index.close()
                    del index
                    time.sleep(300)
                finally:
                    os._exit(0)
            short = os.fork()
            if short == 0:
                os._exit(0)  # closes its copies of everything
            os.waitpid(short, 0)
            said(child)
            heard()

        def locked():
            def work(said, heard):
                index = opened()
                try:
                    index.add(some(20, 10))
                    said("wrote")
                except IndexLockedError as error:
                    said(str(error))
            child = Child(work)
            answer = child.heard()
            child.end()
            return answer

        holder = Child(holder)
        grandchild = holder.heard()
        message = locked()
        print(json.dumps([f"process {holder.pid} on " in message, message]))
        os.kill(holder.pid, signal.SIGKILL)
        os.waitpid(holder.pid, 0)
        print(json.dumps(locked()))
        os.kill(grandchild, signal.SIGKILL)
        print(json.dumps(look(0, 10)))
    """
    (named, message), after, found = run(script, tmp_path / "index")
    assert named, message
    for part in ("is being written by process", "since 20", "lock_timeout=60", "chroma run --path", "HttpClient"):
        assert part in message
    assert after == "wrote"
    assert found == [20, 0]


@forks
def test_a_forked_child_that_would_wait_for_ever_is_told(tmp_path: Path) -> None:
    """Chroma would hand the parent's store out again, and wait for threads that the child does not have."""
    script = """
        index = opened()
        index.add(some(0, 10))
        client = chromadb.EphemeralClient()
        index.close()

        def work(said, heard):
            signal.alarm(60)  # ends the child, should it wait
            for options in ({"path": path}, {}, {"client": client}):
                try:
                    said(ChromaIndex(LetterEncoder(), **options).count())
                except Exception as error:
                    said(f"{type(error).__name__}: {error}")

        child = Child(work)
        for _ in range(3):
            print(json.dumps(child.heard()))
        child.end()
    """
    for message in run(script, tmp_path / "index"):
        assert message.startswith(
            "RetrieveRerankError: this process was forked from one that had opened a Chroma index"
        )
        assert "Open indexes after the fork only" in message
        assert "spawn" in message


def taken(path: Path) -> bool:
    """Whether some object, of whatever process, holds the writers' lock."""
    lock = FileLock(path / "retrieve_rerank" / "writer.lock")
    free = lock.acquire()
    lock.release()
    return not free


def rested(collection: ChromaCollection) -> None:
    """Let a reader look again at once."""
    turns = collection._turns
    assert isinstance(turns, Share)
    turns._shared._view(turns._store).rest = 0.0


def test_all_objects_of_a_process_share_the_lock_until_the_last_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "index"
    first = ChromaIndex(LetterEncoder(), path=path)  # made the collection
    assert taken(path)
    second = ChromaIndex(LetterEncoder(), "another", path=f"{path}/")
    second.add(passages("a"))
    first.close()
    assert taken(path)
    second.close()
    second.close()
    assert not taken(path)
    reading = ChromaIndex(LetterEncoder(), path=path)
    assert reading.count() == 0
    assert reading.retrieve("a") == []
    assert not taken(path)
    reading.clear()
    assert taken(path)
    del reading
    gc.collect()
    assert not taken(path)


def test_another_holder_is_named_and_waited_for(tmp_path: Path) -> None:
    index = ChromaIndex(LetterEncoder(), path=tmp_path)
    index.add(passages("a"))
    index.close()
    other = FileLock(tmp_path / "retrieve_rerank" / "writer.lock")
    assert other.acquire(note='{"pid": 77, "host": "elsewhere", "since": "noon"}')
    reader = ChromaIndex(LetterEncoder(), path=tmp_path)
    encoder: Any = reader.encoder
    encoder.documents.clear()
    for write in (
        lambda: reader.add(passages("b")),
        lambda: reader.delete(["0"]),
        reader.clear,
        lambda: reader.replace_source("x", []),
        lambda: ChromaIndex(LetterEncoder(), "another", path=tmp_path),
    ):
        with pytest.raises(IndexLockedError, match="process 77 on elsewhere, since noon"):
            write()
    assert encoder.documents == []  # told before anything was encoded
    with pytest.raises(IndexLockedError, match=r"Waited 0.1 seconds"):
        ChromaIndex(LetterEncoder(), path=tmp_path, lock_timeout=0.1).add(passages("b"))
    assert reader.count() == 1
    other.release()
    assert reader.add(passages("a", "b")).added == 1


def test_searches_go_on_while_another_thread_waits_to_write(tmp_path: Path) -> None:
    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        index.add(passages("a"))
    other = FileLock(tmp_path / "retrieve_rerank" / "writer.lock")
    assert other.acquire()
    with ChromaIndex(LetterEncoder(), path=tmp_path, lock_timeout=10) as index, ThreadPoolExecutor(1) as pool:
        assert len(index.retrieve("a")) == 1
        waiting = pool.submit(index.add, passages("a", "b"))
        time.sleep(0.2)
        assert len(index.retrieve("a")) == 1
        assert not waiting.done()
        other.release()
        assert waiting.result().added == 1


def test_who_reads_what_does_not_name_its_encoder_needs_no_lock(tmp_path: Path) -> None:
    """Its encoder is written down where that is possible."""
    client = chromadb.PersistentClient(str(tmp_path.resolve()))
    theirs = client.create_collection("passages", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
    theirs.add(ids=["0"], documents=["a"], embeddings=np.array([letters("a")], np.float32))
    (tmp_path / "retrieve_rerank").mkdir()
    other = FileLock(tmp_path / "retrieve_rerank" / "writer.lock")
    assert other.acquire()
    with ChromaIndex(LetterEncoder(), path=tmp_path, lock_timeout=60) as index:
        assert index.retrieve("a")[0].passage.text == "a"
        assert not client.get_collection("passages", embedding_function=None).metadata
        with pytest.raises(IndexLockedError):
            ChromaIndex.adopt(LetterEncoder(), path=tmp_path)
    other.release()
    with ChromaIndex(LetterEncoder(), path=tmp_path):
        assert not taken(tmp_path)
        assert client.get_collection("passages", embedding_function=None).metadata


@pytest.mark.parametrize("seconds", [-1, "5", None, float("nan"), float("inf"), True])
def test_a_wait_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(InvalidInputError, match="lock_timeout must be a number of seconds from 0 on"):
        ChromaIndex(LetterEncoder(), lock_timeout=seconds)


def test_two_stores_of_one_process_on_one_directory_lose_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Chroma takes each spelling for a store of its own, with vectors of its own in memory."""
    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(4).normal(size=(4000, 8)).astype(np.float32)
    records = [Record(f"{number}", "", {}) for number in range(4000)]
    ours = ChromaCollection("shared", path=tmp_path / "index")
    theirs = ChromaCollection("shared", client=chromadb.PersistentClient("./index"))
    live = chromadb.PersistentClient("index/").get_collection("shared", embedding_function=None)
    third = ChromaCollection("ignored", handle=live)
    writers = [ours, theirs, third]
    for turn, start in enumerate(range(0, 4000, 400)):
        writers[turn % 3].write(records[start : start + 400], vectors[start : start + 400])
        reader = writers[(turn + 1) % 3]
        rested(reader)
        assert len({item.record.id for item in reader.query(vectors[:1], 4000)[0]}) == start + 400
    for collection in writers:
        rested(collection)
        found = collection.query(vectors, 1)
        assert [items[0].record.id for items in found] == [record.id for record in records]
    assert taken(tmp_path / "index")
    for collection in writers:
        collection.close()
    assert not taken(tmp_path / "index")


def test_a_directory_that_was_deleted_is_locked_anew(tmp_path: Path) -> None:
    path = tmp_path / "index"
    left = ChromaIndex(LetterEncoder(), path=path)
    left.add(passages("a"))
    left.collection.client.close()  # type: ignore[attr-defined]
    shutil.rmtree(path)
    with ChromaIndex(LetterEncoder(), path=path) as index:
        index.add(passages("a", "b"))
        assert taken(path)
        assert index.count() == 2


@forks
@pytest.mark.skipif("not hasattr(os, 'geteuid') or os.geteuid() != 0", reason="who is not root cannot become another")
def test_a_directory_that_cannot_be_written_is_searched_all_the_same() -> None:
    """Chroma itself writes when it opens: it gets a copy."""
    script = """
        def other(said, heard):
            os.setgid(65534), os.setuid(65534)
            index = opened()
            said([index.count(), index.retrieve("3", 1)[0].passage.id])
            try:
                index.add(some(20, 1))
            except InvalidInputError as error:
                said(str(error))

        def make(said, heard):
            with opened() as index:
                index.add(some(0, 10))

        first = Child(make)
        first.end()
        for place in [path, *path.rglob("*")]:
            place.chmod(0o555 if place.is_dir() else 0o444)
        second = Child(other)
        print(json.dumps(second.heard()))
        print(json.dumps(second.heard()))
        second.end()
    """
    with tempfile.TemporaryDirectory() as place:  # pytest's own are for one user only
        Path(place).chmod(0o755)
        found, message = run(script, Path(place) / "index")
    assert found == [10, "p3"]
    assert "cannot be written" in message
    assert "open it again when it can be written" in message


def test_where_files_cannot_be_locked_one_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChromaIndex(LetterEncoder(), path=tmp_path).close()

    def no_locks(self: FileLock, *options: Any, **more: Any) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    with ChromaIndex(LetterEncoder(), path=tmp_path) as index:
        assert index.retrieve("a") == []
        with pytest.raises(InvalidInputError, match=r"No locks available.*file system that knows locks.*HttpClient"):
            index.add(passages("a"))
