"""A figure of test scores against costs for a set of runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from budgetnet.reports.drawing import COLOURS, GREY, PALE, log_quantities, new_figure, note, styled
from budgetnet.reports.rows import Repetitions, Row, Spread, repetitions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from budgetnet.tasks import Metric

COSTS = {"flops": "FLOPs", "params": "params", "train_cost_flops": "train cost (FLOPs)"}
LIMITED = {"sequential_ops": "sequential operations", "latency": "latency (µs)"}
"""Costs that are drawn only if some run has a budget for them."""
MARKERS = "osD^vP"
_LONG_LABEL = 40  # number of letters that fit the height of a panel


class Point(NamedTuple):
    """A configuration in a panel: its cost, its test score, and the score that decides whether it is on the front."""

    group: Repetitions
    cost: Spread
    score: Spread
    selects: Spread


class Panels(NamedTuple):
    """Finished configurations of one dataset that were selected by the same metric."""

    dataset: str
    metric: Metric
    groups: list[Repetitions]

    @property
    def test(self) -> str:
        """The name of the test score."""
        return f"test_{self.metric.name}"

    @property
    def label(self) -> str:
        """The label of the axis of scores."""
        return f"test {self.metric.label}" + ("" if self.metric.higher_is_better else ", lower is better")


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """The indices, by rising cost, of points for which no other point is at least as cheap and as good.

    gains: higher is better. Among equal points the first counts.

    >>> pareto_front([1, 2, 3], [70, 60, 80])
    [0, 2]
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not front or gains[index] > gains[front[-1]]:
            front.append(index)
    return front


def score_against_cost(rows: Sequence[Row]) -> Figure:
    """Draw the test scores of finished runs against FLOPs, params, train cost, and other costs with budgets.

    There is a row of panels for each dataset and metric. A point is a configuration: the mean over its seeds, with bars
    of one sample standard deviation. A colour is a backbone and method. The grey line is the Pareto front of validation
    scores, drawn at the test scores of its points, so that the test set selects nothing. Without validation it is the
    front of test scores.
    """
    lines = comparable(repetitions(rows))
    series = list(dict.fromkeys(series_of(group) for line in lines for group in line.groups))
    costs = costs_of(rows)
    with styled():
        count = max(len(lines), 1)
        height = 0.9 + 3.4 * count + 0.2 * (len(series) // 3)
        figure = new_figure(width=10 * len(costs) / len(COSTS), height=height)
        panels = figure.subplots(count, len(costs), squeeze=False, sharey="row")
        for axes, label in zip(panels[-1], costs.values(), strict=True):
            axes.set_xlabel(label)
            if not lines:
                note(axes, "no finished run")
        for line, row in zip(lines, panels, strict=False):
            for axes, (cost, label) in zip(row, costs.items(), strict=True):
                _panel(axes, line, cost, series)
                axes.set_xlabel(label)
            space = " " if len(line.label) + len(line.dataset) < _LONG_LABEL else "\n"
            row[0].set_ylabel(f"{line.label},{space}{line.dataset}")
        legend: dict[str, Any] = {}
        for axes in panels.flat:
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        if legend:
            figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=min(len(legend), 4))
        return figure


def comparable(groups: Sequence[Repetitions]) -> list[Panels]:
    """The configurations that have a test score, by dataset and metric."""
    found: dict[tuple[str, str], Panels] = {}
    for group in groups:
        dataset, metric = group.rows[0].dataset, group.rows[0].metric
        if group.spread(f"test_{metric.name}") is not None:
            found.setdefault((dataset, metric.name), Panels(dataset, metric, [])).groups.append(group)
    return list(found.values())


def costs_of(rows: Sequence[Row]) -> dict[str, str]:
    """The kinds of cost to draw, with their labels."""
    return COSTS | {kind: label for kind, label in LIMITED.items() if any(kind in row.budget for row in rows)}


def series_of(group: Repetitions) -> str:
    """The backbone and method of a configuration, which have a colour of their own."""
    return f"{group.rows[0].backbone}, {group.rows[0].method}"


def points(panels: Panels, cost: str) -> tuple[list[Point], list[Point]]:
    """All configurations whose `cost`, a key of `costs_of`, is known, and those on the Pareto front."""
    known = []
    for group in panels.groups:
        x, y, validation = (group.spread(name) for name in (cost, panels.test, f"val_{panels.metric.name}"))
        if x is not None and y is not None:
            known.append(Point(group, x, y, validation or y))
    gains = [panels.metric.gain(point.selects.mean) for point in known]
    return known, [known[index] for index in pareto_front([point.cost.mean for point in known], gains)]


def _panel(axes: Axes, panels: Panels, cost: str, series: Sequence[str]) -> None:
    known, front = points(panels, cost)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    if not known:
        return
    axes.plot(
        [point.cost.mean for point in front], [point.score.mean for point in front],
        drawstyle="steps-post", color=GREY, linewidth=1.2, zorder=1, label="Pareto front",
    )  # fmt: skip
    for group, x, y, _ in known:
        number = series.index(series_of(group))
        axes.errorbar(
            x.mean, y.mean, xerr=x.deviation or None, yerr=y.deviation or None, label=series_of(group),
            color=COLOURS[number % len(COLOURS)], marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            markersize=5, capsize=2.5, linestyle="none", elinewidth=1, zorder=2,
        )  # fmt: skip
    _score_limits(axes, panels.metric, [point.score for point in known])
    log_quantities(axes, [x.mean for _, x, _, _ in known])


def _score_limits(axes: Axes, metric: Metric, scores: Sequence[Spread]) -> None:
    """Set limits with room around the points and bars: at least half a percent, or a fraction of the largest value."""
    finite = [score for score in scores if isfinite(score.mean)]
    if not finite:
        return
    low, high = min(score.mean for score in finite), max(score.mean for score in finite)
    percent = metric.unit == "%"
    least = 0.5 if percent else 0.02 * max(abs(low), abs(high)) or 1.0
    room = 1.5 * max(least, 0.1 * (high - low), *(score.deviation for score in finite))
    axes.set_ylim(low - room, min(high + room, 100.5) if percent else high + room)
