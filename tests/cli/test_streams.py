"""What a command ends with, whatever becomes of its streams."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from retrieve_rerank.cli import streams
from retrieve_rerank.cli.streams import guarded
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
    report = '"$0" -m retrieve_rerank evaluate --from a.json'
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


def test_warnings_of_libraries_beside_us_are_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """As in ~/retrieve_rerank/.venv, where each path holds our name."""

    @guarded
    def command(*, debug: bool = False) -> None:
        warnings.warn_explicit("of a library", UserWarning, "/home/me/retrieve_rerank/.venv/lib/other/it.py", 1)
        warnings.warn_explicit("of ours", UserWarning, streams.__file__, 1)

    command()
    assert capsys.readouterr().err == "warning: of ours\n"
