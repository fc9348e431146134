"""A figure of a few test images and the outputs of the network for them."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import TYPE_CHECKING

import numpy as np

from budgetnet.reports.drawing import COLOURS, GREY, SIZE, new_figure, note, styled
from budgetnet.runs.directory import RunDirectory
from budgetnet.tasks import IGNORED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNLABELLED = (IGNORED, 255)
_MOST_IMAGES = 8
_MOST_NAMED = 24
_LEGEND_LINE = 8


def examples(run: RunDirectory) -> Figure:
    """Draw a row for each array of examples.npz and a column for each image; class maps have one palette."""
    from matplotlib.patches import Patch

    arrays = {name: array[:_MOST_IMAGES] for name, array in run.examples.items() if array.ndim in (3, 4)}
    with styled():
        images = max((len(array) for array in arrays.values()), default=0)
        if not images:
            figure = new_figure()
            note(figure.add_subplot(), "no examples")
            return figure
        maps = [array for array in arrays.values() if array.ndim == 3]
        classes = np.unique(np.concatenate([array.ravel() for array in maps])) if maps else np.empty(0, int)
        height, width = next(iter(arrays.values())).shape[-2:]
        cell = min(1.6, (SIZE[0] - 0.9) / images)
        legend = 0.0 if not len(classes) else 0.3 + 0.2 * -(-min(len(classes), _MOST_NAMED) // _LEGEND_LINE)
        figure = new_figure(height=0.5 + len(arrays) * cell * height / width + legend)
        title = f"Test images: {run.option('backbone')} on {run.option('dataset')}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        panels = figure.subplots(len(arrays), images, squeeze=False)
        for row, (name, array) in zip(panels, arrays.items(), strict=True):
            row[0].set_ylabel(name.replace("_", " "))
            for axes in row:
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_visible(False)
            for axes, item in zip(row, array, strict=False):
                axes.imshow(coloured(item) if item.ndim == 2 else _picture(item), interpolation="nearest")
        labelled = [int(number) for number in classes if number not in _UNLABELLED]
        keys = [Patch(color=class_colour(number), label=f"class {number}") for number in labelled[:_MOST_NAMED]]
        if len(labelled) < len(classes):
            keys.append(Patch(color=GREY, label="no label"))
        if keys:
            figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), _LEGEND_LINE))
        return figure


def class_colour(number: int) -> tuple[float, float, float]:
    """The colour of a class, in 0..1: first those of the figures, then colours with hues a golden ratio apart."""
    from matplotlib.colors import to_rgb

    if number < len(COLOURS):
        return to_rgb(COLOURS[number])
    return hsv_to_rgb(0.618034 * number % 1, (0.85, 0.5)[number % 2], (0.9, 0.6, 0.75)[number % 3])


def coloured(classes: np.ndarray) -> np.ndarray:
    """The colours (H, W, 3) of a class map (H, W); pixels without a label are grey."""
    from matplotlib.colors import to_rgb

    pixels = np.empty((*classes.shape, 3))
    for number in np.unique(classes):
        pixels[classes == number] = to_rgb(GREY) if number in _UNLABELLED else class_colour(int(number))
    return pixels


def _picture(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) as (H, W, 3), clipped to 0..1; unless it has three channels, their mean in grey."""
    channels = image if len(image) == 3 else np.repeat(image.mean(0, keepdims=True), 3, axis=0)
    return np.asarray(np.clip(channels.transpose(1, 2, 0).astype(float), 0, 1))
