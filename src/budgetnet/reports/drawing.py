"""Functions of all figures: colours for all kinds of colour vision, axes with readable units, marks and labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.costs.budget import format_quantity
from budgetnet.runs.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
SIZE = (8.0, 4.5)  # inches

# The palette of Okabe and Ito without yellow, which is hard to see on white.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, PALE = "#222222", "#8C8C8C", "#D9D9D9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
PHASES = {
    "grow": ("growing", SKY),
    "finetune": ("fine-tuning", ORANGE),
    "train": ("training", GREY),
    "warmup": ("all edges", GREY),
    "sample": ("drawing edges", SKY),
}

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def styled() -> Iterator[None]:
    """A context in which figures are drawn in the style of the reports."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def new_figure(width: float = SIZE[0], height: float = SIZE[1]) -> Figure:
    """An empty figure of a size in inches. It is made without pyplot, so that it need not be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG or PDF, by the path, with the same bytes for the same figure, and return the path."""
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with styled(), replacing(path) as file:
        figure.savefig(file, format=kind, metadata=metadata)
    return path


def depth_colours(count: int) -> list[Any]:
    """A colour for each group in network order, from dark (first) to light (last)."""
    return [depth_map()(index / max(count - 1, 1)) for index in range(count)]


def depth_map() -> Any:
    """Viridis without its light end, which is hard to see on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    viridis = matplotlib.colormaps["viridis"]
    return ListedColormap([viridis(0.82 * step / 255) for step in range(256)])


def in_quantities(axis: Any) -> None:
    """Label the ticks of an axis as 580k, 42M or 1.25G."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def text(value: float, _: int | None) -> str:
        quantity = format_quantity(value)
        return re.sub(r"\.?0+(?=\D?$)", "", quantity) if "." in quantity else quantity

    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(NullFormatter())


def log_quantities(axes: Axes, values: Sequence[float]) -> None:
    """Make the x axis logarithmic and wide enough for at least two labelled ticks."""
    from matplotlib.ticker import LogLocator

    low, high = min(values) / 1.3, max(values) * 1.3
    widen = max(1.0, (5.0 / (high / low)) ** 0.5)
    axes.set_xscale("log")
    axes.set_xlim(low / widen, high * widen)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,)))
    in_quantities(axes.xaxis)


def shade_phases(axes: Axes, phases: Sequence[str], ends: Sequence[float]) -> None:
    """Shade and name the phases. `phases` and `ends`, the x at the end, have an entry for each epoch."""
    start = 0.0
    for index, phase in enumerate(phases):
        last = index + 1 == len(phases)
        if last or phases[index + 1] != phase:
            name, colour = PHASES.get(phase, (phase, GREY))
            axes.axvspan(start, ends[index], color=colour, alpha=0.10, linewidth=0, zorder=0)
            # a narrow phase has no room for its name
            if ends[index] - start > 0.09 * ends[-1]:
                axes.text(
                    (start + ends[index]) / 2, 0.015, name, transform=axes.get_xaxis_transform(),
                    ha="center", va="bottom", fontsize=8, color=INK, zorder=3,
                    bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1.5},
                )  # fmt: skip
            start = ends[index]


def mark_rounds(axes: Axes, at: Sequence[float], rounds: Sequence[int], colour: str = GREY) -> None:
    """Draw a thin line at every round, with its number above the axes if there is room."""
    left, right = axes.get_xlim()
    free = left
    for x, number in zip(at, rounds, strict=True):
        axes.axvline(x, color=colour, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        if x >= free:
            axes.text(
                x, 1.005, str(number), transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=7, color=GREY,
            )  # fmt: skip
            free = x + 0.022 * (right - left)


def spread_out(positions: Sequence[float], gap: float) -> list[float]:
    """Positions in the same order, moved as little as possible (least squares) to be at least `gap` apart.

    >>> spread_out([0.0, 1.0, 1.0], 0.5)
    [0.0, 0.75, 1.25]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    clusters: list[tuple[float, int]] = []  # centre and number of members
    for index in order:
        centre, members = positions[index], 1
        while clusters and centre - clusters[-1][0] < gap * (members + clusters[-1][1]) / 2:
            before, count = clusters.pop()
            centre = (before * count + centre * members) / (count + members)
            members += count
        clusters.append((centre, members))
    places = [centre + gap * (k - (members - 1) / 2) for centre, members in clusters for k in range(members)]
    moved = dict(zip(order, places, strict=True))
    return [moved[index] for index in range(len(positions))]


def every(count: int, inches: float, spacing: float) -> range:
    """The ticks, of `count`, to label on an axis of `inches` so that labels are at least `spacing` inches apart."""
    return range(0, count, max(1, -(-int(count * spacing * 1000) // int(inches * 1000))))


def note(axes: Axes, text: str) -> None:
    """Write a text on an empty figure that says why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
