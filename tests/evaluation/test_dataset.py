"""Datasets from plain dictionaries: what is kept, what is said, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import InvalidInputError, Passage
from retrieve_rerank.evaluation import Dataset
from tests.evaluation.stubs import TEXTS, dataset

QUERIES = {"q1": "one", "q2": "two"}
JUDGEMENTS = {"q1": {"a": 1}, "q2": {"b": 0, "c": 2}}


def test_dictionaries_and_passages_make_the_same_dataset() -> None:
    passages = [Passage(name, text) for name, text in TEXTS.items()]
    made = Dataset("toy", iter(passages), QUERIES, JUDGEMENTS)
    assert made == Dataset("toy", TEXTS, QUERIES, JUDGEMENTS)
    assert made.passages == tuple(passages)
    assert (made.queries, made.judgements, made.weak, made.notes) == (QUERIES, JUDGEMENTS, None, ())


def test_it_is_frozen_and_a_copy() -> None:
    queries, judgements = dict(QUERIES), {query: dict(scores) for query, scores in JUDGEMENTS.items()}
    made = Dataset("toy", TEXTS, queries, judgements)
    queries["q1"] = "changed"
    judgements["q1"]["a"] = 5
    assert made == Dataset("toy", TEXTS, QUERIES, JUDGEMENTS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]


def test_the_repr_counts_what_is_judged() -> None:
    assert repr(dataset()) == "<Dataset 'toy': 6 passages, 2 judged questions, 4 judgements>"
    assert repr(dataset(weak="by guess")).endswith("4 judgements, weak: by guess>")


@pytest.mark.parametrize(
    ("judged", "kept", "note"),
    [
        (
            {"q1": {"a": 1, "gone": 1, "lost": 0}},
            {"q1": {"a": 1, "gone": 1, "lost": 0}},
            "2 judgements are of passages that are not there and cannot be found",
        ),
        ({"q1": {"a": 1}, "q9": {"a": 1}, "q2": {}}, {"q1": {"a": 1}}, "1 judged question without a text left out"),
        (
            {"q1": {"a": 1}, "q2": {"b": 0}},
            {"q1": {"a": 1}, "q2": {"b": 0}},
            "1 question has no relevant passage: every system gets 0 on such a question",
        ),
    ],
)
def test_what_a_reader_should_know_is_said(judged: Any, kept: Any, note: str) -> None:
    made = Dataset("toy", TEXTS, QUERIES, judged)
    assert (made.judgements, made.notes) == (kept, (note,))
    assert note in repr(made)


def test_a_sample_is_seeded_and_keeps_the_passages() -> None:
    queries = {f"q{number}": "text" for number in range(50)}
    whole = Dataset("toy", TEXTS, queries, {query: {"a": 1} for query in queries}, weak="by guess")
    some = whole.sample(7)
    assert some == whole.sample(7)
    assert set(some.queries) == set(some.judgements) != set(whole.sample(7, seed=1).judgements)
    assert (len(some.judgements), some.passages, some.weak) == (7, whole.passages, "by guess")
    assert some.notes == ("7 of 50 judged questions, drawn with seed 0",)
    assert some.sample(3).notes == (
        "3 of 7 judged questions, drawn with seed 0",
        "of the 7: 7 of 50 judged questions, drawn with seed 0",
    )
    assert whole.sample(50) is whole.sample(1000) is whole
    with pytest.raises(InvalidInputError, match="n must be >= 1"):
        whole.sample(0)


def test_a_sample_whose_passages_are_all_missing_is_a_sample() -> None:
    queries = {f"q{number}": "text" for number in range(20)}
    judged = {query: {"a" if query == "q0" else "gone": 1} for query in queries} | {"nobody": {"a": 1}}
    whole = Dataset("toy", TEXTS, queries, judged)
    for seed in range(5):
        some = whole.sample(1, seed=seed)
        assert some.notes[-2:] == (
            "of the 20: 1 judged question without a text left out",
            "of the 20: 19 judgements are of passages that are not there and cannot be found",
        )
    assert any("q0" not in whole.sample(1, seed=seed).queries for seed in range(5))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": " "}, "the name of a dataset"),
        ({"passages": {}}, "needs passages"),
        ({"passages": "text"}, "passages must be a list"),
        ({"passages": ["text"]}, r"passages\[0\] must be a Passage"),
        ({"passages": [Passage("a", "x"), Passage("a", "y")]}, "id 'a' occurs twice"),
        ({"queries": ["one"]}, "queries must be a dict"),
        ({"queries": {1: "one"}}, "queries must be a dict of strings, got 1"),
        ({"queries": {"q1": None}}, "queries must be a dict of strings"),
        ({"queries": {"q1": " \n", "q2": "two"}}, "question 'q1' of dataset 'toy' is judged and empty"),
        ({"queries": {"7": "seven"}}, r"'7' are questions, and the judgements are of 'q1', 'q2'"),
        ({"queries": {}}, "none are questions"),
        ({"judgements": {}}, "no question of dataset 'toy' is judged"),
        ({"judgements": [("q1", "a", 1)]}, "judgements must be a dict"),
        ({"judgements": {"q1": ["a"]}}, "judgements must be a dict"),
        ({"judgements": {"q1": {"a": 0.5}}}, "whole number, got 'a': 0.5"),
        ({"judgements": {"q1": {"a": 10**10}}}, "passage .a. has the relevance 10000000000 .*100000 at most"),
        ({"judgements": {"q1": {"a": True}}}, "whole number"),
        ({"judgements": {"q1": {"a": np.bool_(True)}}}, "whole number"),
        ({"judgements": {"q1": {"a": np.float64(1)}}}, "whole number"),
        ({"judgements": {"q1": {"x": 1}}}, "'x' are judged, and the passages are 'a', 'b', 'c', …"),
    ],
)
def test_what_cannot_be_used_is_named(changed: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"name": "toy", "passages": TEXTS, "queries": QUERIES, "judgements": JUDGEMENTS}
    with pytest.raises(InvalidInputError, match=says):
        Dataset(**{**arguments, **changed})


def test_an_empty_question_that_nobody_judged_is_no_matter() -> None:
    assert Dataset("toy", TEXTS, {"q1": "one", "q2": ""}, {"q1": {"a": 1}}).judgements == {"q1": {"a": 1}}


def test_judgements_may_be_whole_numbers_of_numpy() -> None:
    judged: Any = {"q1": {"a": np.int64(2), "b": np.uint8(0)}}
    (scores,) = Dataset("toy", TEXTS, QUERIES, judged).judgements.values()
    assert [(passage, score, type(score)) for passage, score in scores.items()] == [("a", 2, int), ("b", 0, int)]
