"""The files that `evaluate`, `tune` and `report` write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from retrieve_rerank.evaluation import Evaluation
from tests.cli.conftest import BM25, Run


def test_a_file_that_fails_costs_no_other(
    run: Run, toy: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    files = ("--save", "a.json", "--html", "a.html", "--markdown", "a.md", "--runs", "runs")
    run("evaluate", toy, *BM25, *models, "--save", "good.json")
    monkeypatch.setattr(Evaluation, "to_json", full)
    monkeypatch.setattr(Evaluation, "to_html", full)
    done = run("evaluate", toy, *BM25, *models, *files, status=1)
    told = "retrieve-rerank: could not be written: evaluation a.json: the disk is full; report a.html: the disk is full"
    assert told in done.err.splitlines()
    assert "table: a.md\nruns: runs\n" in done.err
    assert (toy.parent / "runs" / "qrels.txt").is_file()
    assert (
        "report b.html: the disk is full"
        in run("evaluate", "--from", "good.json", "--html", "b.html", "--markdown", "b.md", status=1).err
    )
    assert (toy.parent / "b.md").read_text().startswith("Re-ranking ")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are Unicode")
def test_a_folder_whose_name_is_not_utf8(run: Run, toy: Path, models: tuple[str, ...]) -> None:
    named = toy.rename(toy.parent / os.fsdecode(b"caf\xe9"))
    run("evaluate", named, *BM25, *models, "--markdown", "a.md", "--html", "a.html", "--save", "a.json")
    assert "caf\\udce9" in (toy.parent / "a.md").read_text()


@pytest.mark.parametrize("name", ["retrieve-rerank.json", "lock", "vectors/chroma.sqlite3", "words/report.html"])
def test_nothing_is_written_over_an_index(run: Run, indexed: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in indexed.rglob("*") if path.is_file()}
    (indexed / "words" / "folder").mkdir()
    for command, option in (("evaluate", "--save"), ("evaluate", "--cache"), ("tune", "--save"), ("tune", "--html")):
        refused = run(command, "--in", "made", "--sample-questions", 1, option, f"made/{name}", status=2)
        assert f"made/{name} is a part of the index in made; name another" in " ".join(refused.err.split())
    assert "is a part of the index" in run("evaluate", "--in", "made", "--runs", "made/words/folder", status=2).err
    assert {path: path.read_bytes() for path in indexed.rglob("*") if path.is_file()} == before
