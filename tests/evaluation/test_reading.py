"""Test collections and runs as they lie about: with and without headers, titles, TREC columns, odd line breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieve_rerank import HybridRetriever, InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate, load_dataset, load_run
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits

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


# Runs of other systems, measured and re-ranked


RUN = "q1 Q0 c 1 9.5 bm25\nq1 Q0 a 2 9.0 bm25\nq1 Q0 d 3 -1e2 bm25\nq2 Q0 e 1 3 bm25\n"


def write_run(folder: Path, content: str) -> Path:
    file = folder / "bm25.run"
    file.write_text(content, encoding="utf-8")
    return file


def test_a_run_is_a_first_stage(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, RUN), dataset())
    hits = run.retrieve("one", 2)
    assert [(hit.passage.id, hit.passage.text, hit.rank, hit.retrieval_rank, hit.retrieval_score) for hit in hits] == [
        ("c", "text c", 1, 1, 9.5),
        ("a", "text a", 2, 2, 9.0),
    ]
    assert run.retrieve("unheard of") == []
    evaluation = evaluate({"search": RetrieveRerank(run, TableScorer(logits("abcdef"))), "bm25": run}, dataset())
    assert evaluation["bm25"].run == {"q1": ("c", "a", "d"), "q2": ("e",)}
    assert evaluation["search"].run == {"q1": ("a", "c", "d"), "q2": ("e",)}
    assert evaluation["bm25"].description == "StoredRun('bm25.run')"


@pytest.mark.parametrize(
    "content",
    [
        "q1 Q0 d 3 -100 x\nq1 Q0 a 2 9.0 x\nq1 Q0 c 1 9.5 x\n",  # any order of lines
        "q1 Q0 c 1 9 x\nq1 Q0 a 2 8 x\nq1 Q0 d 3 1 x\nq9 Q0 unknown 1 1 x\n",  # a question that the dataset lacks
        "q1 Q0 c 9 9.5 x\nq1 Q0 a 1 9.0 x\nq1 Q0 d 2 -100 x\n",  # ranks that say something else
        "q1\tQ0\tc\t1\t5\tx\nq1\tQ0\ta\t2\t5\tx\n\nq1\tQ0\td\t3\t5\tx\r\n",  # equal scores
    ],
)
def test_the_score_decides_and_the_file_breaks_ties(tmp_path: Path, content: str) -> None:
    run = load_run(write_run(tmp_path, content), dataset())
    assert [hit.passage.id for hit in run.retrieve("one")] == ["c", "a", "d"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (RUN + "q1 Q0 a 1 9.5\n", r"bm25\.run, line 5 must have 6 columns .*, got 5"),
        (RUN + "q1 Q0 a 1 high x\n", "line 5 has a score that is no number: 'high'"),
        (RUN + "q1 Q0 a 1 nan x\n", "line 5 has a score that is no number: 'nan'"),
        (RUN + "q1 Q0 z 1 1 x\n", "line 5 names passage 'z', which dataset 'toy' lacks"),
        ("q9 Q0 a 1 1 x\n", "holds no question of dataset 'toy'"),
        ("", "holds no question"),
    ],
)
def test_a_bad_run_is_named(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        load_run(write_run(tmp_path, content), dataset())


def test_a_missing_run_and_a_bad_k(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.run is missing"):
        load_run(tmp_path / "nowhere.run", dataset())
    with pytest.raises(InvalidInputError, match="k must be >= 1"):
        load_run(write_run(tmp_path, RUN), dataset()).retrieve("one", 0)


def test_questions_of_one_text_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    twins = Dataset(
        "twins", TEXTS, {"q1": "same", "q2": "same", "q3": "same"}, {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}}
    )
    run = load_run(write_run(tmp_path, "q1 Q0 a 1 2 x\nq1 Q0 b 2 1 x\nq2 Q0 b 1 2 x\nq2 Q0 a 2 1 x\n"), twins)
    assert [hit.passage.id for hit in run.retrieve_of("q2", "same", 1)] == ["b"]
    with pytest.raises(InvalidInputError, match="'q1', 'q2' have the same text"):
        run.retrieve("same")
    scorer = TableScorer(logits("abcdef"))
    evaluation = evaluate({"run": run, "search": RetrieveRerank(run, scorer, fetch_k=2)}, twins, ["RR@10"])
    assert evaluation["run"].run == {"q1": ("a", "b"), "q2": ("b", "a"), "q3": ()}
    assert evaluation["search"].per_query["RR@10"] == {"q1": 1.0, "q2": 0.5, "q3": 0.0}
    agreed = load_run(write_run(tmp_path, "q1 Q0 a 1 2 x\nq2 Q0 a 1 2.5 x\n"), twins)
    assert [hit.passage.id for hit in agreed.retrieve("same")] == ["a"]
    hybrid = HybridRetriever([agreed, Shelf({"same": "b"})])
    assert evaluate({"hybrid": hybrid}, twins, ["RR@10"])["hybrid"].run["q3"] == ("a", "b")
    other_ids = Dataset("toy", TEXTS, {"x": "one"}, {"x": {"a": 1}})
    assert evaluate({"run": load_run(write_run(tmp_path, RUN), dataset())}, other_ids)["run"].run == {
        "x": ("c", "a", "d")
    }


def test_judgements_and_runs_that_were_exported_are_read_back(tmp_path: Path) -> None:
    """Also where one id is another's encoded form: each is told from the other."""
    ids = ("a b", "a%20b", "100%")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"id": name, "text": name}) + "\n" for name in ids))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps({"id": name, "text": name}) + "\n" for name in ids))
    (tmp_path / "qrels.tsv").write_text("a b\ta%20b\t1\na%20b\ta b\t2\n100%\t100%\t1\n")
    given = load_dataset(tmp_path)
    assert given.judgements == {"a b": {"a%20b": 1}, "a%20b": {"a b": 2}, "100%": {"100%": 1}}
    # `to_runs` writes white space as %20: read as it stands, such questions would find nothing.
    before = evaluate({"shelf": Shelf({name: ["a b", "a%20b", "100%"] for name in ids}, {n: n for n in ids})}, given)
    (path,) = before.to_runs(tmp_path / "runs")
    again = load_dataset(tmp_path, qrels=tmp_path / "runs" / "qrels.txt")
    assert again.judgements == given.judgements
    after = evaluate({"shelf": load_run(path, again)}, again)["shelf"]
    assert (after.run, after.per_query) == (before["shelf"].run, before["shelf"].per_query)
