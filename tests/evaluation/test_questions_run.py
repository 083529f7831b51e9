"""What becomes of single questions while an evaluation runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError, Passage, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate, sample_questions, tune
from tests.core.stubs import TableScorer
from tests.evaluation.stubs import TEXTS, Shelf, dataset, logits


def test_a_question_that_is_too_long_is_named(tiny_cross_encoder: Path) -> None:
    texts = {"q1": "paris", "q2": "what is the bread " * 30}
    shelf = Shelf(dict.fromkeys(texts.values(), "abc"))
    long = Dataset("long", TEXTS, texts, {"q1": {"a": 1}, "q2": {"b": 1}})
    with (
        CrossEncoder(tiny_cross_encoder) as model,
        pytest.raises(InvalidInputError, match=r"^question 'q2': the query has \d+ tokens .* shorten the query$"),
    ):
        evaluate({"search": RetrieveRerank(shelf, model)}, long)


def test_a_question_that_is_a_passage_does_not_find_itself() -> None:
    """As in ArguAna: passage a is question a. b is judged for itself, c asks what a asks, d is called so by chance."""
    queries = {"a": "one", "b": "two", "c": "one", "d": "six"}
    texts = {**TEXTS, "a": "A title. one", "b": "two"}
    data = Dataset("arguments", texts, queries, {"a": {"b": 1}, "b": {"b": 1}, "c": {"d": 1}, "d": {"a": 1}})
    shelf = Shelf({"one": "acbd", "two": "bad", "six": "da"})
    search = RetrieveRerank(shelf, TableScorer(logits("abcdef")), fetch_k=2)
    evaluation = evaluate({"search": search}, data, ["RR@10"])
    first, reranked = evaluation.systems
    # As deep as was asked for.
    assert first.run == {"a": ("c", "b"), "b": ("b", "a"), "c": ("a", "c"), "d": ("d", "a")}
    assert reranked.run == {"a": ("b", "c"), "b": ("a", "b"), "c": ("a", "c"), "d": ("a", "d")}
    assert first.per_query["RR@10"] == {"a": 0.5, "b": 1.0, "c": 0.0, "d": 0.5}
    note = "1 question is a passage and found itself, not judged for it: left out, as in BEIR."
    assert note in evaluation.notes
    tuning = tune({"shelf": shelf}, TableScorer(logits("abcdef")), data, measure="RR@10", depths=[1, 2])
    assert tuning.settings[0].per_query == first.per_query["RR@10"]
    assert note in tuning.notes


def test_questions_made_of_passages_find_them() -> None:
    text = "Bread is made from flour and water. Most loaves are leavened with yeast, which needs an hour."
    made = sample_questions([Passage("bread", text)])
    shelf = Shelf({made.queries["bread"]: ["bread"]}, {"bread": made.passages[0].text})
    evaluation = evaluate({"shelf": shelf}, made, ["RR@10"])
    assert evaluation["shelf"].means["RR@10"] == 1.0
    assert not any("found itself" in note for note in evaluation.notes)


async def _later() -> int:
    return 1


@pytest.mark.parametrize("count", [lambda text: 1, _later, lambda: "many", lambda: 1 / 0, 3])
def test_a_count_of_another_kind_ends_no_evaluation(count: object) -> None:
    shelf = Shelf({"one": "cad", "two": "efb"})
    shelf.count = count  # type: ignore[attr-defined]
    evaluation = evaluate({"shelf": shelf}, dataset(), ["RR@10"])
    assert evaluation["shelf"].means["RR@10"] == pytest.approx(5 / 12)
    assert not any("it cannot find the others" in note for note in evaluation.notes)
    shelf.count = lambda: 4  # type: ignore[attr-defined]
    assert any("it cannot find the others" in note for note in evaluate({"shelf": shelf}, dataset()).notes)
