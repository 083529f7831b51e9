"""The copies of Chroma's vector files: what a kill leaves is put right, and no second mishap spoils the copy."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import RetrieveRerankError
from retrieve_rerank.indexes.directory import Directory, restore_vectors, save_vectors

SEGMENT = "01234567-89ab-cdef-0123-456789abcdef"


def written(folder: Path, what: str) -> None:
    """Write a segment as Chroma does: the map last."""
    segment = folder / SEGMENT
    segment.mkdir(parents=True, exist_ok=True)
    (segment / "data_level0.bin").write_bytes(what.encode() * 100)
    (segment / "index_metadata.pickle").write_bytes(pickle.dumps({"of": what}))


def torn(folder: Path) -> None:
    """Write it as a process that is killed in the middle."""
    (folder / SEGMENT / "data_level0.bin").write_bytes(b"torn")
    map_ = folder / SEGMENT / "index_metadata.pickle"
    map_.write_bytes(map_.read_bytes()[:-4])


def found(folder: Path) -> str:
    """What a whole segment holds."""
    what = str(pickle.loads((folder / SEGMENT / "index_metadata.pickle").read_bytes())["of"])
    assert (folder / SEGMENT / "data_level0.bin").read_bytes() == what.encode() * 100
    return what


def test_copies_stay_for_a_second_kill(tmp_path: Path) -> None:
    """The first look after a kill makes Chroma write again."""
    shared, copies = Directory(tmp_path), tmp_path / "retrieve_rerank" / "checkpoint"
    written(tmp_path, "old")
    save_vectors(tmp_path, copies)
    for _ in range(2):
        torn(tmp_path)
        shared.mend()
        assert found(tmp_path) == "old"
    written(tmp_path, "new")  # killed after Chroma had ended: its log is cut, and the old copy would be too old
    shared.mend()
    torn(tmp_path)
    shared.mend()
    assert found(tmp_path) == "new"
    shared.hold("writer", 0.0)
    assert copies.exists()
    shared.let_go("writer", os.getpid())
    assert not copies.exists()


def test_who_leaves_while_another_thread_looks_has_left(tmp_path: Path) -> None:
    """The lock stayed with a process that only searched from then on."""
    written(tmp_path, "old")
    shared, looking, look_away = Directory(tmp_path), threading.Event(), threading.Event()

    def look() -> None:
        with shared.guarded():
            looking.set()
            look_away.wait(10)

    shared.hold("writer", 0.0)
    thread = threading.Thread(target=look)
    thread.start()
    looking.wait(10)
    shared.let_go("writer", os.getpid())
    look_away.set()
    thread.join()
    assert not shared._writer.held


def test_others_open_anew_only_where_something_was_put_back(tmp_path: Path) -> None:
    written(tmp_path, "old")
    copies = tmp_path / "copies"
    save_vectors(tmp_path, copies)
    assert not restore_vectors(tmp_path, copies)
    torn(tmp_path)
    assert restore_vectors(tmp_path, copies)
    assert not restore_vectors(tmp_path, copies)


def test_an_archive_that_gives_all_files_one_stamp_brings_nothing_old_back(tmp_path: Path) -> None:
    written(tmp_path, "old")
    copies = tmp_path / "copies"
    save_vectors(tmp_path, copies)
    written(tmp_path, "new")
    for file in tmp_path.rglob("*"):
        os.utime(file, (1.7e9, 1.7e9))
    assert not restore_vectors(tmp_path, copies)
    assert found(tmp_path) == "new"
    save_vectors(tmp_path, copies)
    torn(tmp_path)
    assert restore_vectors(tmp_path, copies)
    assert found(tmp_path) == "new"


def test_what_cannot_be_mended_at_once_is_mended_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the next try must not take the torn files for good ones and copy them."""
    shared, copies = Directory(tmp_path), tmp_path / "retrieve_rerank" / "checkpoint"
    written(tmp_path, "old")
    save_vectors(tmp_path, copies)
    torn(tmp_path)

    def full(source: Any, target: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", full)
        patch.setattr(shutil, "copyfile", full)
        for owner in ("first", "second"):
            with pytest.raises(RetrieveRerankError, match=r"cannot mend .*, which a killed writer left: .*No space"):
                shared.hold(owner, 0.0)
            assert not shared._writer.held
            assert copies.exists()
    shared.hold("first", 0.0)
    assert found(tmp_path) == "old"


def test_a_full_disk_keeps_nobody_from_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into its file is for information only, and deleting needs no room."""

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    shared = Directory(tmp_path)
    monkeypatch.setattr(os, "write", full)
    shared.hold("writer", 0.0)
    assert shared._writer.held
