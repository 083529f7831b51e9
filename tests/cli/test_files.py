"""Which files are found, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retrieve_rerank import InvalidInputError
from retrieve_rerank.cli.files import Filters, find, read_bytes


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_files_are_called_by_their_folder(tmp_path: Path) -> None:
    put(tmp_path, "docs/a.md", "docs/sub/b c.TXT", "docs/ü.html", "docs/x.xls", "docs/y.xls", "docs/Makefile")
    put(tmp_path, "docs/.git/config.md", "docs/.hidden.md", "docs/made/inside.md")
    found = find([tmp_path / "docs"], {}, tmp_path / "docs" / "made")
    assert list(found.files) == ["docs/a.md", "docs/ü.html", "docs/sub/b c.TXT"]
    assert found.left_out == {".xls": 2, "without an ending": 1}
    assert found.failed == {}
    assert found.roots == {"docs": tmp_path / "docs"}


def test_a_file_is_called_as_its_folder_would_call_it(tmp_path: Path) -> None:
    put(tmp_path, "docs/a.md", "docs/NOTES")
    found = find([tmp_path / "docs" / "NOTES", tmp_path / "docs"], {}, tmp_path / "made")
    assert set(found.files) == {"docs/NOTES", "docs/a.md"}
    inner = find([tmp_path / "docs" / "a.md"], {"all": tmp_path}, tmp_path / "made")
    assert set(inner.files) == {"all/docs/a.md"}


def test_links_do_not_lead_astray(tmp_path: Path) -> None:
    put(tmp_path, "docs/a.md", "elsewhere/b.md")
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs")
    (tmp_path / "docs" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "docs" / "b.md").symlink_to(tmp_path / "elsewhere" / "b.md")
    (tmp_path / "docs" / "broken.md").symlink_to(tmp_path / "nowhere.md")
    found = find([tmp_path / "docs"], {}, tmp_path / "made")
    assert set(found.files) == {"docs/a.md", "docs/broken.md"}
    assert sorted(found.links) == ["docs/b.md", "docs/there"]
    (note,) = found.notes()
    assert note.startswith("2 links lead out of the folder and were not followed: docs/")
    with pytest.raises(OSError, match="No such file"):
        read_bytes(found.files["docs/broken.md"])
    followed = find([tmp_path / "docs"], {}, tmp_path / "made", Filters(follow_links=True))
    assert set(followed.files) == {"docs/a.md", "docs/b.md", "docs/broken.md", "docs/there/b.md"}
    named = find([tmp_path / "docs" / "b.md"], {}, tmp_path / "made")
    assert set(named.files) == {"elsewhere/b.md"}


def test_patterns_leave_out_files_and_folders(tmp_path: Path) -> None:
    put(tmp_path, "docs/a.md", "docs/build/b.md", "docs/sub/c.md", "docs/sub/keep.md", "docs/sub/deep/d.md")
    (tmp_path / "docs" / ".gitignore").write_text("build/\nkeep.md\n")
    (tmp_path / "docs" / "sub" / ".gitignore").write_text("!keep.md\n/deep\n")
    usual = find([tmp_path / "docs"], {}, tmp_path / "made")
    assert set(usual.files) == {"docs/a.md", "docs/sub/c.md", "docs/sub/keep.md"}
    assert list(usual.notes()) == ["2 files and folders left out by .gitignore or --exclude"]
    every = find([tmp_path / "docs"], {}, tmp_path / "made", Filters(gitignore=False))
    assert len(every.files) == 5
    some = find([tmp_path / "docs"], {}, tmp_path / "made", Filters(["sub/*", "!sub/c.md"]))
    assert set(some.files) == {"docs/a.md", "docs/sub/c.md"}


def test_a_checkouts_patterns_hold_for_a_folder_in_it_and_none_from_outside(tmp_path: Path) -> None:
    put(tmp_path, "repo/docs/a.md", "repo/docs/out.md")
    (tmp_path / ".gitignore").write_text("a.md\n")
    (tmp_path / "repo" / ".gitignore").write_text("out.md\n")
    assert len(find([tmp_path / "repo" / "docs"], {}, tmp_path / "made").files) == 2
    (tmp_path / "repo" / ".git").mkdir()
    assert set(find([tmp_path / "repo" / "docs"], {}, tmp_path / "made").files) == {"docs/a.md"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    with pytest.raises(OSError, match="no regular file"):
        read_bytes(tmp_path / "pipe.md")


def test_names_that_are_not_utf_8_become_text(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"caf\xe9.md")).write_text("a")
    except OSError:
        pytest.skip("names must be UTF-8 here")
    (source,) = find([folder], {}, tmp_path / "made").files
    assert source == "docs/caf\\xe9.md"


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    put(tmp_path, "one/docs/a.md", "two/docs/a.md")
    both = [tmp_path / "one" / "docs", tmp_path / "two" / "docs"]
    with pytest.raises(InvalidInputError, match="has a folder 'docs' already"):
        find(both, {}, tmp_path / "made")
    with pytest.raises(InvalidInputError, match="has a folder 'docs' already"):
        find(both[1:], {"docs": both[0]}, tmp_path / "made")
