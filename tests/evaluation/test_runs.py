"""Runs of other systems, measured and re-ranked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieve_rerank import HybridRetriever, InvalidInputError, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate, load_dataset, load_run
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits

RUN = "q1 Q0 c 1 9.5 bm25\nq1 Q0 a 2 9.0 bm25\nq1 Q0 d 3 -1e2 bm25\nq2 Q0 e 1 3 bm25\n"


def write(folder: Path, content: str) -> Path:
    file = folder / "bm25.run"
    file.write_text(content, encoding="utf-8")
    return file


def test_a_run_is_a_first_stage(tmp_path: Path) -> None:
    run = load_run(write(tmp_path, RUN), dataset())
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
    run = load_run(write(tmp_path, content), dataset())
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
        load_run(write(tmp_path, content), dataset())


def test_a_missing_run_and_a_bad_k(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.run is missing"):
        load_run(tmp_path / "nowhere.run", dataset())
    with pytest.raises(InvalidInputError, match="k must be >= 1"):
        load_run(write(tmp_path, RUN), dataset()).retrieve("one", 0)


def test_questions_of_one_text_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    twins = Dataset(
        "twins", TEXTS, {"q1": "same", "q2": "same", "q3": "same"}, {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}}
    )
    run = load_run(write(tmp_path, "q1 Q0 a 1 2 x\nq1 Q0 b 2 1 x\nq2 Q0 b 1 2 x\nq2 Q0 a 2 1 x\n"), twins)
    assert [hit.passage.id for hit in run.retrieve_of("q2", "same", 1)] == ["b"]
    with pytest.raises(InvalidInputError, match="'q1', 'q2' have the same text"):
        run.retrieve("same")
    scorer = TableScorer(logits("abcdef"))
    evaluation = evaluate({"run": run, "search": RetrieveRerank(run, scorer, fetch_k=2)}, twins, ["RR@10"])
    assert evaluation["run"].run == {"q1": ("a", "b"), "q2": ("b", "a"), "q3": ()}
    assert evaluation["search"].per_query["RR@10"] == {"q1": 1.0, "q2": 0.5, "q3": 0.0}
    agreed = load_run(write(tmp_path, "q1 Q0 a 1 2 x\nq2 Q0 a 1 2.5 x\n"), twins)
    assert [hit.passage.id for hit in agreed.retrieve("same")] == ["a"]
    hybrid = HybridRetriever([agreed, Shelf({"same": "b"})])
    assert evaluate({"hybrid": hybrid}, twins, ["RR@10"])["hybrid"].run["q3"] == ("a", "b")
    other_ids = Dataset("toy", TEXTS, {"x": "one"}, {"x": {"a": 1}})
    assert evaluate({"run": load_run(write(tmp_path, RUN), dataset())}, other_ids)["run"].run == {"x": ("c", "a", "d")}


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
