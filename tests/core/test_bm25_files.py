"""An index on disk: all of it comes back, whoever opens it, and a damaged one says so."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import Stemmer

from retrieve_rerank import BM25Index, Hit, IndexLockedError, IndexMismatchError, InvalidInputError, Passage
from retrieve_rerank._files import locked
from retrieve_rerank.indexes import bm25_files
from retrieve_rerank.indexes.records import to_record
from retrieve_rerank.indexes.words import Analyzer
from tests.core.stubs import passages, run_python

STORED = [
    Passage("1", "alpha alpha\nbeta", {"n": 1, "deep": {"a": [None]}}),
    Passage("../2", "beta gämma 漢字", {"n": 2.5}),
    Passage("3", ""),
    Passage("4", "alpha gämma running"),
]
QUERIES = ["alpha", "beta gämma", "runs", "unknown"]


def answers(index: BM25Index) -> list[list[Hit]]:
    return index.retrieve_many(QUERIES)


def generations(path: Path) -> list[Path]:
    return sorted(path.glob("generation-*"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with BM25Index(path=tmp_path) as index:
        index.add(STORED)
    return tmp_path


def test_all_of_it_comes_back(saved: Path) -> None:
    memory = BM25Index()
    memory.add(STORED)
    with BM25Index(path=saved) as index:
        assert index.count() == 4
        assert index.get(["4", "3", "../2", "1"]) == STORED[::-1]
        assert answers(index) == answers(memory)
        assert index.retrieve("alpha", where={"n": 1})[0].passage == STORED[0]
        assert index.add(STORED).unchanged == 4


def test_what_is_read_is_mapped_and_not_loaded(saved: Path) -> None:
    with BM25Index(path=saved) as index:
        assert len(answers(index)[0]) == 2
        content = index._content
        assert content.weights is not None
        for array in (
            content.words,
            content.lengths,
            *(content.weights[name] for name in ("data", "indices", "indptr")),
        ):
            base: Any = array
            while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
                base = base.base
            assert isinstance(base, np.memmap)
            assert not array.flags.writeable
        assert index._numbers is None  # ids are looked at when one is asked for


def test_changes_after_loading(saved: Path) -> None:
    with BM25Index(path=saved) as index:
        index.add([Passage("1", "delta"), Passage("5", "alpha alpha delta")])
        index.delete(["4"])
        before = index.retrieve_many([*QUERIES, "delta"])
        index.save()
        assert index.retrieve_many([*QUERIES, "delta"]) == before
        index.add([Passage("6", "delta delta")])
        index.delete(["6"])
    memory = BM25Index()
    memory.add([STORED[1], STORED[2], Passage("1", "delta"), Passage("5", "alpha alpha delta")])
    with BM25Index(path=saved) as index:
        assert index.count() == 4
        assert index.retrieve_many([*QUERIES, "delta"]) == memory.retrieve_many([*QUERIES, "delta"]) == before
    assert len(generations(saved)) == 1
    stems = json.loads((generations(saved)[0] / "vocab.index.json").read_text(encoding="utf-8"))
    assert "run" not in stems  # a word that went with its passage


def test_saving_nothing_new_writes_nothing(saved: Path) -> None:
    before = generations(saved)
    with BM25Index(path=saved) as index:
        index.add(STORED)
        index.delete(["no such id"])
        index.save()
    assert generations(saved) == before


def test_a_folder_of_the_users_stays(tmp_path: Path) -> None:
    """Whatever began as ours do was deleted at the first save."""
    for name in ("generation-gpt4", "generation-0123"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "answers.jsonl").write_text("precious")
    for _ in range(2):
        with BM25Index(path=tmp_path) as index:
            index.add([Passage(str(index.count()), "alpha")])
    assert sorted(path.parent.name for path in tmp_path.glob("*/answers.jsonl")) == [
        "generation-0123",
        "generation-gpt4",
    ]
    assert len(list(tmp_path.glob("generation-*"))) == 3


def test_an_object_that_is_let_go_of_is_saved(tmp_path: Path) -> None:
    index = BM25Index(path=tmp_path)
    index.add(STORED)
    del index
    gc.collect()
    with BM25Index(path=tmp_path) as again:
        assert again.count() == 4


def test_an_error_in_the_block_loses_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Passage]:
        yield from STORED
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), BM25Index(path=tmp_path) as index:
        index.add(failing(), batch_size=4)
    with BM25Index(path=tmp_path) as index:
        assert index.count() == 4


def test_what_one_saves_the_others_see(saved: Path) -> None:
    with BM25Index(path=saved) as writer, BM25Index(path=f"{saved}/") as reader:
        assert answers(reader) == answers(writer)
        rows = reader._content.rows
        writer.add([Passage("5", "alpha alpha alpha alpha alpha")])
        assert reader.count() == 4
        writer.save()
        assert reader.count() == 5
        assert answers(reader) == answers(writer)
        assert reader.get(["5"])[0].text.startswith("alpha")
        # Who still reads what is gone from the directory, reads on.
        assert [rows[number].id for number in range(4)] == ["1", "../2", "3", "4"]
        reader.add([Passage("6", "beta")])  # on top of what the other saved
        reader.save()
        assert writer.count() == 6


def test_of_two_writers_the_first_wins_and_the_other_is_told(saved: Path) -> None:
    first, second = BM25Index(path=saved), BM25Index(path=saved)
    first.add([Passage("first", "alpha")])
    second.add([Passage("second", "alpha")])
    first.save()
    with pytest.raises(IndexMismatchError, match="saved by another process or object"):
        second.save()
    with pytest.raises(IndexMismatchError, match=r"saved by another.*Open the index again, in another object"):
        second.close()
    first.close()
    with BM25Index(path=saved) as index:
        index.add(second.get(["second"]))  # what the other has is there to be taken over
    del second
    gc.collect()  # and says nothing more
    with BM25Index(path=saved) as index:
        assert {passage.id for passage in index.get(["first", "second"])} == {"first", "second"}


def test_a_folder_that_vanished_is_no_reason_to_forget(saved: Path) -> None:
    with BM25Index(path=saved) as index:
        (saved / "index.json").rename(saved / "elsewhere.json")
        assert index.count() == 4
        (saved / "elsewhere.json").rename(saved / "index.json")


def test_the_language_must_be_the_same(saved: Path) -> None:
    for name in ("english", "EN"):
        BM25Index(path=saved, language=name).close()
    for language in ("de", None):
        with pytest.raises(IndexMismatchError, match=r"cut with language 'english'.*language='english'"):
            BM25Index(path=saved, language=language)
    with pytest.raises(IndexMismatchError, match="language 'english'"):
        BM25Index(path=saved, tokenizer=str.split)


def test_a_tokenizer_must_be_given_again(tmp_path: Path) -> None:
    with BM25Index(path=tmp_path, tokenizer=str.split) as index:
        index.add(passages("The The a"))
    with pytest.raises(IndexMismatchError, match="tokenizer"):
        BM25Index(path=tmp_path, language=None)
    with BM25Index(path=tmp_path, tokenizer=str.split) as index:
        assert len(index.retrieve("The")) == 1


def test_another_version_of_the_stemmer_cuts_the_texts_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """Keeps the first two letters."""

        def __init__(self, language: str) -> None:
            self.language = language

        def stemWord(self, word: str) -> str:
            return word[:2]

    monkeypatch.setattr(Stemmer, "Stemmer", Other)
    monkeypatch.setattr(Stemmer, "version", lambda: "99")
    with pytest.warns(UserWarning, match="cut by another version of retrieve-rerank"):
        index = BM25Index(path=saved)
    with index:
        assert {hit.passage.id for hit in index.retrieve("alabama")} == {"1", "4"}
        index.add([Passage("5", "alphabet")])
    with BM25Index(path=saved) as index:
        assert {hit.passage.id for hit in index.retrieve("alabama")} == {"1", "4", "5"}


@pytest.mark.parametrize("tokenizer", [None, str.split])
def test_an_index_of_the_format_before_is_read_and_cut_anew(tmp_path: Path, tokenizer: Any) -> None:
    """It had a file for each of ids, texts and metadata, and words of two letters or more."""
    folder = tmp_path / f"generation-{'0' * 32}"
    folder.mkdir()
    metadata = [json.dumps(dict(to_record(passage).metadata)) if passage.metadata else "" for passage in STORED]
    for name, column in (
        ("ids", [passage.id for passage in STORED]),
        ("texts", [passage.text for passage in STORED]),
        ("metadata", metadata),
    ):
        raw = [text.encode() for text in column]
        (folder / f"{name}.bin").write_bytes(b"".join(raw))
        np.save(folder / f"{name}.npy", np.cumsum([len(text) for text in raw], dtype=np.int64))
    words = {"language": "english", "cut": "2"} if tokenizer is None else Analyzer(None, tokenizer).facts
    pointer = {"format": 1, "generation": folder.name, "words": words, "k1": 1.2, "b": 0.5, "files": {}}
    (tmp_path / "index.json").write_text(json.dumps(pointer), encoding="utf-8")
    memory = BM25Index(k1=1.2, b=0.5, tokenizer=tokenizer)
    memory.add(STORED)
    for _ in range(2):
        with pytest.warns(UserWarning, match="cut anew, at every opening until it is saved"):
            index = BM25Index(path=tmp_path, tokenizer=tokenizer)
        assert answers(index) == answers(memory)
        assert index.get(["4", "../2", "1"]) == [STORED[3], STORED[1], STORED[0]]
    index.save()
    with BM25Index(path=tmp_path, tokenizer=tokenizer) as again:
        assert answers(again) == answers(memory)
    assert len(generations(tmp_path)) == 1


def test_the_formula_of_the_index_stays_unless_asked_otherwise(tmp_path: Path) -> None:
    with BM25Index(path=tmp_path, k1=0.9, b=0.4) as index:
        index.add(STORED)
        before = answers(index)
    with BM25Index(path=tmp_path) as index:
        assert answers(index) == before
        index.clear()
        index.add(STORED)
        assert answers(index) == before
    memory = BM25Index(k1=2.0)
    memory.add(STORED)
    with BM25Index(path=tmp_path, k1=2.0, b=0.75) as index:
        assert answers(index) == answers(memory)
    with BM25Index(path=tmp_path) as index:
        assert answers(index) == before  # asking is not changing


def test_a_newer_format_is_refused(saved: Path) -> None:
    pointer = json.loads((saved / "index.json").read_text(encoding="utf-8"))
    (saved / "index.json").write_text(json.dumps(pointer | {"format": 3}), encoding="utf-8")
    with pytest.raises(IndexMismatchError, match="format 3, written by a newer retrieve-rerank"):
        BM25Index(path=saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "1", "generation": "generation-x"}',
        '{"format": 1, "generation": "../elsewhere"}',
        '{"format": 1, "generation": "generation-/../../elsewhere"}',
        '{"format": 1, "generation": "generation-missing"}',
        '{"format": 1, "generation": "generation-missing", "files": {"ids.bin": 5}}',
        '{"format": 1, "generation": null}',
    ],
)
def test_an_index_json_that_cannot_be_one(saved: Path, text: str) -> None:
    (saved / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"is damaged: .*Restore the directory"):
        BM25Index(path=saved)
    assert (saved / "index.json").read_text(encoding="utf-8") == text


ARRAYS = ["data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "words.npy", "lengths.npy", "ends.npy"]
FILES = [*ARRAYS, "rows.bin", "vocab.index.json", "params.index.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_a_file_that_is_not_what_was_written(saved: Path, name: str, damage: str) -> None:
    file = generations(saved)[0] / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content + b" ")
    with pytest.raises(InvalidInputError, match="is damaged"):
        BM25Index(path=saved)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".bin")])
def test_a_file_of_the_right_size_that_cannot_be_read(saved: Path, name: str) -> None:
    file = generations(saved)[0] / name
    file.write_bytes(b"\x80" * file.stat().st_size)
    with pytest.raises(InvalidInputError, match="is damaged"):
        BM25Index(path=saved)


@pytest.mark.parametrize("name", ARRAYS[1:])
@pytest.mark.parametrize("made", ["floats", "two dimensions", "falling"])
def test_arrays_that_no_index_has(saved: Path, name: str, made: str) -> None:
    """A stranger's folder, whose sizes are as index.json says."""
    if made == "falling" and name in ("indices.csc.index.npy", "words.npy"):
        return  # any order of these is possible
    file = generations(saved)[0] / name
    array = np.load(file)
    np.save(file, {"floats": array.astype("f8"), "two dimensions": array[:, None], "falling": -array - 9}[made])
    pointer = json.loads((saved / "index.json").read_text(encoding="utf-8"))
    pointer["files"][name] = file.stat().st_size
    (saved / "index.json").write_text(json.dumps(pointer), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="is damaged"):
        BM25Index(path=saved)


def test_passages_that_cannot_be_read_say_so(saved: Path) -> None:
    file = generations(saved)[0] / "rows.bin"
    file.write_bytes(b"\x80" * file.stat().st_size)
    with pytest.raises(InvalidInputError, match=r"cannot be read from rows\.bin.*Restore the directory"):
        BM25Index(path=saved).get(["1"])


def test_an_array_with_objects_in_it_is_never_unpickled(saved: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(saved / "sprung"),)

    file = generations(saved)[0] / "data.csc.index.npy"
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    pointer = json.loads((saved / "index.json").read_text(encoding="utf-8"))
    pointer["files"]["data.csc.index.npy"] = file.stat().st_size
    (saved / "index.json").write_text(json.dumps(pointer), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="is damaged"):
        BM25Index(path=saved)
    assert not (saved / "sprung").exists()


def test_what_an_interrupted_save_left_goes_with_the_next(saved: Path) -> None:
    left = saved / "generation-00000000000000000000000000000000"
    left.mkdir()
    (left / "rows.bin").write_bytes(b"half")
    with BM25Index(path=saved) as index:
        assert index.count() == 4
        assert left.exists()  # reading writes nothing
        index.add([Passage("5", "alpha")])
    assert len(generations(saved)) == 1


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Set [0] to n: the n-th step of a save that touches the disk fails, and so on. Counts down to it."""
    left = [10**9]

    def stepwise(name: str, call: Any) -> None:
        def step(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return call(*arguments, **options)

        monkeypatch.setattr(bm25_files.os if name in ("fsync", "replace") else np, name, step)

    stepwise("fsync", os.fsync)
    stepwise("replace", os.replace)
    stepwise("save", np.save)
    yield left
    left[0] = 10**9


def test_a_save_that_fails_at_any_step_leaves_the_old_index(saved: Path, failing: list[int]) -> None:
    old = BM25Index(path=saved)
    index = BM25Index(path=saved)
    index.add([Passage("5", "alpha")])
    steps = 0
    while True:
        failing[0] = steps
        try:
            index.save()
        except InvalidInputError as error:
            assert "No space left" in str(error)  # noqa: PT017 - the loop goes on
        else:
            break
        finally:
            failing[0] = 10**9
        with BM25Index(path=saved) as read:
            assert answers(read) == answers(old)
            assert read.count() == 4
        assert len(generations(saved)) == 1
        steps += 1
    assert steps > 15
    with BM25Index(path=saved) as read:
        assert read.count() == 5


def test_two_that_save_take_turns(saved: Path) -> None:
    with locked(saved / "index.lock"):
        index = BM25Index(path=saved)
        index.add([Passage("5", "alpha")])
        thread = threading.Thread(target=index.save)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        with BM25Index(path=saved) as read:
            assert read.count() == 4  # reading waits for nobody
    thread.join()
    assert index.count() == 5
    lock = saved / "index.lock"
    with locked(lock), pytest.raises(IndexLockedError, match="being written by another"), locked(lock, seconds=0.05):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_saves_nothing_of_its_parents(tmp_path: Path) -> None:
    script = """
        import os, sys
        from retrieve_rerank import BM25Index, Passage
        index = BM25Index(path=sys.argv[1])
        index.add([Passage("1", "alpha")])
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        print(os.path.exists(os.path.join(sys.argv[1], "index.json")))
    """
    assert run_python(script, str(tmp_path)) == "False\n"
