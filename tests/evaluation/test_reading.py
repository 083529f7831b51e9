"""Test collections as they lie about: with and without headers, titles, TREC columns, odd line breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieve_rerank import InvalidInputError, Passage
from retrieve_rerank.evaluation import load_dataset

CORPUS = '{"_id": "a", "title": "Paris", "text": "A city."}\n{"_id": "b", "title": "", "text": "Bread."}\n'
QUERIES = '{"_id": "q1", "text": "what is Paris?"}\n{"_id": "q2", "text": "unjudged"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\n"


def write(folder: Path, **files: str | bytes) -> Path:
    contents: dict[str, str | bytes] = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels.tsv": QRELS}
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels.tsv"}
    for name, content in files.items():
        contents[names[name]] = content
    for file, content in contents.items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_the_beir_layout(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path))
    assert dataset.name == tmp_path.name
    assert dataset.passages == (Passage("a", "Paris A city.", {"title": "Paris"}), Passage("b", "Bread."))
    assert dataset.queries == {"q1": "what is Paris?", "q2": "unjudged"}
    assert dataset.judgements == {"q1": {"a": 2, "b": 0}}


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\ta\t2\nq1\tb\t0\n",  # no header
        "q1\ta\t2\nq1\tb\t0",  # no last line end
        "query-id\tcorpus-id\tscore\r\nq1\ta\t2\r\nq1\tb\t0\r\n",
        "\ufeffquery-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\n",
        "q1\ta\t2.0\n\nq1\tb\t0.0\n",
        "q1 0 a 2\nq1 0 b 0\n",  # TREC
        "q1  Q0   a 2\nq1\tQ0\tb\t0\n",
        "q1\ta\t2\nq1\tb\t0\nq1\ta\t2\n",  # the same judgement twice
    ],
)
def test_judgements_in_every_layout(tmp_path: Path, qrels: str) -> None:
    assert load_dataset(write(tmp_path, qrels=qrels)).judgements == {"q1": {"a": 2, "b": 0}}


def test_ids_may_be_numbers_or_hold_spaces_and_are_called_id_or_underscore_id(tmp_path: Path) -> None:
    corpus = '{"id": 7, "text": "x"}\n{"_id": "my notes.txt", "id": "not this", "text": "y"}\n'
    dataset = load_dataset(write(tmp_path, corpus=corpus, qrels="q1\t7\t1\nq1\tmy notes.txt\t1\n"))
    assert [passage.id for passage in dataset.passages] == ["7", "my notes.txt"]
    assert dataset.judgements == {"q1": {"7": 1, "my notes.txt": 1}}


def test_texts_may_hold_every_line_break_but_one(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour\rfive\nsix"
    record = json.dumps({"_id": "a", "text": text}, ensure_ascii=False)  # only \n and \r are escaped by JSON
    dataset = load_dataset(write(tmp_path, corpus=f"{record}\n"))
    assert [passage.text for passage in dataset.passages] == [text]


def test_which_file_of_judgements_is_taken(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "qrels.train.tsv").write_text("q2\tb\t1\n")
    assert set(load_dataset(tmp_path).judgements) == {"q1"}
    assert set(load_dataset(tmp_path, qrels="qrels.train.tsv").judgements) == {"q2"}
    assert set(load_dataset(tmp_path, qrels=tmp_path / "qrels.train.tsv").judgements) == {"q2"}
    (tmp_path / "qrels.tsv").unlink()
    assert set(load_dataset(tmp_path).judgements) == {"q2"}
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("q1\ta\t1\n")
    with pytest.raises(InvalidInputError, match=r"found qrels.dev\.tsv, qrels\.train\.tsv\. Say which"):
        load_dataset(tmp_path)
    (tmp_path / "qrels" / "test.tsv").write_text("q1\tb\t1\n")
    assert load_dataset(tmp_path).judgements == {"q1": {"b": 1}}


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match=r"other\.tsv is missing"):
        load_dataset(write(tmp_path), qrels="other.tsv")
    for missing, says in (("queries.jsonl", "is missing"), ("corpus.jsonl", "is missing"), ("qrels.tsv", "found none")):
        (write(tmp_path) / missing).unlink()
        with pytest.raises(InvalidInputError, match=says if missing == "qrels.tsv" else f"{missing} {says}"):
            load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("corpus", CORPUS + "{", r"corpus\.jsonl, line 3 is not JSON"),
        ("corpus", CORPUS + "\n[1]", r"line 4 must be a JSON object"),
        ("corpus", CORPUS + '{"text": "x"}', "line 3 needs an id"),
        ("corpus", CORPUS + '{"_id": "", "text": "x"}', "line 3 needs an id"),
        ("corpus", CORPUS + '{"_id": "c"}', "line 3 needs a `text`"),
        ("corpus", CORPUS + '{"_id": "c", "text": "x", "title": 5}', "`title` that is no string: 5"),
        ("corpus", CORPUS + '{"_id": "a", "text": "x"}', r"line 3 has id 'a', as .*corpus\.jsonl, line 1 has"),
        ("corpus", b'{"_id": "c", "text": "caf\xe9"}', "line 1 is not UTF-8"),
        ("queries", QUERIES + '{"_id": "q3", "text": null}', r"queries\.jsonl, line 3 needs a `text`"),
        ("qrels", QRELS + "q1 a", r"qrels\.tsv, line 4 must have 3 columns .* got 2"),
        ("qrels", QRELS + "q1\ta\tyes", "line 4 must end with a whole number"),
        ("qrels", QRELS + "q1\ta\t0.5", "line 4 must end with a whole number"),
        ("qrels", "q1\ta\tnan\nq1\tb\t1", "line 1 must end with a whole number"),
        ("qrels", "q1\ta\t-inf\nq1\tb\t1", "line 1 must end with a whole number"),
        ("qrels", QRELS + "q1\ta\t1_000", "line 4 must end with a whole number"),
        ("qrels", "q1\ta\t1_000\n", "line 1 must end with a whole number"),
        ("corpus", CORPUS + '{"_id": ' + "[" * 200_000, r"corpus\.jsonl, line 3 is not JSON"),
        ("qrels", QRELS + "q1\t\t1", "line 4 must end with a whole number after two ids"),
        ("qrels", QRELS + "q1\ta\t1", "line 4 judges passage 'a' for question 'q1' as 1, an earlier line as 2"),
        ("qrels", "query-id\tcorpus-id\tscore\n", "no question of dataset"),
        ("qrels", "", "no question of dataset"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, file: str, content: str | bytes, says: str) -> None:
    write(tmp_path, **{file: content})
    with pytest.raises(InvalidInputError, match=says):
        load_dataset(tmp_path)


def test_questions_of_another_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"id": "q1", "text": "and Paris?"}\n')
    (tmp_path / "queries.jsonl").unlink()
    for file in ("mine.jsonl", tmp_path / "mine.jsonl"):
        assert load_dataset(tmp_path, queries=file).queries == {"q1": "and Paris?"}
    with pytest.raises(InvalidInputError, match=r"other\.jsonl is missing"):
        load_dataset(tmp_path, queries="other.jsonl")
