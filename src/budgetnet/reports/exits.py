"""Figures of a network with exits: accuracy against mean FLOPs, each exit over time, weights, and who leaves where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from budgetnet.costs.budget import format_quantity
from budgetnet.reports.drawing import (
    BLUE,
    GREY,
    SIZE,
    VERMILION,
    depth_colours,
    in_quantities,
    new_figure,
    note,
    shade_phases,
    styled,
)
from budgetnet.reports.tables import markdown_table, score_text
from budgetnet.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLITS = {"val": ("held out", GREY), "test": ("test", BLUE)}


def section(run: RunDirectory) -> str:
    """The section about the exits of a finished run, and what its budget came to on both sets of images."""
    summary, metric = run.summary or {}, run.task_metrics[0]
    exits: dict[str, Any] = summary.get("exits", {})
    if not exits:
        return ""
    text = score_text(metric)
    lines = []
    for number, (flops, params) in enumerate(zip(exits["flops"], exits["params"], strict=True), start=1):
        score = summary.get(f"test_exit{number}_{metric.name}")
        line = [str(number), format_quantity(flops), format_quantity(params), "" if score is None else text(score)]
        if "thresholds" in exits:
            limits = [f"{limit:.4f}" if limit <= 1 else "none leave" for limit in exits["thresholds"]]
            line += [[*limits, "all leave"][number - 1], str(exits["test_leaving"][number - 1])]
        lines.append(line)
    header = ["Exit", "FLOPs", "Params", f"Test {metric.title}, all images"]
    found = "## Exits\n\n"
    if "thresholds" not in exits:
        return found + markdown_table(header, lines)
    sets = [
        [name, text(summary[f"{split}_{metric.name}"]), format_quantity(exits[f"{split}_mean_flops"])]
        for split, (name, _) in _SPLITS.items()
    ]
    found += markdown_table([*header, "Confidence to leave", "Test images that leave"], lines) + "\n"
    found += markdown_table(["Images", metric.title, "Mean FLOPs"], sets)
    limit = summary["budget"]["mean_flops"]["limit"]
    return (
        found
        + f"\nThe budget of {format_quantity(limit)} is kept on the images held out; on the test set it may not be.\n"
    )


def accuracy_against_mean_flops(run: RunDirectory) -> Figure:
    """Draw the settings of budgeted.csv on both sets of images, each exit alone, and what was chosen."""
    rows, summary = run.table("budgeted"), run.summary or {}
    metric = run.task_metrics[0]
    with styled():
        figure = new_figure()
        axes = figure.add_subplot(
            title="Budgeted batches: thresholds set on images held out", xlabel="mean FLOPs of an image",
            ylabel=metric.label,
        )  # fmt: skip
        for split, (name, colour) in _SPLITS.items():
            points = sorted((row[f"{split}_mean_flops"], row[f"{split}_accuracy"]) for row in rows)
            axes.plot(*zip(*points, strict=True), color=colour, marker=".", markersize=4, label=name)
        exits = summary.get("exits", {})
        found = [
            summary.get(f"test_exit{number}_{metric.name}") for number in range(1, 1 + len(exits.get("flops", ())))
        ]
        scores = [score for score in found if score is not None]
        if scores and len(scores) == len(found):
            axes.plot(
                exits["flops"], scores, linestyle="", marker="s", markersize=5, markerfacecolor="white",
                color=BLUE, label="test, all images at one exit",
            )  # fmt: skip
        limit = (summary.get("budget") or {}).get("mean_flops")
        if limit is not None:
            axes.axvline(limit["limit"], color=VERMILION, linewidth=0.9, linestyle=(0, (4, 2)), label="budget")
            for split, mean in (("val", exits["val_mean_flops"]), ("test", exits["test_mean_flops"])):
                score = summary[f"{split}_{metric.name}"]
                axes.plot(mean, score, marker="o", markersize=8, color=_SPLITS[split][1], zorder=4)
        in_quantities(axes.xaxis)
        axes.legend(loc="lower right")
        return figure


def accuracy_of_exits(run: RunDirectory) -> Figure:
    """Draw the validation accuracy of every exit over the epochs."""
    metric, rows = run.task_metrics[0], run.metrics
    names = _of_exits(rows, f"val_exit{{}}_{metric.name}")
    with styled():
        figure = new_figure()
        axes = figure.add_subplot(
            title="Accuracy of each exit, images held out", xlabel="epochs finished", ylabel=metric.label
        )
        for number, (name, colour) in enumerate(zip(names, depth_colours(len(names)), strict=True), start=1):
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=f"exit {number}")
        if not axes.lines:
            note(axes, "nothing was held out")
            return figure
        axes.set_xlim(0, len(rows) + 0.5)
        shade_phases(axes, [row["phase"] for row in rows], [row["epoch"] for row in rows])
        _whole_epochs(axes)
        axes.legend(loc="lower right")
        return figure


def weights_of_exits(run: RunDirectory) -> Figure:
    """Draw mean weight against mean loss, a path for each exit, and the correlation of both over the epochs."""
    rows = run.table("weights")
    names = _of_exits(rows, "weight_{}")
    with styled():
        figure = new_figure()
        paths, times = figure.subplots(1, 2)
        paths.set(title="Mean weight against mean loss", xlabel="mean loss of the exit", ylabel="mean weight")
        times.set(title="Weight and loss of a sample", xlabel="epochs finished", ylabel="correlation")
        for number, colour in enumerate(depth_colours(len(names)), start=1):
            losses, weights = ([row[f"{kind}_{number}"] for row in rows] for kind in ("loss", "weight"))
            paths.plot(losses, weights, color=colour, marker=".", linewidth=1, label=f"exit {number}")
            paths.plot(losses[-1:], weights[-1:], color=colour, marker="o", markersize=8)
            correlations = [row[f"correlation_{number}"] for row in rows]
            times.plot([row["epoch"] for row in rows], correlations, color=colour, marker=".")
        for axes, level in ((paths, 1.0), (times, 0.0)):
            axes.axhline(level, color=GREY, linewidth=0.7, zorder=0)
        paths.invert_xaxis()
        times.set_ylim(-1.05, 1.05)
        _whole_epochs(times)
        paths.legend()
        return figure


def images_of_exits(run: RunDirectory) -> Figure:
    """Draw a row for each exit: the first test images that leave there."""
    rows = {name: images for name, images in run.examples.items() if name.startswith("exit ")}
    leaving = (run.summary or {}).get("exits", {}).get("test_leaving", [0] * len(rows))
    most = max((len(images) for images in rows.values()), default=0)
    with styled():
        cell = min(0.8, (SIZE[0] - 1.6) / max(most, 1))
        figure = new_figure(height=0.6 + cell * len(rows))
        figure.suptitle("Where test images leave", x=0.01, ha="left", fontsize=10)
        panels = figure.subplots(len(rows), most, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        for row, (name, images), count in zip(panels, rows.items(), leaving, strict=True):
            share = 100 * count / max(sum(leaving), 1)
            row[0].text(
                -0.15, 0.5, f"{name}\n{share:.1f} %", transform=row[0].transAxes, ha="right", va="center", fontsize=8
            )
            for panel, image in zip(row, images, strict=False):
                panel.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        return figure


def _of_exits(rows: list[dict[str, Any]], name: str) -> list[str]:
    """The columns of all exits, the first exit first."""
    found: list[str] = []
    while rows and name.format(len(found) + 1) in rows[0]:
        found.append(name.format(len(found) + 1))
    return found


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _pixels(image: np.ndarray) -> np.ndarray:
    """(channels, height, width) in 0..1 as an array to draw."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
