"""`evaluate` and `tune`: numbers that others can compute again, and work that is not done twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ir_measures
import pytest

from retrieve_rerank import BiEncoder, CrossEncoder
from retrieve_rerank.cli import evaluate as evaluating
from retrieve_rerank.evaluation import Evaluation
from tests.cli.conftest import Run, start

TEXTS = {
    "p 1": "paris is the capital of france",
    "p2": "rome is the capital of italy",
    "p3": "bread is the bread of france",
    "p4": "the word is in the bread",
    "p%5": "what is in a word of italy",
}
QUERIES = {"q1": "capital of france", "q2": "what is the bread", "q 3": "the word in italy", "q4": "nobody asks"}
QRELS = [("q1", "p 1", 2), ("q1", "p3", 1), ("q2", "p3", 1), ("q2", "p4", 0), ("q 3", "p%5", 1), ("q 3", "p4", 1)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    folder.mkdir()
    corpus = [{"_id": identifier, "text": text} for identifier, text in TEXTS.items()]
    queries = [{"_id": identifier, "text": text} for identifier, text in QUERIES.items()]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{query}\t{passage}\t{grade}\n" for query, passage, grade in QRELS)
    )
    return folder


def test_numbers_are_those_of_ir_measures_on_the_files(run: Run, dataset: Path, models: tuple[str, ...]) -> None:
    """Nothing of ours between: its own reader, its own computation."""
    measures = ["nDCG@3", "RR@10", "AP", "R@2"]
    options = [part for name in measures for part in ("--measure", name)]
    stages = ["--first-stage", "bm25", "--first-stage", "dense", "--first-stage", "hybrid"]
    lines = run("evaluate", dataset, *models, *options, *stages, "--runs", "runs").lines
    folder = dataset.parent / "runs"
    qrels = list(ir_measures.read_trec_qrels(str(folder / "qrels.txt")))
    assert len(qrels) == len(QRELS)
    names = {file.stem: file for file in folder.glob("*.run")}
    assert len(lines) == len(names) == 6
    parsed = [ir_measures.parse_measure(name) for name in measures]
    for line in lines:
        file = names[line["system"].replace(" → ", "-").replace(" ", "-")]
        found = ir_measures.calc_aggregate(parsed, qrels, ir_measures.read_trec_run(str(file)))
        assert {str(name): value for name, value in found.items()} == {
            name: pytest.approx(line["means"][name], abs=1e-9) for name in measures
        }
    assert len({line["means"]["nDCG@3"] for line in lines}) > 1


def test_a_second_run_does_nothing_twice(
    run: Run, dataset: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("evaluate", dataset, *models)
    real = BiEncoder.encode_documents

    def nothing_new(self: BiEncoder, texts: Sequence[str], **options: bool) -> object:
        assert not set(texts) & set(TEXTS.values())
        return real(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BiEncoder, "encode_documents", nothing_new)
        patch.setattr(CrossEncoder, "rank", None)
        second = run("evaluate", dataset, *models)
    assert [line["means"] for line in first.lines] == [line["means"] for line in second.lines]
    measured = run("evaluate", dataset, *models, "--no-cache")
    assert [line["means"] for line in first.lines] == [line["means"] for line in measured.lines]
    corpus = dataset / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + '{"_id": "p6", "text": "paris"}\n')
    changed = run("evaluate", dataset, *models)  # another corpus is another index
    assert changed.lines[0]["ceiling"] == first.lines[0]["ceiling"]


def test_many_questions_are_sampled_and_it_is_said(
    run: Run, dataset: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "QUESTIONS", 2)
    stage = ("--first-stage", "bm25", "--measure", "RR@10")
    done = run("evaluate", dataset, *models, *stage, "--markdown", "a.md", "--save", "a.json")
    assert [line["questions"] for line in done.lines] == [2, 2]
    assert "note: 2 of 3 judged questions, drawn with seed 0; --sample 0 takes all" in done.err
    assert "2 of 3 judged questions, drawn with seed 0" in (dataset.parent / "a.md").read_text()
    assert "2 of 3 judged questions" in run("evaluate", "--from", "a.json").err
    for option in ("--sample", "--rerank-weight"):
        refused = run("evaluate", "--from", "a.json", option, 0, status=2)
        assert "leave out what says what to measure" in refused.err, option
    first, voted = run("evaluate", dataset, *models, *stage, "--sample", 0, "--rerank-weight", 0).lines
    assert (voted["rerank_weight"], voted["means"]) == (0, first["means"])
    assert list(voted["by_weight"]) == ["0", *(f"{tenth / 10:g}" for tenth in range(1, 11))]
    every = run("evaluate", dataset, *models, *stage, "--sample", 0)
    assert [line["questions"] for line in every.lines] == [3, 3]
    assert "drawn" not in every.err


def test_files_are_written_and_the_report_reads_them(run: Run, dataset: Path, models: tuple[str, ...]) -> None:
    files = ("--html", "a.html", "--markdown", "a.md", "--save", "a.json", "--cache", "scores.sqlite")
    done = run("evaluate", dataset, *models, "--sample", 2, *files)
    assert [line["questions"] for line in done.lines] == [2, 2]
    folder = dataset.parent
    assert (folder / "scores.sqlite").is_file()
    assert (folder / "a.html").read_text().startswith("<!doctype html>")
    table = (folder / "a.md").read_text()
    assert "hybrid → model" in table
    assert run("evaluate", "--from", "a.json").lines == done.lines
    run("evaluate", "--from", "a.json", "--html", "b.html", "--markdown", "b.md")
    assert (folder / "b.md").read_text() == table
    assert (folder / "b.html").read_text() == (folder / "a.html").read_text()
    assert "cannot be read as an evaluation" in run("evaluate", "--from", "none.json", status=1).err
    assert "does not exist" in run("evaluate", dataset, *models, "--save", "none/a.json", status=2).err
    for option in ("--html", "--save", "--markdown", "--cache"):
        assert "is a folder" in run("evaluate", dataset, *models, option, dataset, status=2).err
    assert "is no folder" in run("evaluate", dataset, *models, "--runs", "a.md", status=2).err


def test_an_index_of_ones_own_with_judgements(run: Run, indexed: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "q1", "text": "the word of rome"}\n')
    (tmp_path / "judged.tsv").write_text("q1\tf1\t1\n")
    own = ("--queries", "q.jsonl", "--qrels", "judged.tsv")
    lines = run("evaluate", "--in", "made", *own, "--measure", "RR@10").lines
    assert [line["dataset"] for line in lines] == ["made", "made"]
    assert lines[0]["means"]["RR@10"] == 1.0
    assert lines[1]["system"].startswith("hybrid → ")


def test_an_index_of_ones_own_without_judgements(run: Run, tmp_path: Path, models: tuple[str, ...]) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    words = ("paris", "rome", "bread", "france", "italy", "capital")
    for word in words:
        (folder / f"{word}.txt").write_text(f"what is the {word}. the word {word} is the word of the {word} in it\n")
    run("index", folder, "--to", "made", *models)
    done = run("evaluate", "--in", "made", "--sample-questions", 4, "--measure", "RR@10")
    assert all(line["weak"] and line["questions"] == 4 for line in done.lines)
    assert "weak" in done.err
    assert "an index has no questions" in run("evaluate", "--in", "made", status=2).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a DATASET or an index"),
        (["toy", "--in", "made"], "give either a DATASET or an index"),
        (["toy", "--sample-questions", "3"], "makes questions of an index"),
        (["--in", "made", "--queries", "q"], "go together"),
        (["--in", "made", "--queries", "q", "--qrels", "r", "--sample-questions", "3"], "give either --queries"),
        (["toy", "--first-stage", "sparse"], "sparse"),
        (["toy", "--sample", "-1"], "--sample"),
    ],
)
def test_calls_that_cannot_be_meant(run: Run, arguments: list[str], message: str) -> None:
    assert message in " ".join(run("evaluate", *arguments, status=2).err.split())


def test_what_is_wrong_with_a_dataset_is_said_before_a_model_loads(run: Run, dataset: Path) -> None:
    assert "is not the name of a measure" in run("evaluate", dataset, "--measure", "nonsense", status=2).err
    (dataset / "qrels.tsv").unlink()
    assert "needs judgements" in run("evaluate", dataset, status=1).err
    assert "is not a folder" in run("evaluate", "nowhere", status=1).err


def test_words_that_are_not_there_are_not_measured(run: Run, docs: Path, indexed: Path, tmp_path: Path) -> None:
    shutil.rmtree(indexed / "words")  # as of an index that was made without BM25
    (tmp_path / "q.jsonl").write_text('{"id": "q1", "text": "the word of rome"}\n')
    (tmp_path / "judged.tsv").write_text("q1\tf1\t1\n")
    own = ("--in", "made", "--queries", "q.jsonl", "--qrels", "judged.tsv")
    for command in ("evaluate", "tune"):
        assert "made has no words to search for; run retrieve-rerank index again" in run(command, *own, status=1).err
    assert not (indexed / "words").exists()
    assert run("evaluate", *own, "--first-stage", "dense").lines
    other = run("evaluate", *own, "--bi-encoder", "another", status=2)
    assert "leave --bi-encoder out" in " ".join(other.err.split())


def test_an_index_that_was_broken_off_is_named(run: Run, indexed: Path, tmp_path: Path) -> None:
    record = json.loads((indexed / "retrieve-rerank.json").read_text())
    (indexed / "retrieve-rerank.json").write_text(json.dumps({**record, "clean": False}))
    (tmp_path / "q.jsonl").write_text('{"id": "q1", "text": "the word of rome"}\n')
    (tmp_path / "judged.tsv").write_text("q1\tf1\t1\n")
    done = run("evaluate", "--in", "made", "--queries", "q.jsonl", "--qrels", "judged.tsv")
    assert "was broken off" in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX's")
@pytest.mark.parametrize(
    ("command", "file", "status"),
    [
        (("evaluate", "--save", "out.json"), "out.json", 0),
        (("tune", "--depth", "2", "--latency-budget", "0.000001ms", "--save", "out.json"), "out.json", 1),
    ],
)
def test_a_reader_that_is_gone_costs_no_file_and_no_status(
    dataset: Path, models: tuple[str, ...], cache: Path, command: tuple[str, ...], file: str, status: int
) -> None:
    name, *options = command
    process = start(name, dataset, *models, *options, cwd=dataset.parent, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()  # before anything is written
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=300) == status, said
    assert "BrokenPipe" not in said
    assert json.loads((dataset.parent / file).read_text())


def test_numbers_are_told_also_where_a_file_cannot_be_written(
    run: Run, dataset: Path, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Evaluation, "to_html", full)
    done = run("evaluate", dataset, *models, "--save", "a.json", "--html", "a.html", status=1)
    assert len(done.lines) == 2
    assert "evaluation: a.json" in done.err
    assert "the disk is full" in done.err
    assert "report: a.html" not in done.err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["evaluate", "toy", "--save", "r.json", "--html", "r.json"], "r.json is named twice or is read"),
        (
            ["evaluate", "toy", "--queries", "q.jsonl", "--qrels", "r.tsv", "--save", "./r.tsv"],
            "named twice or is read",
        ),
        (["evaluate", "toy", "--runs", "toy"], "qrels.txt in toy may be written over yours"),
        (["evaluate", "toy", "--queries", "q.jsonl", "--qrels", "qrels.txt", "--runs", "."], "written over yours"),
        (["tune", "toy", "--cache", "s", "--save", "s"], "named twice or is read"),
        (["evaluate", "--from", "r.json", "--html", "r.json"], "named twice or is read"),
        (["tune", "toy", "--save", "toy/qrels.tsv"], "named twice or is read"),
    ],
)
def test_no_file_is_written_over_another_or_over_what_is_read(
    run: Run, dataset: Path, tmp_path: Path, command: list[str], says: str
) -> None:
    assert dataset == tmp_path / "toy"
    (tmp_path / "r.json").write_text("mine")
    assert says in " ".join(run(*command, status=2).err.replace("│", " ").split())
    assert (tmp_path / "r.json").read_text() == "mine"
