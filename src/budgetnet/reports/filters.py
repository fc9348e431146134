"""A figure of the filters of the first layer in every round (Figure 4 of the AdeNeL paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from budgetnet.reports.drawing import GREY, SIZE, VERMILION, new_figure, note, styled
from budgetnet.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_A_LINE = 32  # the most filters in a line
_MOST_ROUNDS = 24  # the most rounds that are drawn, including the first and the last


def first_layer_filters(run: RunDirectory) -> Figure:
    """Draw every filter of the first convolution at the end of the rounds; selected filters are framed."""
    from matplotlib.patches import Rectangle

    with styled():
        rounds = [run.filters[index] for index in spread(len(run.filters))]
        if not rounds:
            figure = new_figure()
            note(figure.add_subplot(), "no growth round yet")
            return figure
        columns = min(_A_LINE, max(_A_LINE // 2, *(len(weights) for _, weights, _ in rounds)))
        lines = [-(-len(weights) // columns) for _, weights, _ in rounds]
        cell = (SIZE[0] - 0.8) / columns
        figure = new_figure(height=max(1.2, 0.7 + cell * (sum(lines) + 0.35 * len(lines))))
        axes = figure.add_subplot(
            title=f"Filters of the first layer: {run.option('backbone')} on {run.option('dataset')}"
        )
        top = 0.0
        for (number, weights, selected), height in zip(rounds, lines, strict=True):
            axes.text(-0.2, top + 0.5, f"round {number}", ha="right", va="center", color=GREY)
            for index, (pixels, chosen) in enumerate(zip(map(picture, weights), selected, strict=True)):
                x, y = index % columns, top + index // columns
                axes.imshow(pixels, extent=(x + 0.08, x + 0.92, y + 0.92, y + 0.08), cmap="gray", vmin=0, vmax=1)
                if chosen:
                    axes.add_patch(
                        Rectangle((x + 0.04, y + 0.04), 0.92, 0.92, fill=False, color=VERMILION, linewidth=1.2)
                    )
            top += height + 0.35
        axes.set_xlim(-0.2, columns)
        axes.set_ylim(top, -0.1)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return figure


def spread(count: int) -> list[int]:
    """The rounds, of `count`, that are drawn: all, or as many as there is room for, at equal distances."""
    if count <= _MOST_ROUNDS:
        return list(range(count))
    return [round(index * (count - 1) / (_MOST_ROUNDS - 1)) for index in range(_MOST_ROUNDS)]


def picture(weights: np.ndarray) -> np.ndarray:
    """A filter (channels, height, width) as a picture, from 0 (its smallest value) to 1 (its largest).

    A filter of three channels becomes (height, width, 3) in colour, any other (height, width), the mean of its
    channels, in grey.
    """
    pixels = weights.transpose(1, 2, 0) if len(weights) == 3 else weights.mean(0)
    low, high = float(pixels.min()), float(pixels.max())
    return np.asarray((pixels - low) / (high - low) if high > low else np.full_like(pixels, 0.5))
