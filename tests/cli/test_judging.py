"""Which questions, judgements and words `evaluate` and `tune` take."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import BM25, Run


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


def test_words_are_those_of_the_language_that_is_named(run: Run, toy: Path, models: tuple[str, ...]) -> None:
    (toy / "corpus.jsonl").write_text('{"_id": "p1", "text": "Die Häuser"}\n{"_id": "p2", "text": "Der See"}\n')
    (toy / "queries.jsonl").write_text('{"_id": "q1", "text": "Haus"}\n')
    assert run("evaluate", toy, *BM25, *models).lines[0]["means"] == {"RR@10": 0.0}
    for command, field in (("evaluate", "means"), ("tune", "quality")):
        (line, *_) = run(command, toy, *BM25, *models, "--language", "de").lines
        assert line[field] in (1.0, {"RR@10": 1.0})
    assert "no stemmer for the language 'xx'" in run("evaluate", toy, *models, "--language", "xx", status=1).err


def test_an_index_keeps_its_language(run: Run, indexed: Path) -> None:
    weak = ("evaluate", "--in", "made", "--sample-questions", 1)
    refused = run(*weak, "--language", "de", status=2)
    assert indexed.is_dir()
    assert "was made for the language 'en', not 'de'" in " ".join(refused.err.split())


def test_judgements_that_were_exported_are_taken(run: Run, toy: Path, models: tuple[str, ...]) -> None:
    """Ids with white space are written as in URLs; read as they stand, they would name nothing."""
    (toy / "corpus.jsonl").write_text('{"_id": "my file", "text": "paris france"}\n{"_id": "p2", "text": "rome"}\n')
    (toy / "qrels.tsv").write_text("q1\tmy file\t1\n")
    first = run("evaluate", toy, *BM25, *models, "--runs", "runs").lines
    assert run("evaluate", toy, *BM25, *models, "--qrels", "runs/qrels.txt").lines[0]["means"] == first[0]["means"]
