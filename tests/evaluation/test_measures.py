"""Measures that a program of its own computes."""

from __future__ import annotations

import math
import shutil

import pytest

from retrieve_rerank import InvalidInputError
from retrieve_rerank.evaluation import Dataset, evaluate
from tests.core.stubs import run_python
from tests.evaluation.stubs import Shelf

MEASURES = ("ERR@10", 'nDCG(dcg="exp-log2")@10')

needs_perl = pytest.mark.skipif(shutil.which("perl") is None, reason="perl computes them")


def graded(highest: int) -> Dataset:
    texts = {"my file": "text a", "p-2": "text b", "other": "text c"}
    judgements = {"first question": {"my file": highest, "p-2": 1}, "q-2": {"other": 1}, "q3": {"other": 0, "p-2": 1}}
    return Dataset("graded", texts, {"first question": "one", "q-2": "two", "q3": "three"}, judgements)


@needs_perl
def test_expected_reciprocal_rank_by_hand() -> None:
    shelf = Shelf({"one": ["p-2", "my file"], "two": [], "three": ["p-2"]}, {"p-2": "text b", "my file": "text a"})
    one, other = evaluate({"shelf": shelf}, graded(3), MEASURES)["shelf"].per_query.values()
    stops = [(2**grade - 1) / 16 for grade in (1, 3)]
    expected = stops[0] + (1 - stops[0]) * stops[1] / 2
    assert one == {"first question": pytest.approx(expected, abs=1e-5), "q-2": 0.0, "q3": pytest.approx(1 / 16)}
    gain, ideal = 1 + 7 / math.log2(3), 7 + 1 / math.log2(3)
    assert other == {"first question": pytest.approx(gain / ideal, abs=1e-5), "q-2": 0.0, "q3": 1.0}


@needs_perl
def test_grades_that_the_program_refuses_are_named_before_anything_is_searched() -> None:
    shelf = Shelf({})
    with pytest.raises(InvalidInputError, match=r"cannot compute 'ERR@10' here, where a grade is 5 .* take 4 at most"):
        evaluate({"shelf": shelf}, graded(5), ["ERR@10"])
    assert shelf.asked == []


def test_a_program_that_is_missing_is_named() -> None:
    """In a process of its own: what was once found is not looked for again."""
    said = run_python("""
        import os
        os.environ["PATH"] = ""
        from retrieve_rerank.evaluation.measures import check_measures
        try:
            check_measures(["ERR@10"])
        except ValueError as error:
            print(error)
    """)
    assert "cannot compute 'ERR@10' here" in said
    assert "Install perl" in said
