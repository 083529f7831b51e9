"""What flows through the two stages."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from retrieve_rerank import AddReport, Encoder, Hit, Passage, Retriever, Scorer, SearchResult, Timings
from retrieve_rerank.errors import InvalidInputError
from tests.core.stubs import LetterEncoder, ListRetriever, TableScorer, found


def result(*texts: str, query: str = "what?", **more: Any) -> SearchResult:
    hits = tuple(found(texts))
    return SearchResult(query, hits, hits, Timings(0.25, 0.5), **more)


def test_passage_has_an_id_a_text_and_metadata_of_its_own() -> None:
    first, second = Passage("a", "text"), Passage("a", "text")
    assert (first.id, first.text, first.metadata) == ("a", "text", {})
    assert first == second
    assert first.metadata is not second.metadata
    assert Passage("a", "").text == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("", "text"), "non-empty string, got ''"),
        ((None, "text"), "got None"),
        ((5, "text"), "got 5"),
        (("a", None), "text of passage 'a'.*NoneType"),
        (("a", b"text"), "bytes"),
        (("a", "text", None), "metadata of passage 'a'.*NoneType"),
        (("a", "text", [("k", 1)]), "mapping, got list"),
    ],
)
def test_a_passage_that_is_none_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Passage(*arguments)


@pytest.mark.parametrize(
    "value", [Passage("a", "text"), Hit(Passage("a", "text"), 1, 0.5), AddReport(), Timings(0.1, 0.2), result("a")]
)
def test_values_are_frozen_and_have_slots(value: Any) -> None:
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)
    assert not hasattr(value, "__dict__")


def test_passages_can_be_collected_whatever_their_metadata() -> None:
    twins = {Passage("a", "text", {"tags": [1, 2]}), Passage("a", "text", {"tags": [1, 2]})}
    assert len(twins) == 1
    assert Passage("a", "text", {"x": 1}) != Passage("a", "text", {"x": 2})


def test_values_survive_pickling() -> None:
    hit = Hit(Passage("a", "text", {"x": [1]}), 2, 0.5, 3, 0.25, 1.5, (0, 4), True)
    assert pickle.loads(pickle.dumps(hit)) == hit


def test_a_hit_that_was_only_retrieved_has_no_logit() -> None:
    hit = Hit(Passage("a", "text"), rank=1, score=0.5)
    assert (hit.retrieval_rank, hit.retrieval_score, hit.logit, hit.window, hit.truncated) == (None,) * 4 + (False,)


def test_reports_add_up() -> None:
    assert AddReport(1, 2, 3) + AddReport(10, 20, 30) == AddReport(11, 22, 33)
    assert AddReport() == AddReport(0, 0, 0)


def test_a_result_is_a_sequence_of_its_hits() -> None:
    given = result("a", "b", "c")
    assert len(given) == 3
    assert [hit.passage.text for hit in given] == ["a", "b", "c"]
    assert [hit.passage.text for hit in reversed(given)] == ["c", "b", "a"]
    assert given[-1] is given.hits[2]
    assert list(given[:2]) == list(given.hits[:2])
    assert given.hits[1] in given
    assert given.index(given.hits[1]) == 1
    with pytest.raises(IndexError):
        given[3]


def test_an_empty_result_is_false_and_can_be_shown() -> None:
    empty = SearchResult("what?", (), tuple(found(["a"])), Timings(0.25, 0.5))
    assert not empty
    assert repr(empty) == "<SearchResult 'what?': 0 of 1 candidates, retrieve 0.250 s, re-rank 0.500 s>"
    assert "Nothing was kept." in empty._repr_html_()


def test_the_repr_is_short_however_much_was_found() -> None:
    long = result(*["long text " * 1000] * 50, query="word " * 1000, truncated_count=7, degraded="no time")
    shown = repr(long)
    assert len(shown) < 250
    assert "\n" not in shown
    assert "50 of 50 candidates, best 0.900" in shown
    assert "7 truncated" in shown
    assert "degraded: no time" in shown


@pytest.mark.parametrize(
    ("value", "protocol"), [(LetterEncoder(), Encoder), (TableScorer({}), Scorer), (ListRetriever([]), Retriever)]
)
def test_anything_of_the_right_shape_fits_a_protocol(value: object, protocol: type) -> None:
    assert isinstance(value, protocol)
    assert not isinstance(object(), protocol)
