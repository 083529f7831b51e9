"""Which questions, judgements and words `evaluate` and `tune` take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

BM25 = ("--first-stage", "bm25", "--measure", "RR@10")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A test collection of one question."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "p1", "text": "paris france"}\n{"_id": "p2", "text": "rome italy"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "paris"}\n')
    (folder / "qrels.tsv").write_text("q1\tp1\t1\nq2\tp2\t1\nq3\tp2\t1\n")
    return folder


def test_questions_of_ones_own_replace_those_of_the_dataset(run: Run, toy: Path, models: tuple[str, ...]) -> None:
    """Judgements of the questions that `queries.jsonl` lacks were left out before the file was read."""
    texts = {"q1": "paris", "q2": "rome"}
    (toy.parent / "mine.jsonl").write_text("".join(json.dumps({"id": q, "text": t}) + "\n" for q, t in texts.items()))
    done = run("evaluate", toy, "--queries", "mine.jsonl", *BM25, *models)
    assert [line["questions"] for line in done.lines] == [2, 2]
    assert "1 judged question without a text left out" in done.err
    (toy / "queries.jsonl").unlink()
    assert run("evaluate", toy, "--queries", "mine.jsonl", *BM25, *models).lines[0]["questions"] == 2


def test_judgements_in_the_current_folder_come_before_the_datasets(
    run: Run, toy: Path, models: tuple[str, ...]
) -> None:
    (toy.parent / "qrels.tsv").write_text("q1\tp2\t1\n")  # the folder's says p1
    assert run("evaluate", toy, "--qrels", "qrels.tsv", *BM25, *models).lines[0]["means"] == {"RR@10": 0.0}
    (toy.parent / "qrels.tsv").unlink()
    assert run("evaluate", toy, "--qrels", "qrels.tsv", *BM25, *models).lines[0]["means"] == {"RR@10": 1.0}
