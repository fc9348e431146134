"""How a run learned, and which classes its network takes for which: figures and a section of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from budgetnet.reports.drawing import BLUE, INK, VERMILION, every, new_figure, note, shade_phases, styled
from budgetnet.reports.tables import markdown_table
from budgetnet.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WHOLE = 20
"""The most classes whose confusion matrix is drawn; of more, the worst pairs are listed."""
_PAIRS = 10


def learning_curves(run: RunDirectory) -> Figure:
    """Draw the loss and the first metric of the task over the epochs, in training and on the validation set."""
    from matplotlib.ticker import MaxNLocator

    metric = run.task_metrics[0]
    panels = (("loss", "train_loss", "val_loss"), (metric.label, f"train_{metric.name}", f"val_{metric.name}"))
    with styled():
        figure = new_figure(height=3.6)
        for axes, (label, train, validation) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.set(xlabel="epochs finished", ylabel=label)
            drawn = [_curve(axes, run, train, "training", BLUE), _curve(axes, run, validation, "validation", VERMILION)]
            if not any(drawn):
                note(axes, "not measured")
                continue
            axes.set_xlim(0, max(len(run.metrics), 1))
            shade_phases(axes, run.column("phase"), run.column("epoch"))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(loc="upper right" if label == "loss" else "lower right")
        return figure


def _curve(axes: Axes, run: RunDirectory, name: str, label: str, colour: str) -> bool:
    """Draw a column of metrics.csv over the epochs in which it was measured. Returns whether there are any."""
    points = [(row["epoch"], row[name]) for row in run.metrics if row.get(name) is not None]
    if points:
        marker = "o" if len(points) < 40 else None
        axes.plot(*zip(*points), color=colour, marker=marker, markersize=2.5, linewidth=1.2, label=label)
    return bool(points)


def confusion_matrix(run: RunDirectory) -> Figure:
    """Draw the percentage of the test images of each class (rows) that the network takes for each class (columns)."""
    confusion = run.confusion
    assert confusion is not None
    counts, classes = confusion
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    with styled():
        side = 2.2 + 0.32 * len(classes)
        figure = new_figure(width=side + 1.2, height=side)
        axes = figure.add_subplot(xlabel="taken for", ylabel="class", title="Test images of a class, in percent")
        axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        shown = every(len(classes), side - 1, 0.16)
        names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
        names = [name.replace("$", r"\$") for name in names]  # it would begin a formula
        axes.set_xticks(list(shown), [names[place] for place in shown], rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(list(shown), [names[place] for place in shown])
        for row, values in enumerate(shares):
            for column, share in enumerate(values):
                if share >= 0.5:
                    colour = "white" if share > 55 else INK
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.spines[:].set_visible(False)
        return figure


def is_drawn(run: RunDirectory) -> bool:
    """Whether there is a confusion matrix of few enough classes to be drawn."""
    return run.confusion is not None and len(run.confusion[1]) <= _WHOLE


def classes_section(run: RunDirectory) -> str:
    """The section about the accuracy of each class, or of the worst of many, and the pairs that are confused most."""
    if run.confusion is None:
        return ""
    counts, classes = run.confusion
    sums = counts.sum(1)
    order = range(len(classes))
    accuracy = [100 * counts[place, place] / sums[place] if sums[place] else float("nan") for place in order]
    many = len(classes) > _WHOLE
    listed = sorted(order, key=lambda place: accuracy[place])[:_PAIRS] if many else list(order)
    lines = [[classes[place], str(int(sums[place])), f"{accuracy[place]:.1f}"] for place in listed]
    title = f"The {_PAIRS} worst of {len(classes)} classes" if many else "Classes"
    text = f"## {title}\n\n" + markdown_table(("Class", "Test images", "Correct (%)"), lines)
    pairs = [(int(counts[one, other]), one, other) for one in order for other in order if one != other]
    worst = [(n, one, other) for n, one, other in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:_PAIRS] if n]
    if not worst:
        return text
    rows = [[classes[one], classes[other], str(count), f"{100 * count / sums[one]:.1f}"] for count, one, other in worst]
    return text + "\nMost confused:\n\n" + markdown_table(("Class", "Taken for", "Images", "Of the class (%)"), rows)
