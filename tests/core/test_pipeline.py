"""The two stages in a row."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest

from retrieve_rerank import (
    CrossEncoder,
    Hit,
    HybridRetriever,
    InvalidInputError,
    RetrieveRerank,
    SearchResult,
)
from retrieve_rerank.models.calibration import sigmoid
from tests.core.stubs import ListRetriever, SlowRetriever, TableScorer, found

TEXTS = ["a", "b", "c", "d"]
TABLE = {"a": -1.0, "b": 2.0, "c": 0.0, "d": 3.0}


def pipeline(**options: Any) -> RetrieveRerank:
    return RetrieveRerank(ListRetriever(TEXTS), TableScorer(TABLE), **options)


def found_texts(result: Sequence[Hit]) -> list[str]:
    return [hit.passage.text for hit in result]


def without_times(result: SearchResult) -> tuple[Any, ...]:
    return result.query, result.hits, result.candidates, result.truncated_count, result.degraded


class Everything(ListRetriever):
    """A first stage with all the ways in."""

    async def aretrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        return self.retrieve(query, k, **options)

    def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append(("; ".join(queries), k, {"many": True}))
        return [self.hits[:k] for _ in queries]


def test_the_second_stage_decides_and_the_first_is_remembered() -> None:
    result = pipeline(top_n=3).search("q")
    assert result.query == "q"
    assert found_texts(result) == ["d", "b", "c"]
    assert [hit.rank for hit in result] == [1, 2, 3]
    assert [hit.retrieval_rank for hit in result] == [4, 2, 3]
    first = found(TEXTS)
    assert [hit.retrieval_score for hit in result] == [first[place].retrieval_score for place in (3, 1, 2)]
    assert [hit.score for hit in result] == [sigmoid(3.0), sigmoid(2.0), 0.5]
    assert found_texts(result.candidates) == TEXTS
    assert list(result.candidates) == found(TEXTS)
    assert (result.truncated_count, result.degraded) == (0, None)


def test_fetch_k_goes_to_the_first_stage_and_top_n_cuts_the_result() -> None:
    search = pipeline(fetch_k=3, top_n=2)
    result = search.search("q")
    assert search.retriever.asked == [("q", 3, {})]
    assert found_texts(result.candidates) == ["a", "b", "c"]
    assert found_texts(result) == ["b", "c"]
    assert len(pipeline(fetch_k=100).search("q")) == 4
    assert len(pipeline(top_n=None).search("q")) == 4
    assert search.cross_encoder.asked == [("q", ["a", "b", "c"])]  # all once, in one go


class Strict:
    def retrieve(self, query: str, k: int, *, where: Any = None) -> list[Hit]:
        return found(TEXTS)[:k]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"wher": {}}, "^Strict has no option 'wher' in a search; it takes: where$"),
        (
            {"k": 3},
            "no option 'k' in a search; .* hits a search returns is top_n, .* candidates it finds is fetch_k of",
        ),
        ({"fetch_k": 3}, "has no option 'fetch_k' in a search; it takes: where; it is set where the pipeline is made"),
    ],
)
async def test_an_option_that_the_first_stage_does_not_have(options: dict[str, Any], says: str) -> None:
    """It was a TypeError about a function inside."""
    for retriever in (Strict(), HybridRetriever([Strict(), Strict()])):
        search = RetrieveRerank(retriever, TableScorer(TABLE))
        if retriever.__class__ is HybridRetriever and "k" in options:
            says = "^HybridRetriever has no option 'k'"
        with pytest.raises(InvalidInputError, match=says):
            search.search("q", **options)
        with pytest.raises(InvalidInputError, match=says):
            await search.asearch("q", **options)
        with pytest.raises(InvalidInputError, match=says):
            search.search_many(["q"], **options)


async def test_a_first_stage_that_does_not_look_at_its_depth_is_told_of_once() -> None:
    class Fixed(ListRetriever):
        def retrieve(self, query: str, k: int = 5, **options: object) -> list[Hit]:
            return super().retrieve(query, 2, **options)

    class FixedMany(Fixed):
        def retrieve_many(self, queries: Sequence[str], k: int = 5) -> list[list[Hit]]:
            return [self.retrieve(query) for query in queries]

    for retriever in (Fixed(TEXTS), FixedMany(TEXTS), HybridRetriever([Fixed(TEXTS)])):
        search = RetrieveRerank(retriever, TableScorer(TABLE), fetch_k=9)
        with pytest.warns(UserWarning, match="Fixed(Many)? found 2 documents of the 9 that are looked for"):
            search.search("q")
        assert len(search.search_many(["q", "r"])) == len(await search.asearch("q")) == 2  # warnings are errors here
    assert RetrieveRerank(Fixed(TEXTS), TableScorer(TABLE), fetch_k=2).search("q")  # as many as were looked for
    assert RetrieveRerank(ListRetriever(TEXTS), TableScorer(TABLE), fetch_k=9).search("q")  # there are no more


async def test_an_option_must_be_one_of_the_method_that_is_asked() -> None:
    """The sync method takes the filter; the others would have found what it keeps out, or raised a TypeError."""

    class Uneven(Strict):
        async def aretrieve(self, query: str, k: int) -> list[Hit]:
            return found(TEXTS)[:k]

        def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [found(TEXTS)[:k] for _ in queries]

    search = RetrieveRerank(Uneven(), TableScorer(TABLE))
    assert len(search.search("q", where={"n": 1})) == 4
    refused = pytest.raises(InvalidInputError, match=r"^Uneven has no option 'where' in a search; it takes: none$")
    with refused:
        await search.asearch("q", where={"n": 1})
    with refused:
        search.search("q", rewrites=["r"], where={"n": 1})
    with refused:
        search.search_many(["q", "r"], where={"n": 1})


def test_the_defaults_are_the_documented_ones() -> None:
    search = pipeline()
    assert (search.fetch_k, search.top_n, search.score_threshold) == (100, 5, None)


@pytest.mark.parametrize("part", ["retriever", "cross_encoder"])
def test_a_part_is_not_exchanged(part: str) -> None:
    """It changed the repr, and the search went on with the old one."""
    search = pipeline()
    with pytest.raises(AttributeError, match=part):
        setattr(search, part, getattr(pipeline(), part))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, "dbca"), (0.0, "dbca"), (0.5, "dbc"), (0.9, "d"), (0.99, ""), (1.0, "")],
)
def test_the_threshold_can_empty_the_result_and_the_candidates_stay(threshold: float | None, expected: str) -> None:
    result = pipeline(score_threshold=threshold).search("q")
    assert "".join(found_texts(result)) == expected
    assert found_texts(result.candidates) == TEXTS
    assert bool(result) is bool(expected)
    assert repr(result).startswith(f"<SearchResult 'q': {len(expected)} of 4 candidates")


@pytest.mark.parametrize("kind", [ListRetriever, Everything])
async def test_options_of_a_search_go_to_the_first_stage(kind: type[ListRetriever]) -> None:
    retriever = kind(TEXTS)
    search = RetrieveRerank(retriever, TableScorer(TABLE), fetch_k=7)
    search.search("q", where={"x": 1}, flag=True)
    await search.asearch("r", where={"x": 2})
    assert retriever.asked == [("q", 7, {"where": {"x": 1}, "flag": True}), ("r", 7, {"where": {"x": 2}})]


async def test_an_option_may_have_any_name() -> None:
    retriever = ListRetriever(TEXTS)
    await RetrieveRerank(retriever, TableScorer(TABLE)).asearch("q", call=1)
    assert retriever.asked[0][2] == {"call": 1}


@pytest.mark.parametrize("kind", [ListRetriever, Everything])
async def test_every_way_in_finds_the_same(kind: type[ListRetriever]) -> None:
    search = RetrieveRerank(kind(TEXTS), TableScorer(TABLE), top_n=2, score_threshold=0.1)
    queries = ["one", "two", "three"]
    single = [without_times(search.search(query)) for query in queries]
    assert [without_times(result) for result in search.search_many(queries)] == single
    assert [without_times(await search.asearch(query)) for query in queries] == single
    assert [without_times(result) for result in search.search_many(query for query in queries)] == single
    assert search.search_many([]) == []


def test_a_first_stage_that_loses_a_query_is_an_error() -> None:
    class Forgetful(Everything):
        def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return super().retrieve_many(queries, k)[1:]

    with pytest.raises(ValueError, match="was given 2 queries and returned 1"):
        RetrieveRerank(Forgetful(TEXTS), TableScorer(TABLE)).search_many(["a", "b"])


async def test_times_are_those_of_each_stage() -> None:
    search = RetrieveRerank(SlowRetriever(TEXTS, 0.1), TableScorer(TABLE, seconds=0.2))
    start = time.perf_counter()
    results = [search.search("q"), await search.asearch("q"), *search.search_many(["q"])]
    for result in results:
        assert result.timings.retrieve_seconds > 0.09
        assert result.timings.rerank_seconds > 0.19
    assert time.perf_counter() - start > sum(
        result.timings.retrieve_seconds + result.timings.rerank_seconds for result in results
    )


async def test_searches_do_not_wait_for_one_another_in_a_first_stage_that_is_not_async() -> None:
    search = RetrieveRerank(SlowRetriever(TEXTS, 0.2), TableScorer(TABLE))
    start = time.perf_counter()
    results = await asyncio.gather(*(search.asearch("q") for _ in range(8)))
    assert time.perf_counter() - start < 1.0  # one after another they take 1.6 s
    assert {found_texts(result)[0] for result in results} == {found_texts(search.search("q"))[0]}


async def test_a_first_stage_that_hung_once_does_not_block_the_next_search() -> None:
    late = SlowRetriever(TEXTS, hangs=3)
    search = RetrieveRerank(late, TableScorer(TABLE))
    try:
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(search.asearch("q"), 0.05)
        assert len(await asyncio.wait_for(search.asearch("q"), 10)) > 0
    finally:
        late.release.set()


@pytest.mark.parametrize("query", ["", "  ", None, 5, "\ud800"])
async def test_an_unusable_query_asks_nobody(query: Any) -> None:
    search = pipeline()
    for call in (search.search, lambda query: search.search_many(["fine", query])):
        with pytest.raises(InvalidInputError, match=r"query|queries\[1\]"):
            call(query)
    with pytest.raises(InvalidInputError, match="query"):
        await search.asearch(query)
    assert search.retriever.asked == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({name: value}, name) for name, value in itertools.product(("fetch_k", "top_n"), (0, -1, True, 1.5, "5"))),
        ({"fetch_k": None}, "fetch_k"),
        *(({"score_threshold": value}, "score_threshold") for value in (2, -0.1, float("nan"), True, "0.5")),
        *(({"time_budget": value}, "time_budget") for value in (0, -1, float("nan"), "1")),
        *(({"on_error": value}, "on_error") for value in ("ignore", None)),
    ],
)
def test_unusable_settings(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        pipeline(**options)


@pytest.mark.parametrize("part", [None, "a name", object()])
def test_parts_that_cannot_do_it(part: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"must have retrieve\(query, k\)"):
        RetrieveRerank(part, TableScorer({}))
    with pytest.raises(InvalidInputError, match=r"must have score\(query, texts\)"):
        RetrieveRerank(ListRetriever([]), part)


def test_the_repr_shows_the_settings() -> None:
    shown = repr(RetrieveRerank(ListRetriever([]), CrossEncoder("a/b"), fetch_k=30, top_n=3, score_threshold=0.25))
    assert "CrossEncoder('a/b', not loaded), fetch_k=30, top_n=3, score_threshold=0.25" in shown
