"""The chart that matplotlib draws."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from retrieve_rerank import MissingDependencyError
from tests.core.stubs import run_python
from tests.evaluation import reports

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
    axes.figure.savefig("/dev/null", format="png")  # text is only laid out when it is drawn
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "nDCG@10"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [one.name for one in evaluation.systems]
    assert len(axes.containers) == len(evaluation.systems)
    for system, container in zip(evaluation.systems, axes.containers, strict=True):
        assert container.lines[0].get_ydata()[0] == system.means["nDCG@10"]
        assert container.has_yerr


def test_it_draws_where_it_is_told() -> None:
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2)
    assert reports.smallest().plot(right) is right
    assert not left.lines


def test_names_are_text_and_no_mathematics() -> None:
    """`$x_1$` would be drawn as a formula, `$x_` would fail, and a name with `_` in front would be left out."""
    evaluation = reports.ordinary(6, 6, prefix="_$x_")
    axes = evaluation.plot()
    axes.figure.savefig("/dev/null", format="png")
    assert len(axes.get_legend().get_texts()) == len(evaluation.systems)


def test_without_matplotlib_the_error_names_the_extra() -> None:
    script = """
        import sys
        sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = None
        from retrieve_rerank import MissingDependencyError
        from tests.evaluation import reports
        try:
            reports.smallest().plot()
        except MissingDependencyError as error:
            print(error)
    """
    assert 'pip install "retrieve-rerank[evaluation]"' in run_python(script)
    assert issubclass(MissingDependencyError, ImportError)


def test_the_report_needs_no_matplotlib() -> None:
    script = """
        import sys, tempfile, pathlib
        from tests.evaluation import reports
        reports.smallest().to_html(pathlib.Path(tempfile.mkdtemp()) / "report.html")
        print("matplotlib" in sys.modules)
    """
    assert run_python(script).strip() == "False"
