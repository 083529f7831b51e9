"""Weighted reciprocal rank fusion, against cases worked by hand and against the formula."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieve_rerank import Hit, InvalidInputError, Passage, fuse


def ranking(ids: str, scores: float = 0.5) -> list[Hit]:
    """Return hits with one-letter ids whose texts are the letters in upper case."""
    return [Hit(Passage(id_, id_.upper()), rank, scores, rank, scores) for rank, id_ in enumerate(ids, start=1)]


def ids(hits: list[Hit]) -> str:
    return "".join(hit.passage.id for hit in hits)


def test_worked_by_hand() -> None:
    hits = fuse([ranking("abc"), ranking("cbd")])
    # b: 1/62 + 1/62; c: 1/63 + 1/61, a hair more; a: 1/61; d: 1/63.
    assert ids(hits) == "cbad"
    assert [hit.score for hit in hits] == pytest.approx([1 / 63 + 1 / 61, 2 / 62, 1 / 61, 1 / 63], rel=1e-15)
    assert [hit.retrieval_ranks for hit in hits] == [(3, 1), (2, 2), (1, None), (None, 3)]
    assert [hit.retrieval_score for hit in hits] == [hit.score for hit in hits]
    assert [hit.rank for hit in hits] == [hit.retrieval_rank for hit in hits] == [1, 2, 3, 4]
    assert {hit.logit for hit in hits} == {None}


def test_weights_work() -> None:
    """F2, li#21444: the peer's rank fusion ignores them."""
    both = [ranking("ab"), ranking("ba")]
    assert ids(fuse(both, weights=[1, 2])) == "ba"
    assert ids(fuse(both, weights=[2, 1])) == "ab"
    assert fuse(both, weights=[0.25, 2])[0].score == pytest.approx(0.25 / 62 + 2 / 61)


def test_a_weight_of_0_counts_for_nothing_but_its_ranks_are_told() -> None:
    # z is in that list only, and is no result; its order would also break the tie of a and b the other way.
    hits = fuse([ranking("zba"), ranking("ab"), ranking("ba")], weights=[0, 1, 1])
    assert ids(hits) == "ab"
    assert [hit.retrieval_ranks for hit in hits] == [(3, 1, 2), (2, 2, 1)]
    assert [hit.score for hit in hits] == [hit.score for hit in fuse([ranking("ab"), ranking("ba")])]


def test_ties_keep_the_order_of_first_appearance() -> None:
    assert ids(fuse([ranking("ab"), ranking("ba")])) == "ab"
    assert ids(fuse([ranking("ba"), ranking("ab")])) == "ba"
    assert ids(fuse([ranking("a"), ranking("b"), ranking("c")])) == "abc"
    assert ids(fuse([ranking("xa"), ranking("yb")])) == "xyab"


def test_which_list_has_which_rank_makes_no_difference_to_a_tie() -> None:
    """Added up in the order of the lists, these sums differ in the last digit, and a would not be first."""
    assert max(1 / 4 + 1 / 5 + 1 / 3, 1 / 5 + 1 / 3 + 1 / 4) > 1 / 3 + 1 / 4 + 1 / 5
    hits = fuse([ranking(order) for order in ("xabc", "xcab", "xbca")], rrf_k=1)
    assert ids(hits) == "xabc"
    assert len({hit.score for hit in hits}) == 2


def test_equal_texts_are_two_passages_unless_merged_by_text() -> None:
    """C13: the peer merges by the text, and loses one of two documents."""
    one = [Hit(Passage("1", "same", {"from": "one"}), 1, 0.5), Hit(Passage("2", "same"), 2, 0.4)]
    two = [Hit(Passage("3", "same", {"from": "two"}), 1, 0.5)]
    assert sorted(ids(fuse([one, two]))) == ["1", "2", "3"]
    (merged,) = fuse([one, two], merge="text")
    assert merged.passage == one[0].passage
    assert merged.retrieval_ranks == (1, 1)


def test_the_passage_is_that_of_the_first_list_that_counts_and_has_it() -> None:
    versions = [[Hit(Passage("a", text), 1, 0.5)] for text in ("old", "new", "newest")]
    assert fuse(versions)[0].passage.text == "old"
    assert fuse(versions, weights=[0, 1, 1])[0].passage.text == "new"


LISTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8), min_size=1, max_size=4)


@given(LISTS, st.data())
def test_against_the_formula(lists: list[list[str]], data: Any) -> None:
    weight = st.one_of(st.integers(0, 5), st.floats(0, 10, allow_subnormal=False))
    weights = data.draw(st.lists(weight, min_size=len(lists), max_size=len(lists)).filter(any))
    rrf_k = data.draw(st.integers(0, 100))
    scores: dict[str, Fraction] = {}
    for weight, names in zip(weights, lists, strict=True):
        for name in dict.fromkeys(names if weight else []):
            rank = names.index(name) + 1
            scores[name] = scores.get(name, Fraction(0)) + Fraction(weight) / (rrf_k + rank)
    hits = fuse([ranking("".join(names)) for names in lists], weights=weights, rrf_k=rrf_k)
    assert {hit.passage.id for hit in hits} == set(scores)
    for hit in hits:
        assert hit.score == pytest.approx(float(scores[hit.passage.id]), rel=1e-12)
        assert hit.retrieval_ranks == tuple(
            names.index(hit.passage.id) + 1 if hit.passage.id in names else None for names in lists
        )
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    limit = data.draw(st.integers(1, 10))
    assert fuse([ranking("".join(names)) for names in lists], weights=weights, rrf_k=rrf_k, k=limit) == hits[:limit]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": [1]}, "one weight a retriever: 2, got 1"),
        ({"weights": [1, 1, 1]}, "got 3"),
        ({"weights": [0, 0]}, "above 0"),
        ({"weights": [1e308, 1e308]}, "must be finite"),
        *(
            ({"weights": [1, value]}, r"weights\[1\] must be a number >= 0")
            for value in (-1, math.nan, math.inf, True, "1", None)
        ),
        ({"weights": 5}, "one weight a retriever"),
        ({"weights": "11"}, "must be a number"),
        *(({"rrf_k": value}, "rrf_k must be a number >= 0") for value in (-1, math.nan, math.inf, True, None, "60")),
        *(({"k": value}, "k must be") for value in (0, -1, 1.5, True)),
        *(({"merge": value}, "merge must be 'id' or 'text'") for value in ("ids", None, ["id"])),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        fuse([ranking("ab"), ranking("b")], **options)


@pytest.mark.parametrize(
    ("rankings", "says"),
    [
        ("ab", "a list of lists of Hit, got str"),
        (None, "got NoneType"),
        (ranking("ab"), r"rankings\[0\] must be a list of Hit, got Hit"),
        ([ranking("a"), ["b"]], r"rankings\[1\] must be a list of Hit, but it holds a str"),
        ([ranking("a"), None], r"rankings\[1\] .* got NoneType"),
    ],
)
def test_rankings_that_are_none(rankings: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        fuse(rankings)
