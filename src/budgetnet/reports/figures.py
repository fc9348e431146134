"""Figures of one run: growth path, saturation, score against train cost, and final sizes."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any

from budgetnet.reports.drawing import (
    BLUE,
    INK,
    PALE,
    SIZE,
    VERMILION,
    depth_colours,
    depth_map,
    every,
    in_quantities,
    mark_rounds,
    new_figure,
    note,
    shade_phases,
    spread_out,
    styled,
)
from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import score_text
from budgetnet.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EPOCHS, _WIDTH, _DEPTH = "epochs finished", "width (channels)", "depth (blocks)"
_WIDE_BARS = 40  # with more groups, a bar is not visible behind another one
_LAYERS = 4  # how many lines that lie on each other can be told apart
_NAMED_LINES = 12  # with more groups, a colour bar replaces the names of lines


def growth_path(run: RunDirectory) -> Figure:
    """Draw the width of every group, or the depth of every stage if blocks are added, over the epochs."""
    from matplotlib.ticker import MaxNLocator

    with styled():
        figure = new_figure()
        axes = figure.add_subplot(
            title=_title(run, "Growth path" if run.grew else "Widths"),
            xlabel=_EPOCHS,
            ylabel=_DEPTH if run.depths() else _WIDTH,
        )
        widths = run.path_of_sizes()
        if not widths:
            note(axes, "no growth round yet")
            return figure
        end = max(len(run.metrics), widths[-1][0] + 1)
        times = [time for time, _ in widths] + [end]
        names = list(widths[0][1])
        for name, colour in zip(names, depth_colours(len(names)), strict=True):
            steps = [at[name] for _, at in widths]
            # of lines that lie on each other, those on top are thinner, so that all are visible
            thickness = 1.2 + 0.9 * ((len(names) - 1 - names.index(name)) % _LAYERS)
            axes.step(times, [*steps, steps[-1]], where="post", color=colour, linewidth=thickness)
        axes.set_xlim(0, end)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        values = [width for _, at in widths for width in at.values()]
        _width_axis(axes, [max(values)] if run.depths() else values)  # depths have an axis from zero
        shade_phases(axes, run.column("phase"), run.column("epoch"))
        _mark_rounds(axes, run, "epoch")
        _name_lines(figure, axes, names, [widths[-1][1][name] for name in names])
        return figure


def saturation_map(run: RunDirectory) -> Figure:
    """Draw the saturation of every group, from top to bottom in network order, over the growing epochs."""
    from matplotlib.ticker import MaxNLocator

    with styled():
        rows = run.saturation
        names = [name for name in (rows[0] if rows else {}) if name not in ("epoch", "round")]
        figure = new_figure(height=_height(len(names)))
        axes = figure.add_subplot(title=_title(run, "Saturation"), xlabel=_EPOCHS)
        if not names:
            note(axes, "saturation was not measured: there was no growing phase")
            return figure
        edges = [rows[0]["epoch"] - 1] + [row["epoch"] for row in rows]
        values = [[nan if row[name] is None else row[name] for row in rows] for name in names]
        mesh = axes.pcolormesh(edges, range(len(names) + 1), values, vmin=0, vmax=1, cmap="cividis")
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        shown = every(len(names), figure.get_figheight() - 0.9, 0.12)
        axes.set_yticks([index + 0.5 for index in shown], [names[index] for index in shown])
        axes.tick_params(axis="y", length=0, labelsize=8 if len(names) <= 20 else 6.5)
        _mark_rounds(axes, run, "epoch", colour="white")
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, label="saturation (fraction of the filters selected)")
        threshold = _threshold(run)
        if threshold is not None:
            bar.ax.axhline(threshold, color=VERMILION, linewidth=2)
            axes.set_title(_title(run, "Saturation", f"; a group above τ = {threshold:g} may grow"))
        return figure


def score_against_train_cost(run: RunDirectory) -> Figure:
    """Draw the validation score by the selecting metric against the train cost so far, with test scores at the end."""
    metric, row = run.task_metrics[0], final_row(run)
    validation, test = f"val_{metric.name}", f"test_{metric.name}"
    with styled():
        figure = new_figure()
        axes = figure.add_subplot(
            title=_title(run, f"Validation {metric.title} against train cost"),
            xlabel="train cost so far (FLOPs of one forward pass, over every image)",
            ylabel=metric.label,
        )
        evaluated = [epoch for epoch in run.metrics if epoch.get(validation) is not None]
        if not evaluated and run.summary is None:
            note(axes, "no epoch was evaluated yet")
            return figure
        cost, scores = [[epoch[name] for epoch in evaluated] for name in ("train_cost_flops", validation)]
        marker = "o" if len(evaluated) < 40 else None
        axes.plot(cost, scores, color=BLUE, marker=marker, markersize=3, clip_on=False, label="validation")
        spent = run.column("train_cost_flops")
        axes.set_xlim(0, spent[-1])
        in_quantities(axes.xaxis)
        shade_phases(axes, run.column("phase"), spent)
        _mark_rounds(axes, run, "train_cost_flops")
        if run.summary is not None:
            selected = f"epoch {run.summary['best_epoch']}, selected by validation"
            for name, fill, which in ((test, "full", selected), (f"{test}_last", "none", "last epoch")):
                if (score := row.number(name)) is not None:
                    axes.plot(
                        spent[-1], score, label=f"test {score_text(metric)(score)} ({which})", color=VERMILION,
                        marker="D", fillstyle=fill, markersize=7, linestyle="none", clip_on=False, zorder=5,
                    )  # fmt: skip
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        axes.legend(  # in a corner that the curve does not reach, above the names of the phases
            loc="lower right" if metric.higher_is_better else "upper right",
            bbox_to_anchor=(0.99, 0.07 if metric.higher_is_better else 0.97),
            frameon=True,
            edgecolor="none",
        )
        return figure


def final_sizes(run: RunDirectory) -> Figure:
    """Draw the final width of every group, or depth of every stage, with those of seed network and full backbone."""
    from matplotlib.ticker import MaxNLocator

    with styled():
        figure = new_figure()
        deep = bool(run.depths())
        axes = figure.add_subplot(title=_title(run, "Depths" if deep else "Widths"), ylabel=_DEPTH if deep else _WIDTH)
        sizes = run.sizes()
        if sizes is None:
            note(axes, "no growth round yet")
            return figure
        seed, final, full = sizes
        names = list(final)
        x = range(len(names))
        if full and len(names) > _WIDE_BARS:
            edges = [index - 0.5 for index in range(len(names) + 1)]
            axes.stairs([full.get(name, 0) for name in names], edges, color=INK, zorder=3, label="full backbone")
        elif full:
            axes.bar(x, [full.get(name, 0) for name in names], width=0.86, color=PALE, label="full backbone")
        now = "final" if run.summary else "so far"
        axes.bar(x, [final[name] for name in names], width=0.56, color=BLUE, label=now)
        left, right = [index - 0.28 for index in x], [index + 0.28 for index in x]
        axes.hlines([seed.get(name, nan) for name in names], left, right, VERMILION, linewidth=2, label="seed network")
        shown = every(len(names), SIZE[0] - 0.9, 0.13)
        turned = sum(map(len, names)) > 70
        axes.set_xticks(list(shown), [names[index] for index in shown], rotation=90 if turned else 0)
        axes.tick_params(axis="x", length=0, labelsize=8 if len(names) <= 20 else 6.5)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
        return figure


def _title(run: RunDirectory, text: str, more: str = "") -> str:
    names = [name for name in (run.option("backbone"), run.option("dataset")) if name]
    return f"{text}{': ' * bool(names)}{' on '.join(names)}{more}\n"  # the second line leaves room for round numbers


def _height(groups: int) -> float:
    return min(max(SIZE[1], 1.0 + 0.125 * groups), 7.0)


def _threshold(run: RunDirectory) -> float | None:
    growth: dict[str, Any] = run.config.get("growth") or {}
    if growth.get("policy", "saturation") != "saturation":  # other policies do not use it
        return None
    threshold = growth.get("threshold")
    return float(threshold) if isinstance(threshold, int | float) else None


def _mark_rounds(axes: Axes, run: RunDirectory, x: str, **options: Any) -> None:
    at, numbers = [[record[name] for record in run.rounds] for name in (x, "round")]
    mark_rounds(axes, at, numbers, **options)


def _width_axis(axes: Axes, widths: list[int]) -> None:
    """Let the axis begin at zero, or make it logarithmic if narrow groups would be flat."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    low, high = min(widths), max(widths)
    if high <= 8 * low:
        axes.set_ylim(0, 1.08 * high)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_yscale("log", base=2)
    axes.set_ylim(low / 1.5, 1.25 * high)
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _name_lines(figure: Figure, axes: Axes, names: list[str], final: list[int]) -> None:
    """Name every line at its right end, or add a colour bar if there are too many."""
    if len(names) > _NAMED_LINES:
        from matplotlib.cm import ScalarMappable

        bar = figure.colorbar(ScalarMappable(cmap=depth_map()), ax=axes, pad=0.02)
        named = [0, len(names) // 2, len(names) - 1]
        bar.set_ticks([index / named[-1] for index in named], labels=[names[index] for index in named], fontsize=7)
        bar.ax.set_title("depth", fontsize=8, loc="center")
        return
    to_axes = axes.transScale + axes.transLimits
    heights = [to_axes.transform((0, width))[1] for width in final]
    colours = depth_colours(len(names))
    line = 8 / 72 * 1.3 / (SIZE[1] - 1.1)  # height of a line of text as a fraction of the axes
    places = spread_out(heights, line)
    for name, width, height, place, colour in zip(names, final, heights, places, colours, strict=True):
        axes.plot([1.0, 1.025], [height, place], color=colour, linewidth=1, transform=axes.transAxes, clip_on=False)
        axes.text(1.03, place, f"{name}  {width}", transform=axes.transAxes, va="center", fontsize=8, color=colour)
