"""Both stages in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError, fuse
from retrieve_rerank.testing import TableScorer
from tests.core.stubs import found
from tests.frameworks.adapters import Door, Seen, ids, letters

TEXTS = [("0", "a a a"), ("1", "a a b"), ("2", "c"), ("3", "b b a")]
LOGITS = {"a a a": -1.0, "a a b": 2.0, "c": 4.0, "b b a": 1.0}


async def test_candidates_are_fetched_ordered_and_cut(door: Door) -> None:
    """C11: in the stock pipeline k and top_n know nothing of each other."""
    first, reranker = door.dense(TEXTS, k=1), door.reranker(door.table(LOGITS), top_n=1)
    expected = [
        Seen("1", "a a b", 2.0, 2, (), pytest.approx(0.88079708, abs=1e-8), 2.0, 1),
        Seen("3", "b b a", 1.0, 3, (), pytest.approx(0.73105858, abs=1e-8), 1.0, 2),
    ]
    assert await door.ask(door.retriever(first, reranker, fetch_k=3, top_n=2), "a") == [expected, expected]
    assert [ids(found) for found in await door.ask(door.retriever(first, reranker), "a")] == ["2", "2"]
    # What was given is not modified.
    assert [ids(found) for found in await door.ask(first, "a")] == ["0", "0"]
    assert [ids(found) for found in await door.rank(reranker, door.scored(TEXTS))] == ["2", "2"]


@pytest.mark.parametrize(
    ("own", "whole", "kept"), [(None, 0.6, "b"), (0.9, 0.4, "bc"), (0.9, 0.0, "bca"), (0.6, None, "b"), (None, 1.0, "")]
)
async def test_the_retrievers_threshold_goes_before_the_rerankers(
    door: Door, own: float | None, whole: float | None, kept: str
) -> None:
    reranker = door.reranker(door.table({"A": -1.0, "B": 1.0, "C": 0.0}), score_threshold=own)
    retriever = door.retriever(door.listed(letters("abc")), reranker, score_threshold=whole)
    assert [ids(found) for found in await door.ask(retriever, "q")] == [kept, kept]
    assert reranker.score_threshold == own


async def test_a_reranker_is_made_of_whatever_it_can_be_made_of(door: Door, tiny_cross_encoder: Path) -> None:
    """C6: a model's name, its folder, a loaded model, and any scorer."""
    first, encoder = door.listed([("0", "paris"), ("1", "rome")]), CrossEncoder(tiny_cross_encoder)
    expected = (await door.rank(door.reranker(encoder), door.scored([("0", "paris"), ("1", "rome")]), "capital"))[0]
    for model in (str(tiny_cross_encoder), tiny_cross_encoder, encoder):
        assert await door.ask(door.retriever(first, model), "capital") == [expected, expected]
    for scorer in (TableScorer({"paris": 0.0, "rome": 1.0}), door.table({"paris": 0.0, "rome": 1.0})):
        assert [ids(found) for found in await door.ask(door.retriever(first, scorer), "q")] == ["10", "10"]


@pytest.mark.parametrize(
    "options",
    [
        *({"top_n": 0}, {"fetch_k": -1}, {"score_threshold": 1.5}, {"time_budget": 0}, {"on_error": "never"}),
        *({"reranker": ""}, {"reranker": None}, {"reranker": 3}, {"retriever": "store"}),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(door: Door, options: dict[str, Any]) -> None:
    first = options.get("retriever", door.listed([]))
    model = options.get("reranker", door.table({}))
    rest = {name: value for name, value in options.items() if name not in ("retriever", "reranker")}
    says = next(iter(options)).replace("reranker", "(reranker|model|cross-encoder)")  # it may be made of a model
    with pytest.raises(door.refusal, match=says):
        door.retriever(first, model, **rest)


@pytest.mark.parametrize("query", ["", "  "])
async def test_an_empty_query_asks_neither_stage(door: Door, query: str) -> None:
    scorer = TableScorer({})
    retriever = door.retriever(door.down(ConnectionError()), scorer)
    for asked in (retriever, door.dense(TEXTS)):
        with pytest.raises(InvalidInputError, match="query is empty"):
            await door.ask(asked, query)


async def test_a_first_stage_that_returns_something_else(door: Door) -> None:
    for returned in door.no_results:
        first = door.answering(lambda _, returned=returned: returned)
        for retriever in (door.retriever(first, door.table({})), door.hybrid([first])):
            await door.refused(retriever, "q", r"must (return a list of|be a) (documents|Document|NodeWithScore)")


async def test_a_first_stage_may_return_a_generator(door: Door) -> None:
    first = door.answering(lambda _: (found for found in door.scored(letters("abc"))))
    table = door.table({"A": 0.0, "B": 1.0, "C": 2.0})
    assert [ids(found) for found in await door.ask(door.retriever(first, table, fetch_k=2), "q")] == ["ba", "ba"]
    assert [ids(found) for found in await door.ask(door.hybrid([first]), "q")] == ["abc", "abc"]


async def test_rewrites_are_fused_and_scored_against_the_query(door: Door) -> None:
    lists = {"a": "abc", "b": "cd", "c": "adb"}
    model = TableScorer({"A": 0.0, "B": 3.0, "C": 2.0, "D": 1.0})
    first = door.answering(lambda query: door.scored(letters(lists[query])))
    retriever = door.retriever(first, door.reranker(model), fetch_k=3, rewrites=["b", "c"])
    hits = fuse([found(names) for names in lists.values()], k=3)
    expected = {hit.passage.text: (hit.retrieval_rank, hit.retrieval_score, hit.retrieval_ranks) for hit in hits}
    for results in await door.ask(retriever, "a"):
        seen = {one.id: (one.retrieval_rank, one.retrieval_score, one.retrieval_ranks) for one in results}
        assert seen == expected
        assert ids(results) == "".join(sorted(expected, key="bcda".index))
    assert {query for query, _ in model.asked} == {"a"}
