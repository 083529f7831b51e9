"""Several queries at once: their pairs share batches, and every query gets what it would get alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import (
    BiEncoder,
    ChromaIndex,
    CrossEncoder,
    DegradedWarning,
    Hit,
    InvalidInputError,
    ModelError,
    RetrieveRerank,
    SearchResult,
    TruncationWarning,
)
from retrieve_rerank.models.ranking import ScorerRanker
from tests.core.stubs import ListRetriever, TableScorer, passages

QUERIES = ["capital of france", "bread", "what is the capital of italy", "rome"]
TEXTS = ["paris is the capital of france", "rome is the capital of italy", "bread is bread", "the word is the word"]


def test_every_query_gets_what_it_gets_alone(model: CrossEncoder) -> None:
    lists = [TEXTS, TEXTS[:1], TEXTS[1:], TEXTS[::-1]]
    together = model.rank_many(QUERIES, lists, top_n=2)
    for query, texts, hits in zip(QUERIES, lists, together, strict=True):
        alone = model.rank(query, texts, top_n=2)
        assert [hit.passage for hit in hits] == [hit.passage for hit in alone]
        assert [hit.logit for hit in hits] == pytest.approx([hit.logit for hit in alone], abs=1e-5)
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


def test_pairs_of_different_queries_share_a_batch(model: CrossEncoder, counted_rows: list[int]) -> None:
    model.rank_many(QUERIES, [[text] for text in TEXTS])
    assert counted_rows == [4]


def test_equal_texts_of_different_queries_are_different_pairs(model: CrossEncoder) -> None:
    first, second = model.rank_many(QUERIES[:2], [TEXTS[:1], TEXTS[:1]])
    assert first[0].logit != second[0].logit


def test_more_queries_than_are_read_at_once(model: CrossEncoder) -> None:
    many = [f"{query} {number}" for number in range(10) for query in QUERIES]
    found = model.rank_many(many, [TEXTS] * len(many), top_n=1)
    alone = [model.rank(query, TEXTS, top_n=1)[0].passage.text for query in many]
    assert [hits[0].passage.text for hits in found] == alone


def test_truncation_is_warned_of_once_for_all(model: CrossEncoder) -> None:
    long = "word " * 100
    with pytest.warns(TruncationWarning, match="2 of 5 passages") as caught:
        model.rank_many(QUERIES[:2], [[long, *TEXTS[:2]], [long, TEXTS[0]]])
    assert len(caught) == 1


def test_windows_of_several_queries(tiny_cross_encoder: Path) -> None:
    long = " ".join(TEXTS * 8)
    with CrossEncoder(tiny_cross_encoder, precision="float32", long_passages="windows") as model:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            together = model.rank_many(QUERIES, [[long, *TEXTS]] * len(QUERIES))
        alone = [model.rank(query, [long, *TEXTS]) for query in QUERIES]
    for left, right in zip(together, alone, strict=True):
        assert [hit.window for hit in left] == [hit.window for hit in right]
        assert [hit.logit for hit in left] == pytest.approx([hit.logit for hit in right], abs=1e-5)


def test_queries_without_passages_have_no_hits(model: CrossEncoder) -> None:
    assert model.rank_many([], []) == []
    assert model.rank_many(QUERIES[:2], [[], []]) == [[], []]
    assert [len(hits) for hits in model.rank_many(QUERIES[:2], [[], TEXTS])] == [0, 4]


def test_a_threshold_holds_for_each_query(model: CrossEncoder) -> None:
    for hits in model.rank_many(QUERIES, [TEXTS] * 4, score_threshold=0.5):
        assert all(hit.score >= 0.5 for hit in hits)


def test_any_scorer_can_rank_for_many_queries() -> None:
    ranker = ScorerRanker(TableScorer({"a": 1.0, "b": 2.0}))
    found = ranker.rank_many(["q", "r", "s"], [passages("a", "b"), [], ["a"]])
    assert [[hit.passage.text for hit in hits] for hits in found] == [["b", "a"], [], ["a"]]
    with pytest.raises(ModelError, match="NaN"):
        ScorerRanker(TableScorer({"a": float("nan")})).rank_many(["q"], [["a"]])


@pytest.mark.parametrize(
    ("queries", "lists", "message"),
    [
        (["a", "b"], [["x"]], "2 queries and 1 lists"),
        ("one query", [["x"]], "list of strings"),
        (["a", ""], [["x"], ["x"]], "empty"),
        (["a"], "text", "a list for each query"),
        (["a"], ["text"], "wrap one"),
        (["a"], [[None]], "must be a string"),
    ],
)
def test_unusable_input(model: CrossEncoder, queries: object, lists: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model.rank_many(queries, lists)  # type: ignore[arg-type]


def test_search_many_reads_all_queries_together(
    tiny_bi_encoder: Path, model: CrossEncoder, counted_rows: list[int]
) -> None:
    with ChromaIndex(BiEncoder(tiny_bi_encoder, precision="float32")) as index:
        index.add(passages(*TEXTS))
        search = RetrieveRerank(index, model, top_n=2)
        alone = [[hit.passage.id for hit in search.search(query)] for query in QUERIES]
        counted_rows.clear()
        together = search.search_many(QUERIES)
    assert [[hit.passage.id for hit in result] for result in together] == alone
    assert counted_rows == [4, 16]  # the queries, then all pairs
    assert [result.query for result in together] == QUERIES
    assert all(len(result.candidates) == 4 and result.timings.rerank_seconds > 0 for result in together)


async def test_async_gives_the_same(tiny_bi_encoder: Path, model: CrossEncoder, counted_rows: list[int]) -> None:
    lists = [TEXTS, [], TEXTS[1:], TEXTS[::-1]]
    assert await model.arank_many(QUERIES, lists, top_n=2) == model.rank_many(QUERIES, lists, top_n=2)
    scorer = ScorerRanker(TableScorer({"a": 1.0, "b": 2.0}))
    assert await scorer.arank_many(["q", "r"], [["a", "b"], []]) == scorer.rank_many(["q", "r"], [["a", "b"], []])
    with ChromaIndex(BiEncoder(tiny_bi_encoder, precision="float32")) as index:
        index.add(passages(*TEXTS))
        search = RetrieveRerank(index, model, top_n=2)
        counted_rows.clear()
        results = await search.asearch_many(QUERIES)
        assert counted_rows == [4, 16]
        assert [result.hits for result in results] == [result.hits for result in search.search_many(QUERIES)]


class Choosy(TableScorer):
    """Fails for one query."""

    def score(self, query: str, texts: Sequence[str]) -> Any:
        if query == "bad":
            raise RuntimeError("no answer to this one")
        return super().score(query, texts)


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_query_that_fails_degrades_alone(way: str) -> None:
    class Many(ListRetriever):
        def retrieve_many(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            return [self.hits[:k] for _ in queries]

    def pipeline(on_error: str) -> RetrieveRerank:
        return RetrieveRerank(Many(["a", "b"]), Choosy({"a": 1.0, "b": 2.0}), on_error=on_error)

    async def ask(search: RetrieveRerank) -> list[SearchResult]:
        queries = ["good", "bad", "better"]
        return search.search_many(queries) if way == "sync" else await search.asearch_many(queries)

    with pytest.raises(RuntimeError, match="no answer"):
        await ask(pipeline("raise"))
    with pytest.warns(DegradedWarning, match="no answer") as caught:
        results = await ask(pipeline("retrieval_order"))
    assert len(caught) == 1
    assert [result.degraded is not None for result in results] == [False, True, False]
    assert [[hit.passage.text for hit in result] for result in results] == [["b", "a"], ["a", "b"], ["b", "a"]]
