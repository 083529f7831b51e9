"""Saving that fails, or may not happen: nothing is lost silently, and the index goes on."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest

from retrieve_rerank import BM25Index, IndexLockedError, IndexMismatchError, InvalidInputError, Passage, _files
from retrieve_rerank.indexes import bm25_files
from tests.core.stubs import run_python

STORED = [Passage(str(number), f"alpha word{number}") for number in range(5)]
NEW = Passage("new", "alpha beta")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with BM25Index(path=tmp_path) as index:
        index.add(STORED)
    return tmp_path


@contextmanager
def full_disk() -> Iterator[None]:
    def fails(file: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25_files.os, "fsync", fails)
        yield


def let_go(indexes: list[BM25Index]) -> None:
    indexes.clear()
    gc.collect()


def ids(path: Path) -> set[str]:
    with BM25Index(path=path) as index:
        return {passage.id for passage in index.get([*(passage.id for passage in STORED), "new", "other", "late"])}


# At the end of the program and of the object


END = """
    import json, sys, warnings
    from pathlib import Path
    from retrieve_rerank import BM25Index, Passage

    indexes = [BM25Index(path=path) for path in sys.argv[2:]]
    for index in indexes:
        index.add([Passage("new", "alpha")])
    for path in sys.argv[2:4]:  # which makes two that can no longer be saved
        with BM25Index(path=path) as other:
            other.add([Passage("other", "alpha")])

    def note(message, category, *rest):
        with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([category.__name__, str(message)]) + "\\n")
    warnings.showwarning = note
"""


@pytest.mark.parametrize("warnings", ["always", "error"])
def test_at_the_end_of_the_program_each_index_is_saved(tmp_path: Path, warnings: str) -> None:
    paths = [tmp_path / f"index{number}" for number in range(5)]
    run_python(END, str(tmp_path / "warned"), *map(str, paths), warnings=warnings)
    assert [ids(path) for path in paths] == [{"other"}] * 2 + [{"new"}] * 3
    if warnings == "always":
        lines = (tmp_path / "warned").read_text(encoding="utf-8").splitlines()
        warned = sorted(json.loads(line) for line in lines)
        assert [category for category, _ in warned] == ["RuntimeWarning"] * 2
        for path, (_, message) in zip(paths, warned, strict=False):
            assert message.startswith(f"the last changes to the index in {str(path)!r} are lost: ")
            assert "saved by another process or object" in message


def test_an_object_that_is_let_go_of_warns_of_what_it_cannot_save(saved: Path) -> None:
    indexes = [BM25Index(path=saved)]
    indexes[0].add([NEW])
    with full_disk(), pytest.warns(RuntimeWarning, match=r"last changes to .* are lost: .*No space left") as warned:
        let_go(indexes)
    assert [warning.filename for warning in warned] == [__file__]
    assert str(saved) in str(warned[0].message)
    assert ids(saved) == {passage.id for passage in STORED}


def test_changes_after_the_telling_are_told_of(saved: Path) -> None:
    indexes = [BM25Index(path=saved)]
    indexes[0].add([NEW])
    with BM25Index(path=saved) as other:
        other.add([Passage("other", "alpha")])
    with pytest.raises(IndexMismatchError):
        indexes[0].save()
    indexes[0].add([Passage("late", "alpha")])
    with pytest.warns(RuntimeWarning, match=r"are lost: .*saved by another"):
        let_go(indexes)


# After the switch to the new files


def test_a_save_whose_tidying_fails_is_a_save(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Any, current: str) -> None:
        raise PermissionError(13, "Permission denied")

    index = BM25Index(path=saved)
    index.add([NEW])
    with monkeypatch.context() as patch:
        patch.setattr(bm25_files.IndexFolder, "_tidy", fails)
        index.save()
    assert "new" in ids(saved)
    index.add([Passage("late", "alpha")])
    index.save()  # its own save is no other's
    assert {"new", "late"} <= ids(saved)
    assert len(list(saved.glob("generation-*"))) == 1


@pytest.mark.parametrize("step", ["stamp", "unlock"])
def test_nothing_after_the_switch_undoes_it(saved: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    index = BM25Index(path=saved)
    index.add([NEW])
    failed = []

    def once(call: Any) -> Any:
        def step(*arguments: Any) -> Any:
            # Only after the switch, and only once.
            is_new = json.loads((saved / "index.json").read_bytes())["generation"] != before
            if is_new and not failed:
                failed.append(1)
                raise PermissionError(13, "Permission denied")
            return call(*arguments)

        return step

    before = json.loads((saved / "index.json").read_bytes())["generation"]
    with monkeypatch.context() as patch:
        if step == "stamp":
            patch.setattr(bm25_files.IndexFolder, "_stamp", once(bm25_files.IndexFolder._stamp))
        else:
            patch.setattr(filelock.FileLock, "_release", once(filelock.FileLock._release))
        index.save()
    assert failed
    assert "new" in ids(saved)
    index.delete(["new"])
    index.close()
    assert "new" not in ids(saved)


# Before it


def test_a_save_that_failed_does_not_stop_the_index_while_its_error_is_held(saved: Path) -> None:
    index = BM25Index(path=saved)
    index.delete(["1"])
    with full_disk(), pytest.raises(InvalidInputError) as kept:
        index.save()
    assert index.add([NEW]).added == 1
    assert {hit.passage.id for hit in index.retrieve("alpha")} == {"0", "2", "3", "4", "new"}
    index.close()
    assert kept.traceback
    assert ids(saved) == {"0", "2", "3", "4", "new"}


def test_a_close_that_cannot_save_leaves_the_index_open(saved: Path) -> None:
    index = BM25Index(path=saved)
    index.add([NEW])
    index.delete(["1"])
    with full_disk(), pytest.raises(InvalidInputError, match="No space left"):
        index.close()
    assert index.count() == 5
    assert len(index.retrieve("beta")) == 1
    index.close()
    assert ids(saved) == {"0", "2", "3", "4", "new"}
    index.close()


def test_a_close_that_waits_in_vain_for_the_lock(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = BM25Index(path=saved)
    index.add([NEW])
    with monkeypatch.context() as patch, _files.locked(saved / "index.lock"):
        patch.setattr(bm25_files, "locked", lambda path: _files.locked(path, seconds=0.05))
        with pytest.raises(IndexLockedError):
            index.close()
    index.close()
    assert "new" in ids(saved)


def test_a_directory_that_comes_back(saved: Path) -> None:
    index = BM25Index(path=saved)
    index.add([NEW])
    shutil.move(saved, f"{saved}-away")
    with pytest.raises(InvalidInputError, match="cannot save"):
        index.close()
    shutil.move(f"{saved}-away", saved)
    index.close()
    assert "new" in ids(saved)


def test_an_index_whose_index_json_is_gone_is_damaged_and_kept(saved: Path) -> None:
    """It was opened as an empty one, and the next save removed the passages."""
    (saved / "index.json").rename(saved / "away.json")
    with pytest.raises(InvalidInputError, match=r"is damaged: index\.json is missing"):
        BM25Index(path=saved)
    (saved / "away.json").rename(saved / "index.json")
    assert len(ids(saved)) == len(STORED)


def test_what_an_interrupted_first_save_left_is_no_index(saved: Path) -> None:
    (folder,) = saved.glob("generation-*")
    (folder / "saved").unlink()
    (saved / "index.json").unlink()
    assert ids(saved) == set()


def test_after_a_directory_was_deleted_all_can_be_saved_in_a_new_one(saved: Path) -> None:
    with BM25Index(path=saved) as index:
        index.add([NEW])
        shutil.rmtree(saved)
        with pytest.raises(InvalidInputError, match=r"The directory is gone; bring it back, or make an empty one"):
            index.save()
        saved.mkdir()
    assert ids(saved) == {"new", *(passage.id for passage in STORED)}


# In a forked child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("path", [True, False])
def test_a_forked_child_may_read_and_not_change(tmp_path: Path, path: bool) -> None:
    script = """
        import os, sys, warnings
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        from retrieve_rerank import BM25Index, Passage, RetrieveRerankError
        index = BM25Index(path=sys.argv[1] or None)
        index.add([Passage("1", "alpha")])
        child = os.fork()
        if child == 0:
            print(index.count(), len(index.retrieve("alpha")), index.get(["1"])[0].text)
            calls = lambda: index.add([Passage("2", "beta")]), lambda: index.delete(["1"]), index.clear, index.save
            for call in calls:
                try:
                    call()
                except RetrieveRerankError as error:
                    print(error)
            index.close()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        index.add([Passage("2", "beta")])
        print(index.count())
    """
    first, *messages, last = run_python(script, str(tmp_path) if path else "", warnings="ignore").splitlines()
    assert (first, last) == ("1 1 alpha", "2")
    assert len(messages) == 4
    assert all("forked child" in message and "get_context('spawn')" in message for message in messages)
    if path:
        with BM25Index(path=tmp_path) as index:
            assert index.count() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_while_another_thread_uses_the_index_does_not_hang() -> None:
    script = """
        import os, signal, threading
        from retrieve_rerank import BM25Index, Passage, RetrieveRerankError
        index = BM25Index()
        index.add([Passage("1", "alpha")])
        held, done = threading.Event(), threading.Event()
        def use():
            with index._lock:
                held.set()
                done.wait()
        thread = threading.Thread(target=use)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            for call in (lambda: index.retrieve("alpha"), lambda: index.get(["1"]), index.count):
                try:
                    call()
                except RetrieveRerankError as error:
                    print(error, flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        done.set()
        thread.join()
        print(status, index.count())
    """
    *messages, last = run_python(script, warnings="ignore", forked=True).splitlines()
    assert last == "0 1"
    assert len(messages) == 3
    assert all("was in use by another thread" in message for message in messages)
