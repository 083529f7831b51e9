"""The benchmarks run: each on a collection of a few passages, with tiny models. Their figures mean nothing here."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
WORDS = ("paris", "rome", "capital", "france", "italy", "bread")
PASSAGES, QUESTIONS = 24, 6

for _name in ("bm25s", "ir_measures", "langchain_core", "peft", "ray"):
    pytest.importorskip(_name)

Run = Callable[..., list[str]]


def load(name: str) -> dict[str, Any]:
    """Return what a benchmark defines, without running it."""
    return runpy.run_path(str(FOLDER / name), run_name="benchmark")


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    passages = [
        {"id": f"p{n}", "title": "", "text": f"{WORDS[n % 6]} {WORDS[n // 6]} the capital of {n}"}
        for n in range(PASSAGES)
    ]
    questions = [{"id": f"q{n}", "text": f"what is {WORDS[n]}"} for n in range(QUESTIONS)]
    for name, rows in (("corpus", passages), ("queries", questions)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judged = "\n".join(f"q{n}\tp{n}\t1" for n in range(QUESTIONS))
    (folder / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(
    tiny_bi_encoder: Path, tiny_cross_encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a benchmark with tiny models and return the rows that it prints."""

    def run_here(name: str, *arguments: object, models: bool = True) -> list[str]:
        given = ["--bi-encoder", tiny_bi_encoder, "--cross-encoder", tiny_cross_encoder] if models else []
        monkeypatch.setattr(sys, "argv", [name, *map(str, (*arguments, *given))])
        with warnings.catch_warnings():
            load(name)["main"]()
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]

    return run_here


@pytest.mark.parametrize("name", sorted(file.name for file in FOLDER.glob("*.py")))
def test_every_benchmark_finds_what_it_imports(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(name)


def test_weights_run_from_the_first_stage_to_the_cross_encoder_alone(run, collection, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- benchmarks/weights.py writes this table -->\nold\n<!-- end of the table -->", encoding="utf-8"
    )
    options = ("--queries", 3, "--work", tmp_path / "work", "--table", page)
    rows = run("weights.py", collection, *options)
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert cells[0][2:] == ["R@100", "0", *(f"0.{step}" for step in range(1, 10)), "1"]
    assert [row[:2] for row in cells[1:4]] == [["few, 3", "BM25"], ["few, 3", "dense"], ["few, 3", "hybrid"]]
    assert [row[2] for row in cells[2:4]] == ["1.000", "1.000"]  # all passages are candidates
    assert run("weights.py", collection, *options) == rows  # from what was kept
    assert "\n".join(rows[1:3]) in page.read_text(encoding="utf-8")


def test_precision_compares_with_float32(run, collection):
    header, exact, other = run("precision.py", collection, "--precisions", "bfloat16")
    assert "same ten" in header
    assert "| 6 | float32 by torch | " in exact
    assert exact.split(" | ")[4:7] == ["100.0%", "100.0%", "0.00"]
    assert "| 6 | bfloat16 by torch | " in other


def test_tuning_ends_in_the_rules_of_adaptive_depth(run, collection, tmp_path):
    options = ("--queries", 0, "--depths", 5, 100, "--really", 2, "--cache", tmp_path / "scores.sqlite")
    rows = run("tuning.py", collection, *options)
    assert [row.split(" | ")[3] for row in rows[1:]] == ["fixed", "convincing", "settled"] * 3


def test_long_passages_are_truncated_or_in_windows(run, collection):
    options = ("--queries", 2, "--candidates", 4, "--tokens", 200, "--precision", "float32")
    rows = run("long_passages.py", collection, *options)
    assert [row.rsplit(" | ", 1)[1] for row in rows[1:]] == ["0% |", "100% |", "0% |"]


def test_speed_has_the_stock_side_first(run, collection, tiny_cross_encoder):
    rows = run(
        *("speed.py", collection / "corpus.jsonl", "--passages", 6, "--rounds", 1, "--model", tiny_cross_encoder),
        models=False,
    )
    sides = [row.split(" | ")[1] for row in rows[1:]]
    assert sides[0] == "sentence-transformers, float32"
    assert "ours, torch, float32" in sides


def test_the_table_of_a_page_is_written_between_its_marks(tmp_path):
    peers = load("peers.py")
    page = tmp_path / "README.md"
    before, after = "# Title\n\n", "\n\nafter\n"
    marks = "<!-- benchmarks/peers.py writes this table -->", "<!-- end of the table -->"
    page.write_text(f"{before}{marks[0]}\nold\n{marks[1]}{after}", encoding="utf-8")
    seconds = {
        "re-rank": {peers["LANGCHAIN"]: [4.0, 3.0, 9.0], peers["OURS"]: [2.0]},
        "index": {peers["LANGCHAIN"]: [{"seconds": 1.0}]},
        "calls": {"in turn": [1.0]},  # has no stock side, so no column
    }
    peers["write_table"](page, "peers.py", peers["summary"](seconds))
    text = page.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert text.endswith(after)
    assert "old" not in text
    assert "| re-rank | 4.00 (1.00×) | 2.00 (2.00×) |" in text
    assert "| index | 1.00 (1.00×) |  |" in text
    assert "calls" not in text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="no place for the table"):
        peers["write_table"](page, "peers.py", "again")
