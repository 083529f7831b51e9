"""What becomes of single questions while an evaluation runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieve_rerank import CrossEncoder, InvalidInputError, RetrieveRerank
from retrieve_rerank.evaluation import Dataset, evaluate
from tests.evaluation.stubs import TEXTS, Shelf


def test_a_question_that_is_too_long_is_named(tiny_cross_encoder: Path) -> None:
    texts = {"q1": "paris", "q2": "what is the bread " * 30}
    shelf = Shelf(dict.fromkeys(texts.values(), "abc"))
    long = Dataset("long", TEXTS, texts, {"q1": {"a": 1}, "q2": {"b": 1}})
    with (
        CrossEncoder(tiny_cross_encoder) as model,
        pytest.raises(InvalidInputError, match=r"^question 'q2': the query has \d+ tokens .* shorten the query$"),
    ):
        evaluate({"search": RetrieveRerank(shelf, model)}, long)
