"""The re-ranker by itself: a LangChain document compressor, a LlamaIndex postprocessor."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from retrieve_rerank import InvalidInputError
from retrieve_rerank.testing import TableScorer
from tests.frameworks.adapters import Door, Seen, ids

PASSAGES = [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]
LOGITS = {"A": -1.0, "B": 2.0, "C": 0.0, "D": -8.0}
SCORES = [0.9, 0.8, 0.7, 0.6]


def sigmoid(logit: float) -> Any:
    return pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)


async def test_the_best_come_first_with_all_that_is_known(door: Door) -> None:
    """C1, C12: the stock class drops the scores; others overwrite ids and metadata."""
    given = [
        *door.scored([("a", "A")], [0.9]),
        *door.scored([("b", "B")]),
        *door.scored([("c", "C"), ("d", "D")], [0.7, 0.6]),
    ]
    before = copy.deepcopy(given)
    expected = [
        Seen("b", "B", None, 2, (), sigmoid(2.0), 2.0, 1),
        Seen("c", "C", 0.7, 3, (), sigmoid(0.0), 0.0, 2),
        Seen("a", "A", 0.9, 1, (), sigmoid(-1.0), -1.0, 3),
    ]
    assert await door.rank(door.reranker(door.table(LOGITS), top_n=3), given) == [expected, expected]
    assert given == before  # copies are returned
    assert [ids(found) for found in await door.rank(door.reranker(door.table(LOGITS), top_n=None), given)] == [
        "bcad"
    ] * 2
    assert await door.rank(door.reranker(door.table(LOGITS)), []) == [[], []]


async def test_ranking_twice_keeps_what_the_first_stage_said(door: Door) -> None:
    given = door.scored(PASSAGES[:3], SCORES)
    (once, _) = await door.reranked(door.reranker(door.table(LOGITS)), given, "q")
    for found in await door.rank(door.reranker(door.table({"A": 3.0, "B": 1.0, "C": 2.0})), once):
        assert [(seen.id, seen.retrieval_rank, seen.retrieval_score, seen.rerank_rank) for seen in found] == [
            ("a", 1, 0.9, 1),
            ("c", 3, 0.7, 2),
            ("b", 2, 0.8, 3),
        ]


async def test_candidates_of_one_id_and_text_are_one(door: Door) -> None:
    reranker = door.reranker(door.table({"one": 3.0, "two": 2.0, "other": 1.0}))
    for found in await door.rank(reranker, door.scored([("x", "one"), ("y", "two"), ("x", "one"), ("x", "other")])):
        assert [(seen.id, seen.text, seen.retrieval_rank) for seen in found] == [
            ("x", "one", 1),
            ("y", "two", 2),
            ("x", "other", 4),
        ]
    first = door.listed([("x", "one"), ("y", "two"), ("x", "one"), ("z", "other")])
    for found in await door.ask(door.retriever(first, reranker), "q"):
        assert [(seen.id, seen.retrieval_rank) for seen in found] == [("x", 1), ("y", 2), ("z", 3)]


@pytest.mark.parametrize("query", ["", "  "])
async def test_an_empty_query_is_refused(door: Door, query: str) -> None:
    with pytest.raises(InvalidInputError, match="query"):
        await door.rank(door.reranker(door.table(LOGITS)), door.scored(PASSAGES), query)


@pytest.mark.parametrize(
    "options",
    [
        *({"top_n": 0}, {"top_n": -1}, {"score_threshold": 1.5}, {"precision": "int3"}, {"max_length": 0}),
        *({"model": ""}, {"model": 3}, {"time_budget": 0}, {"time_budget": "1"}, {"on_error": "never"}),
        *({"scores": "percent"}, {"max_windows": 0}, {"model": TableScorer({}), "device": "cuda"}),
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items() if name != "model" or not value),
)
def test_settings_that_cannot_be_used(door: Door, options: dict[str, Any]) -> None:
    with pytest.raises(door.refusal, match=list(options)[-1].replace("model", "(model|cross-encoder)")):
        door.reranker_class(**options)
