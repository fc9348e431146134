"""Sets of images in memory, and stratified splits of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from budgetnet.errors import UsageError
from budgetnet.seeding import keyed_generator

NO_CLASS = 255
"""The value of pixels without a class in a mask of bytes. In batches it becomes `tasks.IGNORED`."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageArrays:
    """Images (N, C, H, W), uint8 in 0..255 or float32, and their labels (N,), int64 in 0..num_classes - 1.

    For segmentation, labels are masks (N, H, W), uint8, with the class of every pixel or NO_CLASS. For regression,
    labels are numbers (N,), float32, and num_classes is 1.
    Raises UsageError if there is no image, or if shapes, types or labels are inconsistent.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, count = tuple(self.images.shape), len(self.labels)
        if len(shape) != 4 or not shape[0] or self.images.dtype not in (torch.uint8, torch.float32):
            raise UsageError(f"images of shape {shape}, {self.images.dtype}: expected (N, C, H, W), uint8 or float32")
        if self.labels.dim() == 3:
            self._check_masks()
            return
        if tuple(self.labels.shape) != shape[:1] or self.labels.dtype not in (torch.int64, torch.float32):
            raise UsageError(
                f"labels of shape {tuple(self.labels.shape)}, {self.labels.dtype}: expected ({shape[0]},), int64, or "
                "float32 for numbers to be estimated"
            )
        if self.labels.is_floating_point():
            self._check_numbers()
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise UsageError(f"labels from {low} to {high} of {count} images: expected 0 to {self.num_classes - 1}")

    def _check_numbers(self) -> None:
        if self.num_classes != 1:
            raise UsageError(
                f"labels of {self.labels.dtype} are numbers to be estimated, which have no {self.num_classes} classes: "
                "expected 1, or labels of int64"
            )
        if not self.labels.isfinite().all():
            raise UsageError(f"labels of {len(self)} images: expected finite numbers")

    def _check_masks(self) -> None:
        expected = (len(self.images), *self.images.shape[2:])
        if tuple(self.labels.shape) != expected or self.labels.dtype != torch.uint8:
            raise UsageError(
                f"masks of shape {tuple(self.labels.shape)}, {self.labels.dtype}: expected {expected}, uint8"
            )
        found = torch.bincount(self.labels.flatten(), minlength=256)[:NO_CLASS].nonzero().flatten()
        if not len(found) or int(found[-1]) >= self.num_classes:
            classes = f"classes from {int(found[0])} to {int(found[-1])}" if len(found) else "no class"
            raise UsageError(
                f"masks with {classes} of {len(self)} images: expected 0 to {self.num_classes - 1}, or {NO_CLASS} "
                "where a pixel has none"
            )

    @staticmethod
    def of(
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | Sequence[int],
        num_classes: int | None = None,
    ) -> ImageArrays:
        """Make a set from arrays or tensors of any integer or float type.

        images: (N, C, H, W). labels: classes (N,), numbers (N,) of a float type for regression, or masks (N, H, W), in
        which negative labels and NO_CLASS mark pixels without a class. num_classes: by default the largest class plus
        one, and 1 for regression.
        Raises UsageError for a mask with too large a class, and for inconsistent shapes, types or labels.
        """
        pixels, classes = torch.as_tensor(images), torch.as_tensor(labels)
        if pixels.is_floating_point():
            pixels = pixels.float()
        if classes.is_floating_point() and classes.dim() == 1:
            return ImageArrays(pixels, classes.float(), 1 if num_classes is None else num_classes)
        if classes.dtype != torch.bool and not classes.is_floating_point():
            classes = classes.long()
        known = classes
        if classes.dim() == 3 and not classes.is_floating_point():
            known = classes[(classes >= 0) & (classes != NO_CLASS)]
            if len(known) and int(known.max()) > NO_CLASS:
                raise UsageError(
                    f"masks with class {int(known.max())}: expected 0 to {NO_CLASS - 1}, or {NO_CLASS} where a pixel "
                    "has none"
                )
            classes = torch.where(classes < 0, NO_CLASS, classes).to(torch.uint8)
        if num_classes is None:
            num_classes = int(known.max()) + 1 if len(known) else 0
        return ImageArrays(pixels, classes, num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        images = f"{len(self)} images of {'x'.join(map(str, self.shape))}"
        if self.labels.is_floating_point():
            return f"ImageArrays({images} with a number each)"
        masks = " with masks" if self.labels.dim() == 3 else ""
        return f"ImageArrays({images}{masks}, {self.num_classes} classes)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: Tensor) -> ImageArrays:
        """The images at `indices` (M,), in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def not_finite(self) -> int | None:
        """The number of the first image with a pixel that is nan or infinite, or None if there is none."""
        if not self.images.is_floating_point() or bool(self.images.sum().isfinite()):
            return None
        wrong = (~self.images.flatten(1).isfinite()).any(1).nonzero()
        return int(wrong[0]) if len(wrong) else None

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation (1 instead of 0) of each channel, (C,) each; uint8 pixels are divided by 255."""
        mean, std = [], []
        for channel in self.images.unbind(1):
            if self.images.dtype == torch.uint8:  # the histogram is exact and needs no floating-point copy
                counts = torch.bincount(channel.reshape(-1), minlength=256).double()
                values = torch.arange(256, dtype=torch.float64) / 255
            else:
                values = channel.reshape(-1).double()
                counts = torch.ones_like(values)
            average = float((counts * values).sum() / counts.sum())
            variance = float((counts * (values - average) ** 2).sum() / counts.sum())
            mean.append(average)
            std.append(math.sqrt(variance) or 1.0)
        return tuple(mean), tuple(std)


def alike(images: Tensor) -> str | None:
    """What is said of images (N, C, H, W) that are all the same, or of which more than a hundredth have one value.

    Of many images two thousand at equal distances are looked at. None if there is nothing to say.
    """
    images = images[:: max(1, len(images) // 2000)]
    if len(images) > 1 and bool((images[1] == images[0]).all()) and bool((images == images[:1]).all()):
        return f"all {len(images)} images are the same"
    pixels = images.flatten(1)
    constant = int((pixels.amin(1) == pixels.amax(1)).sum()) if pixels.shape[1] > 1 else 0
    if constant > len(images) / 100:
        return f"{constant} of {len(images)} images have a single value in all pixels"
    return None


def stratified_order(labels: Tensor, *key: object) -> Tensor:
    """A random order (N,) of the images, as a function of `key` alone, whose every prefix is stratified.

    labels: (N,). The first n images contain every class in proportion, to within one image. For masks (N, H, W) and
    for numbers, which have no class per image, the order is not stratified.
    """
    if labels.dim() > 1 or labels.is_floating_point():
        labels = torch.zeros(len(labels), dtype=torch.long)
    shuffled = torch.randperm(len(labels), generator=keyed_generator("stratified", *key))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    own = labels[by_class]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[own]  # 0, 1, 2, ... within each class
    return by_class[torch.argsort((place + 0.5).double() / counts[own], stable=True)]


def hold_out(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of a stratified split with `count` images held out, as a function of `seed`.

    Returns the remaining and the held-out indices, each ascending.
    """
    order = stratified_order(labels, "hold out", seed)
    return order[count:].sort().values, order[:count].sort().values
