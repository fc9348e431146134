"""Accuracy against cost for a set of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from budgetnet.reports.drawing import COLOURS, GREY, PALE, log_quantities, new_figure, note, styled
from budgetnet.reports.tables import Repetitions, Row, Spread, repetitions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"flops": "FLOPs", "params": "params", "train_cost_flops": "train cost (FLOPs)"}
LIMITED = {"sequential_ops": "sequential operations", "latency": "latency (µs)"}
"""Costs that are drawn where some run has a budget of them."""
MARKERS = "osD^vP"


class Point(NamedTuple):
    """A configuration in a panel: its cost and its test accuracy, and the accuracy that selects it for the front."""

    group: Repetitions
    cost: Spread
    accuracy: Spread
    selects: Spread


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Indices, by rising cost, of the points that no other beats: none is as cheap and as accurate.

    Of equal points the first counts.

    >>> pareto_front([1, 2, 3], [70, 60, 80])
    [0, 2]
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i])):
        if not front or accuracies[index] > accuracies[front[-1]]:
            front.append(index)
    return front


def accuracy_against_cost(rows: Sequence[Row]) -> Figure:
    """Test accuracy (validation-selected) of the finished runs against FLOPs, params, train cost, and other budgets.

    A row of panels per dataset. A point is a configuration: mean over its seeds, bars of one sample standard
    deviation. A colour is a backbone and method. The grey line is the Pareto front of validation accuracy, drawn at the
    test accuracy of what it selects: the test set selects nothing. (Without validation it is that of test accuracy.)
    """
    groups = [group for group in repetitions(rows) if group.spread("test_top1") is not None]
    series = list(dict.fromkeys(series_of(group) for group in groups))
    datasets = list(dict.fromkeys(group.rows[0].dataset for group in groups)) or [""]
    costs = costs_of(rows)
    with styled():
        height = 0.9 + 3.4 * len(datasets) + 0.2 * (len(series) // 3)
        figure = new_figure(width=10 * len(costs) / len(COSTS), height=height)
        panels = figure.subplots(len(datasets), len(costs), squeeze=False, sharey="row")
        for dataset, line in zip(datasets, panels, strict=True):
            here = [group for group in groups if group.rows[0].dataset == dataset]
            for axes, (cost, label) in zip(line, costs.items(), strict=True):
                _panel(axes, here, cost, series)
                axes.set_xlabel(label)
            line[0].set_ylabel(f"test top-1 (%), {dataset}" if dataset else "test top-1 (%)")
        if not groups:
            for axes in panels[0]:
                note(axes, "no finished run")
        legend: dict[str, Any] = {}
        for axes in panels.flat:
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        if legend:
            figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=min(len(legend), 4))
        return figure


def costs_of(rows: Sequence[Row]) -> dict[str, str]:
    """The kinds of cost to draw, and what they are called."""
    return COSTS | {kind: label for kind, label in LIMITED.items() if any(kind in row.budget for row in rows)}


def series_of(group: Repetitions) -> str:
    """What a colour stands for."""
    return f"{group.rows[0].backbone}, {group.rows[0].method}"


def points(groups: Sequence[Repetitions], cost: str) -> tuple[list[Point], list[Point]]:
    """Every configuration whose `cost` (of `costs_of`) and test accuracy are known, and those on the Pareto front."""
    measured = [(group, group.spread(cost), group.spread("test_top1"), group.spread("val_top1")) for group in groups]
    known = [Point(group, x, y, val or y) for group, x, y, val in measured if x is not None and y is not None]
    front = pareto_front([point.cost.mean for point in known], [point.selects.mean for point in known])
    return known, [known[index] for index in front]


def _panel(axes: Axes, groups: Sequence[Repetitions], cost: str, series: Sequence[str]) -> None:
    known, front = points(groups, cost)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    if not known:
        return
    axes.plot(
        [point.cost.mean for point in front], [point.accuracy.mean for point in front],
        drawstyle="steps-post", color=GREY, linewidth=1.2, zorder=1, label="Pareto front",
    )  # fmt: skip
    for group, x, y, _ in known:
        number = series.index(series_of(group))
        axes.errorbar(
            x.mean, y.mean, xerr=x.deviation or None, yerr=y.deviation or None, label=series_of(group),
            color=COLOURS[number % len(COLOURS)], marker=MARKERS[number // len(COLOURS) % len(MARKERS)],
            markersize=5, capsize=2.5, linestyle="none", elinewidth=1, zorder=2,
        )  # fmt: skip
    accuracies = [y.mean for _, _, y, _ in known]
    room = max(0.5, 0.1 * (max(accuracies) - min(accuracies)), *(y.deviation for _, _, y, _ in known))
    axes.set_ylim(min(accuracies) - 1.5 * room, min(max(accuracies) + 1.5 * room, 100.5))
    log_quantities(axes, [x.mean for _, x, _, _ in known])
