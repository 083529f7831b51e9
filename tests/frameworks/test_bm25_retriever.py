"""BM25 as a retriever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieve_rerank import IndexMismatchError, InvalidInputError
from tests.frameworks.adapters import Door, ids

PASSAGES = [("a", "alpha alpha"), ("b", "alpha beta"), ("c", "gamma"), ("d", "Running alphas")]


async def found(door: Door, retriever: Any, query: str) -> str:
    one, other = await door.ask(retriever, query)
    assert one == other
    return ids(one)


async def test_as_many_as_are_asked_for_and_nothing_that_scores_nothing(door: Door) -> None:
    assert await found(door, door.bm25(PASSAGES, k=2), "alpha") == "ab"
    assert await found(door, door.bm25(PASSAGES, k=9), "alphas") == "abd"
    for retriever in (door.bm25(PASSAGES), door.bm25([])):
        assert await found(door, retriever, "the unknown") == ""
    (results, _) = await door.ask(door.bm25(PASSAGES, k=9), "alpha")
    scores = [seen.retrieval_score or 0 for seen in results]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


async def test_whatever_changes_it_has_saved_it(door: Door, tmp_path: Path) -> None:
    made, other = door.bm25(PASSAGES, path=tmp_path, k=9), door.bm25([], path=tmp_path, k=9)
    assert await found(door, other, "alpha") == "abd"
    door.delete(made, ["a", "no such id"])
    assert await found(door, other, "alpha") == "bd"
    door.add(other, [("n", "alpha"), ("b", "delta")])
    assert await found(door, made, "alpha") == "nd"
    assert await found(door, made, "delta") == "b"
    with pytest.raises(IndexMismatchError, match="english"):
        door.bm25([], path=tmp_path, language="de")


async def test_what_cannot_be_used(door: Door) -> None:
    for options in ({"k": 0}, {"k": True}, {"language": "xx"}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            door.bm25(PASSAGES, **options)
    retriever = door.bm25(PASSAGES)
    with pytest.raises(InvalidInputError, match="query is empty"):
        await door.ask(retriever, " ")
    with pytest.raises(InvalidInputError, match=r"\[0\] must be a (Document|node)"):
        door.add_native(retriever, ["text"])
    bad = [door.passage("n", "alpha"), door.passage("m", "alpha", x=object())]
    with pytest.raises(InvalidInputError, match=r"cannot be stored|metadata"):
        door.add_native(retriever, bad)
    assert "n" not in await found(door, retriever, "alpha")  # none of them is


async def test_it_is_a_first_stage_that_keeps_its_scores(door: Door) -> None:
    made = door.bm25(PASSAGES, k=1)
    (all_, _) = await door.ask(door.bm25(PASSAGES, k=9), "alpha")
    scores = {seen.id: seen.retrieval_score for seen in all_}
    model = door.table({"alpha alpha": 1.0, "alpha beta": 2.0, "Running alphas": 3.0})
    for results in await door.ask(door.retriever(made, door.reranker(model)), "alpha"):
        assert ids(results) == "dba"
        assert {seen.id: seen.retrieval_score for seen in results} == scores
        assert [seen.retrieval_rank for seen in results] == [3, 2, 1]
    assert await found(door, made, "alpha") == "a"  # what was given is not modified
