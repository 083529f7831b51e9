"""Intervals and p-values against values worked out by hand and against plain Python."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from retrieve_rerank.evaluation import significance
from retrieve_rerank.evaluation.significance import bootstrap_interval, holm, mean, randomisation_p


def columns(*differences: list[float]) -> np.ndarray:
    return np.array(differences).T


def interval(*differences: list[float], resamples: int = 20_000, seed: int = 0) -> list[list[float]]:
    return bootstrap_interval(columns(*differences), resamples=resamples, seed=seed).tolist()


def p_value(*differences: list[float], resamples: int = 10_000, seed: int = 0) -> list[float]:
    return randomisation_p(columns(*differences), resamples=resamples, seed=seed).tolist()


def test_a_bootstrap_that_can_be_worked_out() -> None:
    # The one win is drawn 0 to 4 times, binomially: P(0) = 0.316, P(at most 2) = 0.949, P(at most 3) = 0.996.
    assert interval([0.0, 0.0, 0.0, 1.0]) == [[0.0, 0.75]]
    assert interval([0.3, 0.3, 0.3]) == [pytest.approx([0.3, 0.3])]
    assert interval([-0.25]) == [[-0.25, -0.25]]


def test_the_bootstrap_agrees_with_all_resamples_there_are() -> None:
    differences = [0.5, -0.1, 0.2, 0.05, 0.3, -0.2]
    means = [sum(drawn) / 6 for drawn in itertools.product(differences, repeat=6)]
    exact = np.percentile(means, [2.5, 97.5]).tolist()
    assert interval(differences, resamples=100_000) == [pytest.approx(exact, abs=0.005)]


def test_the_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    samples = random.exponential(size=(100, 400)) - 1.0  # 400 data sets of 100 questions each, whose true mean is 0
    ends = bootstrap_interval(samples, resamples=1000, seed=0)
    assert 0.90 < ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean() < 0.98


def test_comparisons_share_the_resamples() -> None:
    differences = [0.5, -0.1, 0.2, 0.05]
    (low, high), doubled = interval(differences, [2 * value for value in differences])
    assert doubled == pytest.approx([2 * low, 2 * high])


def test_all_sign_patterns_where_they_can_be_counted() -> None:
    # 3 + 2 - 1 = 4 is reached by +3 +2 +1 (6), +3 +2 -1 (4), and by both with all signs changed.
    by_hand = {(0.1,) * 3: 2 / 8, (-0.1, -0.2, -0.3, -0.1, -0.2): 2 / 32, (0.5, -0.5): 1, (0.0,) * 3: 1, (0.3,): 1}
    for differences, expected in {**by_hand, (3.0, 2.0, -1.0): 4 / 8}.items():
        assert p_value([*differences]) == [expected]
    assert p_value([0.5] * 100, resamples=999) == [1 / 1000]  # never 0


def test_what_has_no_value_is_left_out() -> None:
    nan = float("nan")
    assert interval([0.3, nan, 0.3], [nan, nan, nan])[0] == pytest.approx([0.3, 0.3])
    assert np.isnan(interval([nan, nan])).all()
    assert p_value([0.1, nan, 0.1, 0.1], [nan] * 4) == [2 / 8, 1.0]
    assert mean(columns([0.5, nan, 1.0], [nan] * 3)).tolist() == [0.75, pytest.approx(nan, nan_ok=True)]


def test_many_questions_take_random_patterns() -> None:
    differences = (np.arange(13) / 13 - 0.3).tolist()
    exact = p_value(differences, resamples=2**13)
    estimated = p_value(differences, resamples=2**13 - 1)
    assert exact != estimated
    assert estimated == pytest.approx(exact, abs=0.02)


def test_p_values_under_no_difference_are_uniform() -> None:
    samples = np.random.default_rng(6).normal(size=(40, 500))
    p_values = randomisation_p(samples, resamples=999, seed=0)
    assert 0.02 < (p_values < 0.05).mean() < 0.09
    assert 0.4 < p_values.mean() < 0.6


@pytest.mark.parametrize("function", [interval, p_value])
def test_the_seed_decides_and_large_jobs_are_done_in_parts(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(1).normal(size=40).tolist()
    first, again, other = (function(differences, resamples=2000, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    monkeypatch.setattr(significance, "_CELLS", 333)
    assert np.allclose(first, function(differences, resamples=2000, seed=3), atol=0.05)
    assert significance._chunks(2001, 40) == [8] * 250 + [1]
    assert significance._chunks(3, 1000) == [1, 1, 1]


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04]) == [0.04]
    assert holm([0.9, 0.6, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([]) == []
