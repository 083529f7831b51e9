"""What a command ends with, whatever becomes of its streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from retrieve_rerank.evaluation import evaluate
from tests.cli.conftest import environment, start
from tests.evaluation.stubs import Shelf, dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")


def test_a_failed_file_is_told_to_who_does_not_read(docs: Path, models: tuple[str, ...]) -> None:
    """As `index … | true` does: its status was that of a run without failures."""
    (docs / "bad.jsonl").write_text("{\n")
    process = start("index", docs, "--to", "made", *models, cwd=docs.parent, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()  # before anything is written
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=300) == 1, said
    assert "bad.jsonl" in said
    assert "BrokenPipe" not in said


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed_are_nothing_to_write_to(tmp_path: Path, closed: str) -> None:
    evaluate({"shelf": Shelf({"one": "cad", "two": "efb"})}, dataset()).to_json(tmp_path / "a.json")
    report = '"$0" -m retrieve_rerank report a.json'
    line = f"{report} {closed} && {report} --html b.html {closed}"
    done = subprocess.run(
        ["sh", "-c", line, sys.executable],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, "unexpected" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "b.html").is_file()
