"""Bad input is answered in the same words at every door."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import BM25Index, ChromaIndex, HybridRetriever, Passage, RetrieveRerank, SavedSetting, fuse
from retrieve_rerank._files import check_path
from retrieve_rerank.checks import (
    check_choice,
    check_count,
    check_encodable,
    check_flag,
    check_prompt,
    check_queries,
    check_query,
    check_seconds,
    check_texts,
    check_threshold,
)
from retrieve_rerank.errors import IndexMismatchError, InvalidInputError, RemoteError
from retrieve_rerank.evaluation import Dataset
from retrieve_rerank.models.ranking import as_ranker
from tests.core.stubs import LetterEncoder, ListRetriever, TableScorer
from tests.odd_values import Unshown, nested


@pytest.mark.parametrize("query", ["a", " padded ", "two\nlines", "日本語", "👍🏽", "\0"])
def test_a_query_comes_back_as_it_is(query: str) -> None:
    assert check_query(query) == query


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "empty"),
        (" \t\n\u00a0\u3000", "empty"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (5, "int"),
        (["a"], "list"),
        ("half \ud800", "surrogate"),
    ],
)
def test_an_unusable_query_is_refused(query: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        check_query(query)


@pytest.mark.parametrize("texts", [["a", ""], ("a", ""), iter(["a", ""]), np.array(["a", ""]), {"a": 1, "": 2}.keys()])
def test_any_iterable_of_strings_becomes_a_list_of_our_own(texts: Any) -> None:
    found = check_texts(texts)
    assert found == ["a", ""]
    assert found is not texts


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ("one text", "wrap it"),
        (b"bytes", "wrap it"),
        (None, "NoneType"),
        (3, "int"),
        (["a", None], r"texts\[1\].*NoneType"),
        (["a", "b", 3.5], r"texts\[2\].*float"),
        ([b"a"], r"texts\[0\].*bytes"),
        ([["a"]], r"texts\[0\].*list"),
        ([math.nan], r"texts\[0\].*float"),
        (["a", "\udfff"], r"texts\[1\].*surrogate"),
        ({"id": "text"}, "texts must be a list of strings, got dict"),  # its keys were taken
    ],
)
def test_unusable_texts_are_refused_with_their_position(texts: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        check_texts(texts)
    with pytest.raises(InvalidInputError, match=says.replace("texts", "ids")):
        check_texts(texts, "ids")


def test_a_mapping_is_no_list_of_queries() -> None:
    with pytest.raises(InvalidInputError, match="queries must be a list of strings, got dict"):
        check_queries({"q1": "text"})


def test_a_lone_surrogate_is_shown_with_its_place_and_the_repair() -> None:
    with pytest.raises(InvalidInputError, match=r"'\\ud83d' at character 3") as caught:
        check_encodable("abc\ud83d", "the text")
    assert "encode('utf-8', 'replace')" in str(caught.value)
    check_encodable("whole pair: \U0001f600", "the text")


COUNT, SECONDS = partial(check_count, name="k"), partial(check_seconds, name="time_budget")
FLAG = partial(check_flag, name="it")


@pytest.mark.parametrize(
    ("check", "value", "kind"),
    [
        *((COUNT, value, int) for value in (1, 7, np.int64(1), np.int32(3), np.uint8(255), 10**18)),
        *((check_threshold, value, float) for value in (0, 0.0, 1, 1.0, 0.5, np.float32(0.5), Fraction(1, 2))),
        *((SECONDS, value, float) for value in (0.001, 1, np.float32(0.5), Fraction(1, 2), 1e12)),
        *((FLAG, value, bool) for value in (True, False, 0, 1, np.bool_(1))),
    ],
)
def test_numbers_become_plain_ones(check: Any, value: Any, kind: type) -> None:
    found = check(value)
    assert (found, type(found)) == (kind(value), kind)
    assert check_threshold(None) is SECONDS(None) is None


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        *((COUNT, value, f"k must be >= 1, got {int(value)}") for value in (0, -1, np.int64(0), -(10**30))),
        *((COUNT, value, "k must be a whole number") for value in (True, None, 1.0, "3", math.inf, math.nan, [1])),
        (COUNT, Decimal(3), "k must be a whole number"),
        *((check_threshold, value, r"score_threshold.*\[0, 1\]") for value in (math.nan, 2, -0.1, 1.0001, True, "0.5")),
        *((check_threshold, value, r"score_threshold.*\[0, 1\]") for value in (math.inf, [0.5], np.float32("nan"))),
        *(
            (SECONDS, value, "time_budget must be a number of seconds above 0")
            for value in (0, 0.0, -1, True, "1", [1])
        ),
        *((SECONDS, value, "time_budget must be a number of seconds above 0") for value in (math.nan, math.inf)),
        *((FLAG, value, "it must be True or False, got") for value in (None, "false", "", 2, 1.0, [], Unshown())),
        *((FLAG, np.array(value), "it must be True or False, got") for value in (True, [0, 1])),
        *((check_threshold, value, "score_threshold") for value in (10**400, Decimal(1), 1j, np.bool_(1))),
        *((SECONDS, value, "time_budget") for value in (10**400, Fraction(10**400, 3), Decimal(1), 1j, np.bool_(1))),
    ],
)
def test_what_is_no_such_number_is_refused(check: Any, value: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        check(value)


HUGE = 10**5_000  # more digits than Python writes


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_query(" " * 10**6),
        lambda: check_query("a" * 10**6 + "\ud800", "the query " * 500),
        lambda: check_count(-HUGE, "k"),
        lambda: check_count("9" * 10**6, "k"),  # type: ignore[arg-type]
        lambda: check_count(Unshown(), "k"),  # type: ignore[arg-type]
        lambda: check_threshold(HUGE),
        lambda: check_threshold(-(10**400)),
        lambda: check_seconds(10**400, "time_budget"),
        lambda: check_seconds(HUGE, "time_budget"),
        lambda: check_seconds([0.0] * 10**6, "time_budget"),  # type: ignore[arg-type]
        lambda: fuse([[], []], weights=[1, 10**400]),
        lambda: fuse([[], []], weights=[1, -HUGE]),
        lambda: fuse([[], []], rrf_k=HUGE),
        lambda: Passage("i" * 10**6, 5),  # type: ignore[arg-type]
        lambda: as_ranker(TableScorer({})).rank("q", [Passage("i" * 10**6, "\ud800")]),
        lambda: SavedSetting("a" * 10**6, 5, 7),  # type: ignore[arg-type]
        lambda: RetrieveRerank(ListRetriever([]), TableScorer({}), on_error="x" * 10**6),  # type: ignore[arg-type]
        lambda: HybridRetriever(np.array(3)),  # type: ignore[arg-type]
        lambda: fuse(np.array(3)),  # type: ignore[arg-type]
        lambda: fuse([[]], weights=np.array(3)),
        lambda: Dataset("d", np.array(3), {}, {}),  # type: ignore[arg-type]
        lambda: BM25Index().add(np.array(3)),  # type: ignore[arg-type]
        lambda: BM25Index().add([], show_progress=np.zeros(2)),
        lambda: BM25Index(path=Unshown()),  # type: ignore[arg-type]
        lambda: ChromaIndex(LetterEncoder(), path=Unshown()),  # type: ignore[arg-type]
        lambda: ChromaIndex(LetterEncoder(), path="~nobody-of-this-name/index"),
    ],
)
def test_whatever_is_given_the_error_is_ours_and_short(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert len(str(caught.value)) < 2_000


ODD = [Unshown(), nested("list", 5_000), -(10**5_000), {"a": nested("list", 900)}, ["x" * 10**5] * 100, b"\0" * 10**6]


@pytest.mark.parametrize("at", range(len(ODD)))
@pytest.mark.parametrize("check", [check_count, check_seconds, check_prompt, partial(check_choice, choices=["a", "b"])])
def test_a_message_is_short_whatever_was_given(at: int, check: Callable[..., object]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check(ODD[at], name="it")
    assert len(str(caught.value).encode()) < 1_000


def test_a_very_long_message_loses_its_middle() -> None:
    for kind in (InvalidInputError, RemoteError, IndexMismatchError):
        message = str(kind(f"given {'é' * 10**6}, expected this; do that"))
        assert len(message.encode()) < 2_000
        assert message.startswith("given é")
        assert message.endswith("expected this; do that")


@pytest.mark.parametrize("path", [None, 5, "", "nul\0byte", "\ud800", "x" * 300, "a/" * 3_000, b"bytes", Unshown()])
def test_a_name_that_no_file_has_is_no_path(path: Any) -> None:
    with pytest.raises(InvalidInputError, match="the file must be a path"):
        check_path(path, "the file")
