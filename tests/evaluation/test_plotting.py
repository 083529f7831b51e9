"""The chart that matplotlib draws."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from retrieve_rerank.evaluation import Dataset, evaluate
from tests.evaluation import reports
from tests.evaluation.stubs import Shelf

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _without_a_screen() -> Iterator[None]:
    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_every_system_is_drawn_with_its_interval_and_its_name() -> None:
    evaluation = reports.ordinary()
    axes = evaluation.plot()
    axes.figure.savefig(io.BytesIO())  # text is only laid out when it is drawn
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "nDCG@10"
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[:2] == ["first stage of good", "first stage of bad"]
    assert all(len(text) <= 50 for text in shown)
    assert len(axes.containers) == len(evaluation.systems)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for system, container in zip(evaluation.systems, axes.containers, strict=True):
        assert container.lines[0].get_ydata()[0] == system.means["nDCG@10"]
        assert container.has_yerr
        assert left < container.lines[0].get_xdata()[0] < right
        assert bottom < system.means["nDCG@10"] < top


def test_a_tuning_is_drawn_with_the_settings_of_the_chosen_weight_and_the_chosen_one() -> None:
    tuning = reports.tuned()
    axes = tuning.plot()
    axes.figure.savefig(io.BytesIO())
    drawn = [point for container in axes.containers for point in container.lines[0].get_ydata()]
    assert sorted(drawn) == sorted(setting.quality for setting in tuning.at_weight(tuning.weight))
    assert axes.get_ylim()[0] < min(drawn) < max(drawn) < axes.get_ylim()[1]
    chosen = axes.lines[-1]
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (tuning.chosen.latency.p95, tuning.chosen.quality)


def test_it_draws_where_it_is_told() -> None:
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2)
    assert reports.smallest().plot(right) is right
    assert not left.lines


def test_names_are_text_and_no_mathematics() -> None:
    """`$x_1$` would be drawn as a formula, `$x_$` would fail, and a name with `_` in front would be left out."""
    evaluation = reports.ordinary(6, 6, name="_$x_$\ud800")
    axes = evaluation.plot()
    axes.figure.savefig(io.BytesIO())
    assert len(axes.get_legend().get_texts()) == len(evaluation.systems)


def test_values_that_are_all_equal_have_an_interval_of_no_length() -> None:
    """Their mean and the bootstrap's may differ in the last bit."""
    ids = [f"p{number}" for number in range(10)]
    queries = {f"q{number}": f"question {number}" for number in range(10)}
    texts = {name: f"text {name}" for name in ids}
    toy = Dataset("toy", texts, queries, {query: {ids[4]: 1} for query in queries})
    shelf = Shelf(dict.fromkeys(queries.values(), ids), texts)
    evaluation = evaluate({"shelf": shelf}, toy, ["RR@10"])
    assert evaluation["shelf"].means["RR@10"] == pytest.approx(0.2)
    evaluation.plot().figure.savefig(io.BytesIO())
