"""What users see when the re-ranking fails, when the first stage does, and of other people's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import DegradedWarning, InvalidInputError
from retrieve_rerank.testing import TableScorer
from tests.frameworks.adapters import Door, Seen, ids

LOGITS = {"A": -1.0, "B": 2.0, "C": 0.0}
PASSAGES = [("a", "A"), ("b", "B"), ("c", "C")]
FAILED = "re-ranking failed: ConnectionError: server gone"


class Broken:
    """Scores by our own protocol, or would."""

    def score(self, query: str, texts: Sequence[str]) -> Any:
        raise ConnectionError("server gone")


class Probabilities(TableScorer):
    def score(self, query: str, texts: Sequence[str]) -> Any:
        return 1 / (1 + np.exp(-np.asarray(super().score(query, texts))))


def marks(found: Sequence[Seen]) -> set[str | None]:
    return {seen.degraded for seen in found}


@pytest.mark.parametrize(
    ("own", "whole", "raises"),
    [
        ("raise", None, True),
        ("retrieval_order", None, False),
        ("raise", "retrieval_order", False),
        ("retrieval_order", "raise", True),
    ],
)
async def test_the_retrievers_on_error_goes_before_the_rerankers(
    door: Door, own: str, whole: str | None, raises: bool
) -> None:
    retriever = door.retriever(door.listed(PASSAGES), door.reranker(Broken(), on_error=own), on_error=whole)
    if raises:
        with pytest.raises(ConnectionError, match="server gone"):
            await door.ask(retriever, "q")
    else:
        with pytest.warns(DegradedWarning):
            several = await door.ask(retriever, "q")
        for results in several:
            assert (ids(results), marks(results)) == ("abc", {FAILED})


async def test_the_mark_goes_when_the_next_ranking_works(door: Door) -> None:
    given = door.scored(PASSAGES, [0.9, 0.8, 0.7])
    with pytest.warns(DegradedWarning):
        (degraded, _) = await door.reranked(door.reranker(Broken(), on_error="retrieval_order"), given, "q")
    assert marks([door.read(one) for one in degraded]) == {FAILED}
    reranker = door.reranker(door.table(LOGITS))
    again = await door.rank(reranker, degraded)
    assert [[seen.retrieval_score for seen in results] for results in again] == [[0.8, 0.7, 0.9]] * 2
    # A first stage that returns such passages: the mark of an earlier search is not this one's.
    stored = door.answering(lambda _: list(degraded))
    for results in again + await door.ask(door.retriever(stored, reranker), "q"):
        assert (ids(results), marks(results)) == ("bca", {None})
        assert [seen.retrieval_rank for seen in results] == [2, 3, 1]


@pytest.mark.parametrize("on_error", ["raise", "retrieval_order"])
async def test_bad_input_and_a_broken_first_stage_raise_in_both_modes(door: Door, on_error: str) -> None:
    reranker = door.reranker(door.table(LOGITS), on_error=on_error)
    for given in (None, "a", ["a"]):
        with pytest.raises(InvalidInputError, match=door.item):
            await door.rank(reranker, given)
    with pytest.raises(InvalidInputError, match="query is empty"):
        await door.ask(door.retriever(door.listed(PASSAGES), reranker, on_error=on_error), " ")
    with pytest.raises(ConnectionError, match="no store"):
        await door.ask(door.retriever(door.down(ConnectionError("no store")), reranker, on_error=on_error), "q")


async def test_probabilities_keep_their_scale(door: Door) -> None:
    """A sigmoid on top gives 0.5 to 0.73 for everything, and every threshold means something else."""
    told = door.reranker(Probabilities(LOGITS), scores="probabilities", score_threshold=0.4)
    for results in await door.rank(told, door.scored(PASSAGES)):
        assert ids(results) == "bc"
        assert [seen.score for seen in results] == pytest.approx([1 / (1 + np.exp(-2.0)), 0.5])
    with pytest.warns(UserWarning, match="every score that Probabilities gave lies in .0, 1.") as warned:
        wrong = await door.rank(door.reranker(Probabilities(LOGITS)), door.scored(PASSAGES))
    assert len(warned) == 1
    for results in wrong:
        assert all(seen.score is not None and seen.score >= 0.5 for seen in results)
