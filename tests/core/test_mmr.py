"""Diversity as an option of the first stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from retrieve_rerank import ChromaIndex, InvalidInputError, Passage
from retrieve_rerank.indexes.nearest import Found, diverse
from retrieve_rerank.indexes.records import Record
from tests.core.stubs import LetterEncoder


def mmr_by_hand(relevance: Sequence[float], alike: Sequence[Sequence[float]], k: int, diversity: float) -> list[int]:
    """Return the positions that maximal marginal relevance chooses, as the paper writes it."""
    chosen: list[int] = []
    while len(chosen) < min(k, len(relevance)):
        left = [position for position in range(len(relevance)) if position not in chosen]
        if not chosen:
            chosen.append(max(left, key=lambda position: relevance[position]))
            continue
        nearest = {position: max(alike[position][other] for other in chosen) for position in left}
        gains = {position: diversity * relevance[position] - (1 - diversity) * nearest[position] for position in left}
        chosen.append(max(left, key=lambda position: gains[position]))
    return chosen


def chosen_of(vectors: np.ndarray, relevance: list[float], k: int, diversity: float) -> list[int]:
    """Choose by the dot product, of which Chroma's distance is what is missing to 1."""
    rows = [Found(Record(str(row), "", {}), 1 - relevance[row], vector) for row, vector in enumerate(vectors)]
    return [int(item.record.id) for item in diverse(rows, k, diversity, "dot")]


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_order_is_that_of_the_definition(diversity: float) -> None:
    vectors = np.random.default_rng(7).normal(size=(20, 4)).astype(np.float32)
    query = vectors[0] + 0.5
    relevance = [float(query @ vector) for vector in vectors]
    chosen = chosen_of(vectors, relevance, 12, diversity)
    assert chosen == mmr_by_hand(relevance, (vectors @ vectors.T).tolist(), 12, diversity)


VECTORS = {"a": [1.0, 0.1], "b": [1.0, 0.11], "c": [0.8, -0.6], "d": [-1.0, 0.0], "q": [1.0, 0.0]}


@pytest.fixture
def index() -> Iterator[ChromaIndex]:
    """Cosine; to the query q: a and its near double b are nearest, c is another direction, d is far."""
    encoder = LetterEncoder(vector=VECTORS.__getitem__, dimension=2)
    with ChromaIndex(encoder) as index:
        index.add([Passage(id_, id_, {"n": number}) for number, id_ in enumerate("abcd")])
        yield index


async def test_the_order_chosen_is_the_order_returned(index: ChromaIndex) -> None:
    """lc#5061: the incumbent returns what was chosen in the order of nearness: a, b, c."""
    hits = index.retrieve("q", 3, mmr_lambda=0.5)
    assert [(hit.passage.id, hit.rank, hit.retrieval_rank) for hit in hits] == [("a", 1, 1), ("c", 2, 2), ("b", 3, 3)]
    assert [hit.retrieval_score for hit in hits] == pytest.approx([0.99504, 0.8, 0.99400], abs=1e-4)
    assert [hit.score for hit in hits] == [hit.retrieval_score for hit in hits]
    assert await index.aretrieve("q", 3, mmr_lambda=0.5) == hits
    assert index.retrieve_many(["q", "d"], 3, mmr_lambda=0.5)[0] == hits
    assert (await index.aretrieve_many(["q", "d"], 3, mmr_lambda=0.5))[0] == hits


@pytest.mark.parametrize(
    ("k", "options", "expected"),
    [
        (10, {"mmr_lambda": 0.5}, "acbd"),  # X6: the peer falls back to plain search, a, b, c, d, without a word
        (np.int8(40), {"mmr_lambda": 0.5}, "acbd"),  # four times as many do not fit into eight bits
        (10, {"mmr_lambda": 0.5, "where": {"n": 99}}, ""),
        (2, {"mmr_lambda": 0.0}, "ad"),
        (2, {"mmr_lambda": 0.0, "mmr_pool": 3}, "ac"),
        (2, {"mmr_lambda": 0.0, "mmr_pool": 2}, "ab"),
        (2, {"mmr_lambda": 0.0, "where": {"n": {"$lt": 3}}}, "ac"),
        (2, {"mmr_lambda": 0.0, "where_document": {"$contains": "b"}}, "b"),
    ],
)
def test_what_is_chosen_and_from_what(index: ChromaIndex, k: Any, options: dict[str, Any], expected: str) -> None:
    assert ids(index.retrieve("q", k, **options)) == [*expected]


def test_the_default_pool_is_four_times_k() -> None:
    encoder = LetterEncoder(vector=lambda text: [1.0, float(text)], dimension=2)
    with ChromaIndex(encoder) as index:
        index.add([Passage(str(number), str(number)) for number in range(9)])
        # The most novel of the nearest eight, 0 to 7; 8 is farther still.
        assert ids(index.retrieve("0", 1, mmr_lambda=0.0)) == ["0"]
        assert ids(index.retrieve("0", 2, mmr_lambda=0.0)) == ["0", "7"]


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_in_every_metric_it_is_by_that_metric_and_1_is_plain_search(metric: Any) -> None:
    vectors = np.random.default_rng(5).normal(size=(12, 3)) * np.linspace(0.2, 3.0, 12)[:, np.newaxis]
    table = {str(row): vector.tolist() for row, vector in enumerate(vectors)} | {"q": [1.0, 2.0, 0.5]}
    similarity = {
        "cosine": lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        "dot": lambda a, b: float(a @ b),
        "euclidean": lambda a, b: float(1 / (1 + np.linalg.norm(a - b))),
    }[metric]
    with ChromaIndex(LetterEncoder(metric, vector=table.__getitem__, dimension=3)) as index:
        index.add([Passage(str(row), str(row)) for row in range(12)])
        relevance = [similarity(np.array(table["q"]), vector) for vector in vectors]
        alike = [[similarity(one, other) for other in vectors] for one in vectors]
        found = index.retrieve("q", 6, mmr_lambda=0.4)
        chosen = mmr_by_hand(relevance, alike, 6, 0.4)
        assert ids(found) == [str(row) for row in chosen]
        assert [hit.retrieval_score for hit in found] == pytest.approx([relevance[row] for row in chosen], abs=1e-4)
        assert ids(index.retrieve("q", 6, mmr_lambda=1.0)) == ids(index.retrieve("q", 6)) != ids(found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({"mmr_lambda": value}, "mmr_lambda must be") for value in (-0.1, 1.1, float("nan"), True, "0.5")),
        ({"mmr_pool": 5}, "give mmr_lambda, too"),
        ({"mmr_lambda": 0.5, "mmr_pool": 1}, "mmr_pool must be at least k, 2"),
        ({"mmr_lambda": 0.5, "mmr_pool": 2.5}, "mmr_pool must be a whole number"),
    ],
)
async def test_options_that_cannot_be_used(index: ChromaIndex, options: dict[str, Any], says: str) -> None:
    for call in (index.retrieve, lambda query, k, **options: index.retrieve_many([query], k, **options)):
        with pytest.raises(InvalidInputError, match=says):
            call("q", 2, **options)
    with pytest.raises(InvalidInputError, match=says):
        await index.aretrieve("q", 2, **options)


def ids(hits: Any) -> list[str]:
    return [hit.passage.id for hit in hits]
