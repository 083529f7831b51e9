"""A first stage whose list for each question is given, so that every measure can be computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieve_rerank import Hit, Passage
from retrieve_rerank.evaluation import Dataset

TEXTS = {name: f"text {name}" for name in "abcdef"}


class Shelf:
    """Returns the passages of a question, in the order given. All scores are equal: only the order counts."""

    def __init__(self, lists: Mapping[str, Sequence[str]], texts: Mapping[str, str] = TEXTS) -> None:
        self.lists = lists
        self.texts = texts
        self.asked: list[tuple[str, int]] = []

    def retrieve(self, query: str, k: int) -> list[Hit]:
        self.asked.append((query, k))
        return [
            Hit(Passage(name, self.texts[name]), rank=rank, score=0.5, retrieval_rank=rank, retrieval_score=0.5)
            for rank, name in enumerate(self.lists[query][:k], start=1)
        ]

    def __repr__(self) -> str:
        return "Shelf()"


def dataset(**options: str) -> Dataset:
    """Two questions: `one`, answered by a (2) and d (1), and `two`, answered by b."""
    judgements = {"q1": {"a": 2, "d": 1, "c": 0}, "q2": {"b": 1}}
    return Dataset("toy", TEXTS, {"q1": "one", "q2": "two", "q3": "three"}, judgements, **options)


def logits(order: str) -> dict[str, float]:
    """Return a table of logits that puts the texts in this order."""
    return {TEXTS[name]: float(-place) for place, name in enumerate(order)}


def many(verdicts: Sequence[int]) -> tuple[Dataset, Shelf]:
    """One question a verdict, answered by a: 1 has it second of a and b, so that a re-ranker may lift it; -1 first."""
    queries = {f"q{number:03}": f"question {number}" for number in range(len(verdicts))}
    lists = {text: "ba" if verdict > 0 else "ab" for text, verdict in zip(queries.values(), verdicts, strict=True)}
    return Dataset("many", TEXTS, queries, {query: {"a": 1} for query in queries}), Shelf(lists)
