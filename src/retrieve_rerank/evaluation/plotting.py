"""The charts as matplotlib draws them. The only module that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieve_rerank.errors import require
from retrieve_rerank.evaluation.report.marks import marks, mean_intervals
from retrieve_rerank.evaluation.report.quality import latency
from retrieve_rerank.view import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from retrieve_rerank.evaluation.evaluation import Evaluation
    from retrieve_rerank.evaluation.tuned import Tuning

_NAME = 50  # characters of a name beside the chart
_DASHES = (0, (1, 2))
_NEAR = 1.15  # factor between latencies that are about the same


def plot_evaluation(evaluation: Evaluation, ax: Axes | None) -> Axes:
    """Draw the systems."""
    ax = _new_axes() if ax is None else ax
    measure = evaluation.measures[0]
    intervals = mean_intervals(
        {system.name: system.per_query[measure] for system in evaluation.systems},
        resamples=evaluation.resamples,
        seed=evaluation.seed,
    )
    drawn, side_by_side = marks(evaluation), _side_by_side([latency(system)[0] for system in evaluation.systems])
    for system, factor in zip(evaluation.systems, side_by_side, strict=True):
        mark, (low, high), (p50, p95) = drawn[system.name], intervals[system.name], latency(system)
        p50, p95 = p50 * factor, p95 * factor
        mean, colour = system.means[measure], f"C{mark.hue % 10}"
        ax.errorbar(
            [p50],
            [mean],
            yerr=_arms([(mean, low, high)]),
            fmt="o",
            color=colour,
            markerfacecolor=colour if mark.filled else "none",
            capsize=3,
            label=_literal(system.name),
        )
        ax.plot([p50, p95], [mean, mean], color=colour, linewidth=0.8)
        if system.baseline is not None:
            ceiling = evaluation[system.baseline].ceiling[measure]
            ax.plot([p50, p50], [high, ceiling], color=colour, linestyle=_DASHES, linewidth=0.8)
            ax.plot([p50], [ceiling], marker="_", markersize=12, color=colour)
    return _finish(ax, evaluation.dataset, measure, "seconds a question: p50, line to p95")


def plot_tuning(tuning: Tuning, ax: Axes | None) -> Axes:
    """Draw the settings."""
    ax = _new_axes() if ax is None else ax
    pairs = dict.fromkeys((setting.first_stage, setting.cross_encoder) for setting in tuning.settings)
    hues = {name: hue for hue, name in enumerate(tuning.first_stages)}
    for first_stage, cross_encoder in pairs:
        rows = [one for one in tuning.settings if (one.first_stage, one.cross_encoder) == (first_stage, cross_encoder)]
        rows.sort(key=lambda one: one.fetch_k)
        name = f"{first_stage}, not re-ranked" if cross_encoder is None else f"{first_stage} → {cross_encoder}"
        ax.errorbar(
            [one.latency.p95 for one in rows],
            [one.quality for one in rows],
            yerr=_arms([(one.quality, one.low, one.high) for one in rows]),
            fmt="D" if cross_encoder is None else "o-",
            markersize=4,
            color=f"C{hues[first_stage] % 10}",
            ecolor=(f"C{hues[first_stage] % 10}", 0.35),
            elinewidth=0.8,
            label=_literal(name),
        )
    ax.plot(
        [tuning.chosen.latency.p95],
        [tuning.chosen.quality],
        "o",
        markersize=14,
        markerfacecolor="none",
        color="black",
        label=_literal(f"chosen: {tuning.chosen.name}"),
    )
    return _finish(ax, tuning.dataset, tuning.measure, "seconds a question, p95")


def _arms(intervals: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Return how far intervals reach below and above the mean; rounding may put an end a hair beyond it."""
    return [
        [max(0.0, mean - low) for mean, low, _ in intervals],
        [max(0.0, high - mean) for mean, _, high in intervals],
    ]


def _side_by_side(seconds: Sequence[float]) -> list[float]:
    """Return factors that keep systems of about the same latency from covering each other."""
    factors = [1.0] * len(seconds)
    order = sorted(range(len(seconds)), key=lambda place: seconds[place])
    group: list[int] = []
    for place, after in zip(order, [*order[1:], None], strict=True):
        group.append(place)
        if after is None or seconds[after] > _NEAR * seconds[place]:
            for number, member in enumerate(group):
                factors[member] = _NEAR ** (number - (len(group) - 1) / 2)
            group = []
    return factors


def _new_axes() -> Axes:
    axes: Axes = require("matplotlib.pyplot", extra="evaluation").subplots(layout="constrained")[1]
    return axes


def _finish(ax: Axes, dataset: str, measure: str, x_name: str) -> Axes:
    ax.set_xscale("log")
    ax.set_xlabel(x_name)
    ax.set_ylabel(_literal(measure))
    ax.set_title(_literal(dataset))
    ax.grid(visible=True, alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def _literal(text: str) -> str:
    """Return text that is drawn as it is, if not too long: no mathematics between dollar signs, no hidden label."""
    text = cut(" ".join(text.encode("utf-8", "replace").decode("utf-8").split()), _NAME).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
