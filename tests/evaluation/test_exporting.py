"""Files that are written whole, or leave what was there."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retrieve_rerank.evaluation import Evaluation, Tuning, evaluate, tune
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import Shelf, dataset, logits

SHELF = Shelf({"one": "cad", "two": "efb"})

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and pipes are as POSIX has them")


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


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate({"shelf": SHELF}, dataset())


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return tune({"shelf": SHELF}, TableScorer(logits("abcdef")), dataset(), depths=[2])


WRITERS: list[Callable[[Evaluation, Tuning, Path], object]] = [
    lambda evaluation, _, path: evaluation.to_json(path),
    lambda evaluation, _, path: evaluation.to_html(path),
    lambda _, tuning, path: tuning.to_json(path),
    lambda _, tuning, path: tuning.to_html(path),
    lambda _, tuning, path: tuning.save(path),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_write_that_fails_leaves_the_file_that_was_there(
    evaluation: Evaluation, tuning: Tuning, tmp_path: Path, write: Callable[[Evaluation, Tuning, Path], object]
) -> None:
    file = tmp_path / "file"
    file.write_text("of last week")
    file.chmod(0o640)
    with small_disk(), pytest.raises(OSError, match="too large"):
        write(evaluation, tuning, file)
    assert file.read_text() == "of last week"
    write(evaluation, tuning, file)
    assert len(file.read_text()) > 100
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_runs_that_fail_leave_those_that_were_there(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.to_runs(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    many = evaluate({"shelf": Shelf({"one": "abcdef", "two": "abcdef"})}, dataset())
    with small_disk(), pytest.raises(OSError, match="too large"):
        many.to_runs(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_pipes_and_links_stay_what_they_are(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.to_json(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    evaluation.to_json(tmp_path / "pipe")
    reader.join(10)
    (tmp_path / "link").symlink_to("target")
    evaluation.to_json(tmp_path / "link")
    assert [*read, (tmp_path / "target").read_text()] == [(tmp_path / "file").read_text()] * 2
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
