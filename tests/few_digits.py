"""A dataset of other classes than scikit-learn's digits, with images of the same size."""

from __future__ import annotations

from pathlib import Path

from budgetnet.data.arrays import ImageArrays
from budgetnet.data.readers import digits


def first_five(root: str | Path = "", download: bool = False) -> tuple[ImageArrays, ImageArrays]:
    """The digits 0 to 4."""
    train, test = (
        ImageArrays.of(part.subset(kept).images, part.labels[kept], num_classes=5)
        for part in digits()
        for kept in [(part.labels < 5).nonzero().flatten()]
    )
    return train, test
