"""A generated segmentation dataset for demos and tests: circles, squares and triangles."""

from __future__ import annotations

from pathlib import Path

import torch

from budgetnet.data.arrays import ImageArrays
from budgetnet.errors import UsageError
from budgetnet.seeding import keyed_generator

CLASS_NAMES = ("background", "circle", "square", "triangle")
MOST_PIXELS, MOST_IMAGES = 1024, 1_000_000
_OBJECTS = 3  # the most shapes in an image
_AT_ONCE = 50


def shapes(
    root: str | Path = "", download: bool = False, image_size: int = 32, train: int = 1000, test: int = 200
) -> tuple[ImageArrays, ImageArrays]:
    """A training and a test set of generated images 3 x image_size x image_size with masks of 4 classes.

    Each image has one to three overlapping shapes of any bright colour on dark noise. Objects differ from the
    background by colour, and from each other only by shape. The images are always the same, and no file is read.

    train, test: the numbers of images. Raises UsageError for numbers out of range.
    """
    counts = {"train": (train, 1, MOST_IMAGES), "test": (test, 1, MOST_IMAGES)}
    options = {"image_size": (image_size, 8, MOST_PIXELS), **counts}
    for name, (value, least, most) in options.items():
        if type(value) is not int or not least <= value <= most:
            raise UsageError(f"dataset.source.{name}={value!r}: expected a whole number, {least} to {most}")
    return _drawn("train", train, image_size), _drawn("test", test, image_size)


def _drawn(split: str, count: int, size: int) -> ImageArrays:
    """The first `count` images of a split; image i does not depend on their number."""
    chunks = [_chunk(size, split, size, first) for first in range(0, count, _AT_ONCE)]
    images, masks = (torch.cat(tensors)[:count] for tensors in zip(*chunks, strict=True))
    return ImageArrays(images, masks, len(CLASS_NAMES), CLASS_NAMES)


def _chunk(size: int, *key: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, size, size) and masks (n, size, size), uint8, drawn as functions of the key in whole numbers."""
    generator = keyed_generator("shapes", *key)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, (_AT_ONCE, *shape), generator=generator)

    images, masks = draw(0, 128, 3, size, size), torch.zeros(_AT_ONCE, size, size, dtype=torch.uint8)
    objects, places = draw(1, _OBJECTS + 1, 1, 1), torch.arange(size)
    for number in range(_OBJECTS):
        kind, radius = draw(0, 3, 1, 1), draw(size // 8, size // 4 + 1, 1, 1)
        down = places[:, None] - draw(0, size, 1, 1)
        across = (places - draw(0, size, 1, 1)).abs()
        circle = across**2 + down**2 <= radius**2
        square = torch.maximum(across, down.abs()) <= radius
        triangle = (down.abs() <= radius) & (2 * across <= down + radius)
        inside = torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle)) & (number < objects)
        images = torch.where(inside[:, None], draw(128, 256, 3, 1, 1), images)
        masks = torch.where(inside, (kind + 1).to(torch.uint8), masks)
    return images.to(torch.uint8), masks
