"""`rerank_weight`: both stages vote on the order."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from retrieve_rerank import Hit, InvalidInputError, Passage, RetrieveRerank, SearchResult
from retrieve_rerank.models.interpolation import interpolate
from retrieve_rerank.models.ranking import Ranking, as_ranker
from retrieve_rerank.retrieval.rerank import SecondStage
from tests.core.stubs import ListRetriever, TableScorer

INFINITE = math.inf


def hits(*scores: float | None, ranks: Sequence[int | None] | None = None) -> list[Hit]:
    places = range(1, len(scores) + 1) if ranks is None else ranks
    return [
        Hit(Passage(f"p{n}", f"text {n}"), rank=n + 1, score=math.nan, retrieval_rank=rank, retrieval_score=score)
        for n, (score, rank) in enumerate(zip(scores, places, strict=True))
    ]


def order(candidates: Sequence[Hit], logits: Sequence[float], weight: float) -> list[int]:
    return [place for place, _ in interpolate(candidates, logits, weight)]


def test_the_formula_by_hand() -> None:
    scores, logits = [0.9, 0.5, 0.1, 0.1], [-1.0, 3.0, 0.5, 0.0]
    z = [
        [(value - statistics.mean(values)) / statistics.pstdev(values) for value in values]
        for values in (logits, scores)
    ]
    for weight in (0.0, 0.3, 0.5, 0.99):
        found = dict(interpolate(hits(*scores), logits, weight))
        expected = [weight * a + (1 - weight) * b for a, b in zip(*z, strict=True)]
        assert [found[place] for place in range(4)] == pytest.approx(expected)
        assert list(found) == sorted(range(4), key=lambda place: -expected[place])


def test_the_ends_are_the_orders_of_the_two_stages_whatever_the_scores() -> None:
    logits = [0.0, 5.0, 5.0, -5.0]
    for scores in (
        (0.4, 0.3, 0.2, 0.1),
        (0.1, 0.2, 0.3, 0.4),  # distances
        (0.4, None, 0.2, 0.1),
        (None,) * 4,
        (math.nan, 0.3, 0.2, 0.1),
        (INFINITE, 0.3, 0.2, 0.1),
        (1.0,) * 4,
        (1e308, 1e300, -1e308, -1e308),
        (5e-324, 0.0, 0.0, -5e-324),
        (0.1 + 0.2, 0.3, 0.3, 0.3),
    ):
        assert order(hits(*scores), logits, 0.0) == [0, 1, 2, 3]
        assert interpolate(hits(*scores), logits, 1.0) == [(1, None), (2, None), (0, None), (3, None)]
        numbers = [combined for _, combined in interpolate(hits(*scores), logits, 0.5)]
        assert all(isinstance(number, float) and math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("scores", [(0.1, 0.2, 0.3), (None, None, None), (0.3, None, 0.1), (math.nan, 0.2, 0.1)])
def test_ranks_stand_in_for_scores_that_say_nothing(scores: tuple[Any, ...]) -> None:
    logits = [0.0, 1.0, 3.0]
    ranks = hits(*(1 / (60 + rank) for rank in (1, 2, 3)))
    assert interpolate(hits(*scores), logits, 0.4) == interpolate(ranks, logits, 0.4)


def test_the_first_stages_order_is_the_order_given_but_of_what_was_re_ranked_before() -> None:
    logits = [0.0, 0.0, 0.0]
    stale = hits(0.2, 0.3, 0.1, ranks=(2, 1, 3))  # from somewhere else, and put into another order since
    assert order(stale, logits, 0.0) == [0, 1, 2]
    again = [replace(hit, logit=1.0) for hit in stale[:2]] + stale[2:]  # a time budget left the last one out
    assert order(again, logits, 0.0) == [1, 0, 2]
    for ranks in ((1, 1, 2), (3, None, 2)):
        no_ranking = [replace(hit, logit=1.0) for hit in hits(None, None, None, ranks=ranks)]
        assert order(no_ranking, logits, 0.5) == [0, 1, 2]


def test_what_a_time_budget_left_out_follows_and_has_no_vote() -> None:
    ranking = Ranking("q", hits(0.9, 0.8, 0.7, 0.1), rerank_weight=0.5)
    ranking.put(1, 3.0)
    ranking.put(2, -1.0)
    ranked = ranking.hits()
    assert [(hit.passage.id, hit.combined_score) for hit in ranked] == [
        ("p1", 1.0),
        ("p2", -1.0),
        ("p0", None),
        ("p3", None),
    ]


def test_ties_one_and_none() -> None:
    assert interpolate([], [], 0.5) == []
    assert interpolate(hits(0.7), [3.0], 0.5) == [(0, 0.0)]
    assert interpolate(hits(0.5, 0.5, 0.5), [1.0, 1.0, 1.0], 0.5) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert order(hits(0.5, 0.5, 0.5), [1.0, 2.0, 1.0], 0.5) == [1, 0, 2]


def test_infinite_logits_lie_one_deviation_beyond_the_finite_ones() -> None:
    candidates = hits(0.4, 0.3, 0.2, 0.1)
    infinite = interpolate(candidates, [-INFINITE, 0.0, 2.0, INFINITE], 0.9)
    assert infinite == interpolate(candidates, [-1.0, 0.0, 2.0, 3.0], 0.9)
    assert order(candidates, [-INFINITE, INFINITE, INFINITE, -INFINITE], 0.9) == [1, 2, 0, 3]
    assert order(candidates, [INFINITE] * 4, 0.9) == [0, 1, 2, 3]


def test_every_call_takes_it_and_the_pipeline_keeps_its_own() -> None:
    texts, table = ["a", "b", "c"], {"a": -2.0, "b": 3.0, "c": 0.0}
    search = RetrieveRerank(ListRetriever(texts), TableScorer(table), rerank_weight=0.0, top_n=2)

    async def asked(**options: Any) -> list[SearchResult]:
        return [await search.asearch("q", **options), *await search.asearch_many(["q", "r"], **options)]

    for options, expected in (({}, "ab"), ({"rerank_weight": 1.0}, "bc"), ({"rerank_weight": 0.7}, "ba")):
        results = [search.search("q", **options), *search.search_many(["q", "r"], **options)]
        for result in [*results, *asyncio.run(asked(**options))]:
            assert "".join(hit.passage.text for hit in result) == expected
            assert [hit.rank for hit in result] == [1, 2]
            assert all((hit.combined_score is None) == (options.get("rerank_weight") == 1.0) for hit in result)
            assert {hit.passage.text: hit.logit for hit in result}.items() <= table.items()
    assert "rerank_weight=0" in repr(search)
    assert "(combined 1.2" in repr(search.search("q"))
    assert ", combined 1.2" in search.search("q").to_html()


def test_at_weight_one_a_result_is_as_it_was_to_the_bit() -> None:
    texts, table = ["a", "b", "c"], {"a": 1.0, "b": 3.0, "c": 1.0}
    ranker = as_ranker(TableScorer(table))
    before = ranker.rank("q", hits_of(texts))
    assert ranker.rank("q", hits_of(texts), rerank_weight=1) == before
    assert [hit.passage.text for hit in before] == ["b", "a", "c"]


def hits_of(texts: Sequence[str]) -> list[Hit]:
    return ListRetriever(texts).retrieve("q", len(texts))


def test_the_threshold_is_on_the_relevance_and_the_cut_comes_last() -> None:
    texts, table = ["a", "b", "c"], {"a": -2.0, "b": 3.0, "c": 0.5}
    stage = SecondStage(as_ranker(TableScorer(table)), top_n=1, score_threshold=0.5, rerank_weight=0.0)
    assert [hit.passage.text for hit in stage.run("q", hits_of(texts)).hits] == ["b"]
    everything = replace(stage, top_n=None, score_threshold=None).run("q", hits_of(texts)).hits
    kept = replace(stage, top_n=None).run("q", hits_of(texts)).hits
    assert [hit.combined_score for hit in kept] == [hit.combined_score for hit in everything[1:]]


def test_ranking_a_result_again_gives_the_same_order() -> None:
    ranker = as_ranker(TableScorer({"a": -2.0, "b": 3.0, "c": 0.5}))
    for weight in (0.0, 0.3, 0.6):
        once = ranker.rank("q", hits_of(["a", "b", "c"]), rerank_weight=weight)
        assert ranker.rank("q", once, rerank_weight=weight) == once
        assert all(hit.combined_score is None for hit in ranker.rank("q", once))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, "0.5", True, None, [0.5]])
def test_what_is_no_weight_is_refused(wrong: Any) -> None:
    retriever, scorer = ListRetriever(["a"]), TableScorer({"a": 1.0})
    with pytest.raises(InvalidInputError, match="rerank_weight must be a number from 0"):
        RetrieveRerank(retriever, scorer, rerank_weight=wrong)
    with pytest.raises(InvalidInputError, match="rerank_weight must be a number from 0"):
        SecondStage(as_ranker(scorer), rerank_weight=wrong)
    if wrong is not None:
        with pytest.raises(InvalidInputError, match="rerank_weight must be a number from 0"):
            RetrieveRerank(retriever, scorer).search("q", rerank_weight=wrong)
