"""Measures that a program of its own computes."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import ir_measures
import pytest

from retrieve_rerank import InvalidInputError, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, Evaluation, evaluate, tune
from tests.core.stubs import TableScorer, run_python
from tests.evaluation.stubs import Shelf, dataset, logits

MEASURES = ("ERR@10", 'nDCG(dcg="exp-log2")@10')

needs_perl = pytest.mark.skipif(shutil.which("perl") is None, reason="perl computes them")


def graded(highest: int) -> Dataset:
    texts = {"my file": "text a", "p-2": "text b", "other": "text c"}
    judgements = {"first question": {"my file": highest, "p-2": 1}, "q-2": {"other": 1}, "q3": {"other": 0, "p-2": 1}}
    return Dataset("graded", texts, {"first question": "one", "q-2": "two", "q3": "three"}, judgements)


@needs_perl
def test_expected_reciprocal_rank_by_hand() -> None:
    shelf = Shelf({"one": ["p-2", "my file"], "two": [], "three": ["p-2"]}, {"p-2": "text b", "my file": "text a"})
    one, other = evaluate({"shelf": shelf}, graded(3), MEASURES)["shelf"].per_query.values()
    stops = [(2**grade - 1) / 16 for grade in (1, 3)]
    expected = stops[0] + (1 - stops[0]) * stops[1] / 2
    assert one == {"first question": pytest.approx(expected, abs=1e-5), "q-2": 0.0, "q3": pytest.approx(1 / 16)}
    gain, ideal = 1 + 7 / math.log2(3), 7 + 1 / math.log2(3)
    assert other == {"first question": pytest.approx(gain / ideal, abs=1e-5), "q-2": 0.0, "q3": 1.0}


@needs_perl
def test_grades_that_the_program_refuses_are_named_before_anything_is_searched() -> None:
    shelf = Shelf({})
    with pytest.raises(InvalidInputError, match=r"cannot compute 'ERR@10' here, where a grade is 5 .* take 4 at most"):
        evaluate({"shelf": shelf}, graded(5), ["ERR@10"])
    assert shelf.asked == []


def test_a_program_that_is_missing_is_named() -> None:
    """In a process of its own: what was once found is not looked for again."""
    said = run_python("""
        import os
        os.environ["PATH"] = ""
        from retrieve_rerank.evaluation.measures import check_measures
        try:
            check_measures(["ERR@10"])
        except ValueError as error:
            print(error)
    """)
    assert "cannot compute 'ERR@10' here" in said
    assert "Install perl" in said


EVERY = (
    *("AP", "AP@5", "AP(rel=2)", "RR", "RR(rel=2)@10", "nDCG", "nDCG@5", "nDCG(gains={1:0,2:10})@5", "P@3", "R@5"),
    *("P(judged_only=True)@3", "Rprec", "Bpref", "infAP", "IPrec@0.2", "SetAP", "SetF", "SetF(beta=2.0)", "SetP"),
    *("SetP(relative=True)", "SetR", "Success@3", "Judged@5", "Judged", "Accuracy", "Accuracy@3", "Accuracy(rel=2)"),
    *("Compat", "Compat(p=0.8)", "Compat(p=0.5,normalize=False)"),
)


@pytest.mark.parametrize("seed", range(3))
def test_every_measure_has_the_numbers_of_ir_measures(tmp_path: Path, seed: int) -> None:
    """Each on its own, as ir-measures gives what has no value a 0 among others; by our runs' files as well."""
    draw = random.Random(seed)
    ids = [f"d{number}" for number in range(12)]
    qrels = {f"{q}": {p: draw.choice((0, 0, 1, 2, 3)) for p in draw.sample(ids, draw.randint(1, 8))} for q in range(6)}
    lists = {f"question {query}": draw.sample(ids, draw.randint(1, 10)) for query in qrels}
    lists["question 5"] = []
    texts = {name: f"text {name}" for name in ids}
    data = Dataset("drawn", texts, {query: f"question {query}" for query in qrels}, qrels)
    evaluation = evaluate({"shelf": Shelf(lists, texts)}, data, EVERY)
    (path,) = evaluation.to_runs(tmp_path)
    exported = list(ir_measures.read_trec_run(str(path)))
    scores = {query: {p: 90.0 - 7 * place for place, p in enumerate(lists[f"question {query}"])} for query in qrels}
    for name in EVERY:
        measure, expected = ir_measures.parse_measure(name), {}
        for query in qrels:
            judged, given = {query: qrels[query]}, {query: scores[query]} if scores[query] else {}
            for run in (given, [one for one in exported if one.query_id == query]):
                try:
                    found = {one.query_id: one.value for one in ir_measures.iter_calc([measure], judged, run)}
                except ZeroDivisionError:  # it has no value
                    found = {}
                assert expected.setdefault(query, found) == found
        values = {query: value for found in expected.values() for query, value in found.items()}
        assert evaluation["shelf"].per_query[str(measure)] == pytest.approx(values, abs=1e-9)
        assert evaluation["shelf"].means[str(measure)] == pytest.approx(sum(values.values()) / len(values), abs=1e-9)


def undefined(measure: str = "Accuracy") -> Evaluation:
    """One question has a relevant passage and others among its candidates, one only others, one only relevant ones."""
    texts = {name: f"text {name}" for name in "abcdef"}
    judged = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}}
    data = Dataset("toy", texts, {"q1": "one", "q2": "two", "q3": "three"}, judged)
    shelf = Shelf({"one": "dea", "two": "de", "three": "c"})
    search = RetrieveRerank(shelf, TableScorer(logits("adefbc")), fetch_k=3)
    return evaluate({"search": search, "other": Shelf({"one": "a", "two": "b", "three": "c"})}, data, [measure])


def test_a_question_for_which_a_measure_has_no_value_is_left_out(tmp_path: Path) -> None:
    evaluation = undefined()
    assert evaluation["first stage of search"].per_query["Accuracy"] == {"q1": 0.0}
    assert evaluation["search"].means["Accuracy"] == 1.0
    assert math.isnan(evaluation["other"].means["Accuracy"])
    change = evaluation.comparison("search")
    assert (change.difference, change.wins, change.ties, change.losses) == (1.0, 1, 0, 0)
    assert (change.low, change.high) == (1.0, 1.0)
    assert any(note.startswith("Accuracy has no value for 3 questions of some system") for note in evaluation.notes)
    assert not any("no value" in note for note in undefined("nDCG@10").notes)
    evaluation.to_json(tmp_path / "one.json")
    read = Evaluation.from_json(tmp_path / "one.json")
    for found in (evaluation, read):
        found.to_html(tmp_path / "report.html")
        assert "Accuracy" in found.to_markdown()
        assert repr(found).endswith("Accuracy +1.000>")


def test_a_measure_without_values_chooses_a_setting_all_the_same(tmp_path: Path) -> None:
    shelf, scorer = Shelf({"one": "cad", "two": "efb"}), TableScorer(logits("abcdef"))
    tuning = tune({"shelf": shelf}, {"table": scorer}, dataset(), measure="Accuracy", depths=[1, 3])
    one, three = tuning.curve("shelf", "table")
    assert (one.per_query, one.quality) == ({}, 0.0)
    assert three.per_query == {"q1": 0.5, "q2": 1.0}
    assert tuning.chosen == three
    tuning.to_html(tmp_path / "tuning.html")
