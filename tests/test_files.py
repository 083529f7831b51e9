"""The one atomic writer: the old content or the new one, whatever happens."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieve_rerank._files import atomic_write, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits, links and pipes are as POSIX has them")


@contextmanager
def small_disk() -> Iterator[None]:
    """Let every file end after a hundred bytes, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_a_full_disk_leaves_the_old_file_and_says_what_was_to_be_written(
    tmp_path: Path, linked: bool, durable: bool
) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to("file")
    path = link if linked else file
    with small_disk(), pytest.raises(OSError, match=f"cannot write the list: File too large: '{path}'"):
        write_text("new " * 50, path, "the list", durable=durable)
    assert file.read_text() == "old"
    write_text("new " * 50, path, "the list", durable=durable)
    assert file.read_text() == "new " * 50
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_an_error_or_an_interrupt_within_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def write_half(error: BaseException) -> None:
        with atomic_write(file, "the list") as new:
            new.write_text("half")
            raise error

    for error in (KeyboardInterrupt(), ValueError("no"), OSError("the disk is full")):
        with pytest.raises(type(error)):
            write_half(error)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", [b"\xff\xfe caf\xe9", "é".encode() * 127, b"-", b".hidden"])
def test_any_name_of_a_file_will_do(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    write_text("\udcff", path)
    assert path.read_bytes() == b"\\udcff"


def test_links_are_followed_and_pipes_stay(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "second").symlink_to("third")
    (tmp_path / "first").symlink_to("far/second")
    write_text("new", tmp_path / "first")
    assert (tmp_path / "far" / "third").read_text() == "new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="cannot write the file"):
        write_text("new", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text("new", tmp_path / "pipe")
    reader.join(10)
    assert read == ["new"]
    assert (tmp_path / "pipe").is_fifo()


def test_what_stands_for_an_open_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as file:
        write_text("new", f"/dev/fd/{file.fileno()}")
        assert os.fstat(file.fileno()).st_ino == (tmp_path / "out").stat().st_ino
        assert file.read() == "new"


def test_a_missing_folder_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot write the file"):
        write_text("new", tmp_path / "missing" / "file")
    with pytest.raises(OSError, match="cannot write the file"):
        write_text("new", tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o440)
    with pytest.raises(PermissionError, match="cannot write the file"):
        write_text("new", file)
    assert file.read_text() == "old"
