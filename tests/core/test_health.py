"""What Chroma itself loses is found, said and mended: the damage is made by Chroma, as its users make it."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chromadb
import httpx
import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, IndexMismatchError, InvalidInputError, Passage, RetrieveRerankError
from retrieve_rerank.indexes import health as repairing
from retrieve_rerank.indexes import store as collection_module
from retrieve_rerank.indexes.client import rebuilding_names
from retrieve_rerank.indexes.records import Record
from retrieve_rerank.indexes.store import ChromaCollection
from tests.core.stubs import Broken, LetterEncoder, passages, run_python
from tests.forking import python

WIDE = 16
ROOT = Path(__file__).parents[2]

# Rows as any program would write them through Chroma's own client: passage n has the text "n" and its vector.
COMMON = """
    import random, sys
    import chromadb, numpy as np
    from tests.core.test_health import vectors_of

    path = sys.argv[1]

    def opened(spelling):
        return chromadb.PersistentClient(spelling).get_collection("passages", embedding_function=None)

    def write(collection, begin, first, count=100):
        texts = [str(first + number) for number in range(count)]
        collection.upsert(
            ids=[str(begin + number) for number in range(count)],
            embeddings=vectors_of(texts),
            documents=texts,
            metadatas=[{"number": text} for text in texts],
        )

    chromadb.PersistentClient(path).create_collection(
        "passages", configuration={"hnsw": {"space": "cosine", "sync_threshold": 1000}}, embedding_function=None
    )
    one, two = opened(path), opened(path + "/")
"""
TAKING_TURNS = """
    for turn in range(30):
        write((one, two)[turn % 2], 100 * turn, 100 * turn)
"""
DELETING = """
    for turn in range(30):
        write((one, two)[turn % 2], 100 * turn, 100 * turn)
        if turn > 4:
            (two, one)[turn % 2].delete(ids=[str(100 * (turn - 3) + number) for number in range(50)])
"""
AT_RANDOM = """
    seeded = random.Random(2)
    for turn in range(80):
        collection, begin = seeded.choice((one, two)), 100 * seeded.randrange(25)
        if seeded.random() < 0.3:
            collection.delete(ids=[str(begin + number) for number in range(seeded.randrange(1, 100))])
        else:
            write(collection, begin, 10_000 * (turn + 1) + begin)
"""


def vectors_of(texts: Sequence[str]) -> Any:
    rows = [np.random.default_rng([len(text), *text.encode()]).standard_normal(WIDE) for text in texts]
    return np.array(rows, np.float32).reshape(len(texts), WIDE)


class RandomEncoder(LetterEncoder):
    """Random directions, the same ones for the same text."""

    def __init__(self) -> None:
        super().__init__(dimension=WIDE, fingerprint={"model": "random"})

    def _encode(self, texts: Sequence[str]) -> Any:
        return vectors_of(texts)


@pytest.fixture(autouse=True, scope="module")
def small_files() -> Iterator[None]:
    """No file beyond a gigabyte, here and in the processes started here: Chroma has written 136 of them, in damage."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage(folder: Path, script: str, symptom: str) -> Path:
    """Make a damaged directory. Which damage Chroma does is chance: take one that shows, and kills no process."""
    look = f"""
        import sys
        from retrieve_rerank import ChromaIndex, RetrieveRerankError
        from tests.core.test_health import RandomEncoder

        try:
            with ChromaIndex(RandomEncoder(), path=sys.argv[1], assume_compatible={script is AT_RANDOM}) as index:
                found = index.check(samples=None)
        except (RetrieveRerankError, UserWarning):  # it cannot be read at all, or looks like another encoder's
            sys.exit(3)
        sys.exit(0 if {symptom} else 3)
    """
    for attempt in range(12):
        path, copy = folder / f"damaged{attempt}", folder / f"copy{attempt}"
        run_python(COMMON + script, str(path), warnings="ignore", forked=True)
        shutil.copytree(path, copy)
        command = [*python(), "-W", "error", "-c", textwrap.dedent(look), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
        if done.returncode == 0:
            return path
        assert done.returncode == 3 or done.returncode < 0, done.stderr  # below: Chroma killed the process
    pytest.fail(
        f"in twelve attempts no damage showed as {symptom}: does Chroma do it no longer, or `check` not see it?"
    )


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage(tmp_path_factory.mktemp("lost"), TAKING_TURNS, "found.missing and not found.unanswered")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage(tmp_path_factory.mktemp("mixed"), DELETING, "found.unanswered")


def fresh_look(path: Path) -> str:
    """What a process that has seen nothing finds: how many passages, and which are not their own nearest neighbour."""
    script = """
        import sys
        import chromadb
        from tests.core.test_health import vectors_of

        collection = chromadb.PersistentClient(sys.argv[1]).get_collection("passages", embedding_function=None)
        rows = collection.get(include=["documents", "metadatas"])
        assert [metadata["number"] for metadata in rows["metadatas"]] == rows["documents"]
        found = collection.query(query_embeddings=vectors_of(rows["documents"]), n_results=1, include=["distances"])
        alone = sum(ids == [id_] and distances[0] < 1e-5
                    for id_, ids, distances in zip(rows["ids"], found["ids"], found["distances"]))
        print(len(rows["ids"]), alone)
    """
    return run_python(script, str(path), warnings="ignore", forked=True).strip()


@pytest.mark.slow
def test_lost_vectors_are_found_and_only_they_are_encoded_again(lost: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lost, tmp_path / "copy"))
    assert fresh_look(path) != "3000 3000"  # Chroma has lost some, else this tests nothing
    encoder = RandomEncoder()
    with ChromaIndex(encoder, path=path) as index:
        found = index.check(samples=0)
        assert found.count == 3000
        assert 0 < len(found.missing) < 3000
        assert (found.doubled, found.unanswered, found.ok) == ((), False, False)
        assert f"no query returns {len(found.missing)} passages ('{found.missing[0]}'" in str(found)
        encoder.documents.clear()
        report = index.repair(samples=0)
        assert (report.encoded, report.rebuilt, report.after.ok) == (len(found.missing), False, True)
    assert fresh_look(path) == "3000 3000"


@pytest.mark.slow
def test_a_mixed_up_index_is_made_anew(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise TypeError("a bug")

    path = Path(shutil.copytree(mixed, tmp_path / "copy"))
    with ChromaIndex(RandomEncoder(), path=path) as index:
        handle_before = index.collection.handle.id
        found = index.check()
        assert found.unanswered
        assert "Chroma fails at queries" in str(found)
        with monkeypatch.context() as patch:
            patch.setattr(RandomEncoder, "encode_documents", fail)
            with pytest.raises(TypeError, match="a bug"):
                index.repair(samples=0)
        report = index.repair()
        assert (report.rebuilt, report.encoded) == (True, 1750)
        assert report.after.ok, str(report.after)
        assert index.collection.handle.id != handle_before
        assert index.retrieve("2999", k=1)[0].passage == Passage("2999", "2999", {"number": "2999"})
        index.add([Passage("new", "new")])
        assert [one.name for one in index.collection.client.list_collections()] == ["passages"]
        index.delete(["new"])
    assert fresh_look(path) == "1750 1750"
    with ChromaIndex(RandomEncoder(), path=path) as index:  # and the metric and the settings are what they were
        assert index.collection.handle.configuration_json["hnsw"]["space"] == "cosine"


@pytest.mark.slow
def test_vectors_of_other_texts_are_found_by_encoding_again(tmp_path: Path) -> None:
    path = damage(tmp_path, AT_RANDOM, "found.wrong")
    with ChromaIndex(RandomEncoder(), path=path, assume_compatible=True) as index:
        found = index.check(samples=None)
        assert found.wrong
        assert "another one than the encoder's" in str(found)
        assert index.repair().after.ok
        assert index.check(samples=None).ok
        count = index.count()
    assert fresh_look(path) == f"{count} {count}"


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("at", ["filled half", "complete", "old one renamed", "old one still there"])
def test_killed_in_a_rebuilding(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    path = Path(shutil.copytree(mixed, tmp_path / "copy"))
    encoder = RandomEncoder()

    def after(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > count:
                raise Killed
            return function(*arguments, **options)

        return counting

    with monkeypatch.context() as patch, ChromaIndex(encoder, path=path) as index:
        if at == "filled half":
            patch.setattr(repairing, "_copy", after(1, repairing._copy))
        elif at == "complete":
            patch.setattr(chromadb.Collection, "modify", after(1, chromadb.Collection.modify))
        elif at == "old one still there":  # three are looked for first
            patch.setattr(repairing, "drop_collection", after(3, repairing.drop_collection))
        else:
            patch.setattr(repairing, "finish_rebuilding", after(0, repairing.finish_rebuilding))
        with pytest.raises(Killed):
            index.repair()
    with ChromaIndex(encoder, path=path) as index:
        assert index.count() == 1750
        assert index.repair().after.ok
        names = {one.name for one in index.collection.client.list_collections()}
        assert names <= {"passages", *rebuilding_names("passages")}
        if at == "old one still there":
            repairing._rebuild(index.collection, encoder, lambda record: record.text, show_progress=False)
            assert index.count() == 1750
            assert [one.name for one in index.collection.client.list_collections()] == ["passages"]
    assert fresh_look(path) == "1750 1750"


@pytest.mark.slow
def test_a_directory_that_chroma_cannot_read_is_recovered(lost: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lost, tmp_path / "copy"))
    folders = [place for place in path.iterdir() if (place / "header.bin").exists()]
    for file in folders[0].iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(RetrieveRerankError, match=r"texts are all there: ChromaIndex\.recover"):
        ChromaIndex(RandomEncoder(), path=path).check()
    script = """
        import sys
        from retrieve_rerank import ChromaIndex
        from tests.core.test_health import RandomEncoder

        report = ChromaIndex.recover(RandomEncoder(), path=sys.argv[1])
        print(report.after)
    """
    assert "3000 passages, every one can be found" in run_python(script, str(path), warnings="ignore", forked=True)
    assert fresh_look(path) == "3000 3000"
    assert not list(path.glob("*.damaged"))


def test_a_recovery_that_fails_leaves_the_vectors(tmp_path: Path) -> None:
    """A wrong encoder is refused only when the index is open."""
    with ChromaIndex(RandomEncoder(), path=tmp_path) as index:
        index.add(passages(*map(str, range(1100))))  # so many that Chroma writes its files
    with pytest.raises(IndexMismatchError):
        ChromaIndex.recover(LetterEncoder(fingerprint={"model": "other"}), path=tmp_path)
    assert not list(tmp_path.glob("*.damaged"))
    with ChromaIndex(RandomEncoder(), path=tmp_path) as index:
        assert index.check(samples=0).ok


def test_what_is_written_during_a_rebuilding_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def rebuild(index: ChromaIndex, encoder: LetterEncoder) -> None:
        repairing._rebuild(index.collection, encoder, lambda record: record.text, show_progress=False)

    def no_add(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a request to a server that adds is not divided, and may be too large")

    class Slow(LetterEncoder):
        def encode_documents(self, texts: Sequence[str]) -> Any:
            index.collection.write([Record("1", "new", {})], super().encode_documents(["new"]))
            return super().encode_documents(texts)

    monkeypatch.setattr(chromadb.Collection, "add", no_add)
    with ChromaIndex(LetterEncoder()) as index:
        index.add(passages("a", "b", "c"))
        index.retrieve("a")
        with pytest.raises(RetrieveRerankError, match="changed while it was repaired"):
            rebuild(index, Slow())
        assert index.get(["1"]) == [Passage("1", "new")]
        rebuild(index, LetterEncoder())
        assert index.check().ok
        live = ChromaCollection("ignored", handle=index.collection.handle)
        with pytest.raises(InvalidInputError, match=r"cannot be made anew.*open it by its directory or with a Chroma"):
            repairing._rebuild(live, LetterEncoder(), lambda record: record.text, show_progress=False)
        with pytest.raises(InvalidInputError, match="cannot be deleted: open it by its directory"):
            live.drop()


def test_a_write_of_another_thread_during_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChromaIndex(LetterEncoder()) as index:
        index.add(passages("a", "b"))
        index.retrieve("a")

        def written() -> float:
            index.collection._counted = None  # as a write leaves it
            return 0.0

        monkeypatch.setattr(collection_module, "time", SimpleNamespace(monotonic=written))
        assert len(index.retrieve("a")) == 2


def test_there_must_be_an_index_to_recover(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no Chroma index in"):
        ChromaIndex.recover(LetterEncoder(), path=tmp_path)
    ChromaIndex(LetterEncoder(), path=tmp_path).close()
    with pytest.raises(InvalidInputError, match="there is no collection 'other'"):
        ChromaIndex.recover(LetterEncoder(), "other", path=tmp_path)


# Never a false alarm


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["a"],
        ["the same"] * 700,  # equal vectors: only some of them come up in a small search
        ["a" * length for length in range(1, 400)],  # in dot space the long ones are nearest to everything
        ["", "abc", ""],
    ],
    ids=["none", "one", "equal", "long and short", "empty"],
)
def test_a_sound_index_is_never_called_damaged(metric: str, texts: list[str]) -> None:
    with ChromaIndex(LetterEncoder(metric)) as index:
        index.add(passages(*texts))
        found = index.check(samples=None)
        assert found.ok, str(found)
        assert (found.count, found.encoded) == (len(texts), len(texts))
        assert index.repair().encoded == 0


def test_a_sound_index_that_was_changed_much_is_never_called_damaged(tmp_path: Path) -> None:
    with ChromaIndex(RandomEncoder(), path=tmp_path) as index:
        for turn in range(4):
            index.add(Passage(str(number), f"{number * (turn + 1)}") for number in range(1500))
            index.delete([str(number) for number in range(turn, 1500, 3)])
        assert index.check().ok


def test_a_zero_vector_that_the_encoder_makes_is_no_damage() -> None:
    class Zero(LetterEncoder):
        def _encode(self, texts: Sequence[str]) -> Any:
            return super()._encode(texts) * np.array([[text != "zero"] for text in texts], np.float32)

    with ChromaIndex(Zero()) as index:
        index.add(passages("a", "zero", "b"))
        assert index.check(samples=1).ok
        index.collection.write([Record("0", "a", {})], [[0.0, 0.0, 0.0, 0.0]])  # and one that it does not make is
        found = index.check(samples=1)
        assert found.wrong == ("0",)
        assert index.repair().after.ok


# What is said, and what is not mended


def test_vectors_of_another_encoder_are_not_repaired() -> None:
    with ChromaIndex(LetterEncoder()) as index:
        records = [Record(str(number), "aaa", {}) for number in range(5)]
        index.collection.write(records, np.array([[0.0, 0.0, 5.0, number] for number in range(5)]))
        found = index.check()
        assert "this is not damage, but another encoder" in str(found)
        with pytest.raises(IndexMismatchError, match="another encoder"):
            index.repair()
        assert index.check() == found


def test_metadata_that_cannot_be_read_is_said_and_returned_as_it_is_stored() -> None:
    with ChromaIndex(LetterEncoder()) as index:
        index.add([Passage("good", "a", {"deep": {"x": 1}})])
        for id_, text in (("bad", "{not json"), ("list", "[1]")):
            index.collection.write([Record(id_, "b", {"_retrieve_rerank_json": text, "plain": 1})], [[1, 2, 3, 4]])
        found = index.check(samples=0)
        assert found.unreadable == ("bad", "list")
        assert "metadata cannot be read" in str(found)
        assert index.get(["bad"])[0].metadata == {"_retrieve_rerank_json": "{not json", "plain": 1}
        assert len(index.retrieve("a")) == 3
        assert index.repair(samples=0).after.unreadable == ("bad", "list")


@pytest.mark.parametrize("samples", [-1, 1.5, "all", True])
def test_samples_must_be_a_number(samples: Any) -> None:
    with (
        ChromaIndex(LetterEncoder()) as index,
        pytest.raises(InvalidInputError, match="samples must be"),
    ):
        index.check(samples=samples)


def test_a_collection_without_an_encoder_is_checked_for_what_can_be_known() -> None:
    from retrieve_rerank.indexes.health import check

    collection = ChromaCollection("bare")
    collection.write([Record("0", "a", {})], [[1.0, 2.0]])
    assert str(check(collection, None)) == "'bare': 1 passage, every one can be found"
    collection.close()


def test_strange_ids_do_not_break_the_message() -> None:
    with ChromaIndex(LetterEncoder()) as index:
        ids = ["\x1b[31mred", "x" * 5000, "\u202ereversed"]
        for id_ in ids:
            index.collection.write([Record(id_, "b", {"_retrieve_rerank_json": "{"})], [[1, 2, 3, 4]])
        said = str(index.check(samples=0))
        assert said.isprintable()
        assert len(said) < 600


@pytest.mark.parametrize("error", [TypeError("a bug"), httpx.ConnectError("the model server is down"), KeyError("x")])
def test_an_error_of_the_encoder_is_not_chromas(error: Exception) -> None:
    """A Chroma server that there is not was said to be down."""
    encoder = Broken()
    with ChromaIndex(encoder) as index:
        index.add(passages("aa", "ab"))

        def fail(_: Sequence[str]) -> Any:
            raise error

        encoder.answer = fail
        with pytest.raises(type(error)) as raised:
            index.check()
        assert raised.value is error
        with pytest.raises(type(error)):
            index.repair()
        encoder.answer = None
        assert index.check().ok
