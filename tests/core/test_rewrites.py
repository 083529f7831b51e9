"""More than one query: the same in other words, and many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from retrieve_rerank import ChromaIndex, Hit, InvalidInputError, Passage, RetrieveRerank, fuse
from tests.core.stubs import LetterEncoder, ListRetriever, TableScorer, found

TABLE = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}


class ByQuery(ListRetriever):
    """Finds the letters of the query, in its order."""

    def retrieve(self, query: str, k: int, **options: object) -> list[Hit]:
        self.asked.append((query, k, options))
        return found(list(query))[:k]


class Together(ByQuery):
    """Takes many queries, and no single one."""

    def retrieve_many(self, queries: Sequence[str], k: int, **options: object) -> list[list[Hit]]:
        self.asked.append(("+".join(queries), k, options))
        return [found(list(query))[:k] for query in queries]


class TogetherAsync(Together):
    async def aretrieve_many(self, queries: Sequence[str], k: int, **options: object) -> list[list[Hit]]:
        self.asked.append(("a" + "+".join(queries), k, options))
        return [found(list(query))[:k] for query in queries]


async def searches(search: RetrieveRerank, query: str, **options: Any) -> list[Any]:
    return [search.search(query, **options), await search.asearch(query, **options)]


@pytest.mark.parametrize("kind", [ByQuery, Together, TogetherAsync])
async def test_rewrites_are_fused_and_scored_against_the_query(kind: type[ListRetriever]) -> None:
    scorer = TableScorer(TABLE)
    retriever = kind([])
    search = RetrieveRerank(retriever, scorer, fetch_k=3, top_n=2)
    expected = fuse([found(list(text)) for text in ("ab", "bc", "cbd")], k=3)
    for result in await searches(search, "ab", rewrites=["bc", "cbd"], where=1):
        assert result.query == "ab"
        assert list(result.candidates) == expected
        assert [hit.passage.text for hit in result] == ["c", "b"]
        assert [hit.retrieval_ranks for hit in result] == [(None, 2, 1), (2, 1, 2)]
        assert [hit.retrieval_score for hit in result] == pytest.approx([1 / 62 + 1 / 61, 1 / 62 + 1 / 61 + 1 / 62])
    assert {query for query, _ in scorer.asked} == {"ab"}
    assert all(asked[1:] == (3, {"where": 1}) for asked in retriever.asked)


def test_queries_go_to_the_retriever_together_where_it_can() -> None:
    retriever = Together([])
    RetrieveRerank(retriever, TableScorer(TABLE)).search("a", rewrites=["b", "c"])
    assert retriever.asked == [("a+b+c", 100, {})]


async def test_no_rewrites_is_a_plain_search() -> None:
    retriever = TogetherAsync([])
    results = await searches(RetrieveRerank(retriever, TableScorer(TABLE)), "ab", rewrites=[])
    assert [asked[0] for asked in retriever.asked] == ["ab", "ab"]
    assert {result.candidates for result in results} == {tuple(found(["a", "b"]))}


@pytest.mark.parametrize("rewrites", ["one text", ["fine", ""], [None], None, 5])
async def test_unusable_rewrites_ask_nobody(rewrites: Any) -> None:
    retriever = Together([])
    search = RetrieveRerank(retriever, TableScorer(TABLE))
    with pytest.raises(InvalidInputError, match="rewrites"):
        search.search("a", rewrites=rewrites)
    with pytest.raises(InvalidInputError, match="rewrites"):
        await search.asearch("a", rewrites=rewrites)
    assert retriever.asked == []


async def test_many_searches_take_no_rewrites() -> None:
    for retriever in (ByQuery([]), Together([])):
        search = RetrieveRerank(retriever, TableScorer(TABLE))
        with pytest.raises(InvalidInputError, match="many queries take no rewrites"):
            search.search_many(["a", "b"], rewrites=[["c"], []])
        with pytest.raises(InvalidInputError, match="many queries take no rewrites"):
            await search.asearch_many(["a", "b"], rewrites=[["c"], []])
        assert retriever.asked == []


async def test_rewrites_over_an_index_cost_one_encoding() -> None:
    class Counting(LetterEncoder):
        together: list[list[str]]

        def encode_queries(self, texts: Sequence[str]) -> Any:
            self.together.append(list(texts))
            return super().encode_queries(texts)

    encoder = Counting()
    encoder.together = []
    with ChromaIndex(encoder) as index:
        index.add([Passage(text, text, {"n": number}) for number, text in enumerate(TABLE)])
        search = RetrieveRerank(index, TableScorer(TABLE), fetch_k=2)
        expected = fuse([index.retrieve(query, 2, where={"n": {"$gt": 0}}) for query in ("ab", "b", "c")], k=2)
        encoder.together.clear()
        for result in await searches(search, "ab", rewrites=["b", "c"], where={"n": {"$gt": 0}}):
            assert list(result.candidates) == expected
        assert encoder.together == [["ab", "b", "c"]] * 2


@pytest.mark.parametrize(
    ("kind", "asked", "awaited"), [(ByQuery, ["ab", "cd"], ["ab", "cd"]), (TogetherAsync, ["ab+cd"], ["aab+cd"])]
)
async def test_many_searches_take_options_and_go_to_the_retriever_together_where_it_can(
    kind: type[ListRetriever], asked: list[str], awaited: list[str]
) -> None:
    retriever = kind([])
    search = RetrieveRerank(retriever, TableScorer(TABLE), fetch_k=2, top_n=1)
    results = [*search.search_many(["ab", "cd"], where=1), *await search.asearch_many(["ab", "cd"], where=1)]
    assert [result[0].passage.text for result in results] == ["b", "d"] * 2
    assert retriever.asked == [(query, 2, {"where": 1}) for query in [*asked, *awaited]]
    assert search.search_many([]) == await search.asearch_many([]) == []
    for results in (search.search_many(["ab"], top_n=2), await search.asearch_many(["ab"], top_n=2)):
        assert [len(result) for result in results] == [2]
