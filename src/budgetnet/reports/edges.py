"""Figures of a network of edges: the selected edges, and the probabilities of all edges during the search."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from budgetnet.reports.drawing import BLUE, GREY, INK, PALE, every, new_figure, note, styled
from budgetnet.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEND = 0.22  # curvature between edges that join the same two nodes


def architecture(run: RunDirectory) -> Figure:
    """Draw the graph of a finished run: selected edges in blue, others pale, and likelier edges wider."""
    from matplotlib.patches import FancyArrowPatch

    fabric = (run.summary or {}).get("fabric")
    with styled():
        if fabric is None:
            figure = new_figure()
            note(figure.add_subplot(), "drawn when the run has finished")
            return figure
        places = {name: (x, -y) for name, x, y in fabric["nodes"]}
        across = 1 + max(x for x, _ in places.values())
        down = 1 - min(y for _, y in places.values())
        figure = new_figure(width=min(16.0, max(6.0, 1.1 * across)), height=min(10.0, max(3.2, 1.1 * down)))
        axes = figure.add_subplot()
        selected = [edge for edge in fabric["edges"] if edge[4]]
        touched = {name for edge in selected for name in edge[1:3]}
        axes.set_title(f"Architecture: {len(selected)} of {len(fabric['edges'])} edges of {run.path.resolve().name}")
        parallel: dict[tuple[str, str], int] = defaultdict(int)
        for _, source, target, gamma, is_selected in fabric["edges"]:
            number = parallel[source, target]
            parallel[source, target] += 1
            (x0, y0), (x1, y1) = places[source], places[target]
            far = abs(x1 - x0) + abs(y1 - y0) > 2
            bend = _BEND * number + (_BEND if far and y0 == y1 else 0)
            axes.add_patch(
                FancyArrowPatch(
                    (x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=7, shrinkA=5, shrinkB=5,
                    connectionstyle=f"arc3,rad={bend}", color=BLUE if is_selected else PALE,
                    linewidth=0.6 + 1.2 * gamma, zorder=2 if is_selected else 1,
                )
            )  # fmt: skip
        for name, (x, y) in places.items():
            alive = name in touched
            axes.plot(x, y, marker="o", markersize=6, color=INK if alive else PALE, zorder=3)
            axes.annotate(
                name, (x, y), (7, 6), textcoords="offset points", fontsize=6.5, color=INK if alive else GREY, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
        axes.margins(0.08)
        axes.set_axis_off()
        return figure


def probabilities(run: RunDirectory) -> Figure:
    """Draw γ of every edge, from top to bottom in the order of the network, over the epochs of the search."""
    from matplotlib.ticker import MaxNLocator

    rows = run.edges
    with styled():
        others = ("epoch", "decided", "sampled_", "pruned_", "full_", "weight_")
        names = [name for name in (rows[0] if rows else ()) if not name.startswith(others)]
        figure = new_figure(height=min(12.0, 1.6 + 0.13 * len(names)))
        axes = figure.add_subplot(title="Probabilities of edges", xlabel="epochs finished")
        if not rows:
            note(axes, "no epoch of the search yet")
            return figure
        mesh = axes.pcolormesh(
            [rows[0]["epoch"] - 1] + [row["epoch"] for row in rows],
            range(len(names) + 1),
            [[row[name] for row in rows] for name in names],
            vmin=0,
            vmax=1,
            cmap="cividis",
        )
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        shown = every(len(names), figure.get_figheight() - 0.9, 0.12)
        axes.set_yticks([index + 0.5 for index in shown], [names[index] for index in shown])
        axes.tick_params(axis="y", length=0, labelsize=6.5)
        figure.colorbar(mesh, ax=axes, pad=0.02, label="probability that the edge is on")
        return figure
