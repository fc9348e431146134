"""Tasks on which a run takes minutes on a CPU: CIFAR at 16×16, and a plain and a residual backbone for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones import resnet_cifar
from budgetnet.backbones.common import initialise
from budgetnet.data.arrays import ImageArrays
from budgetnet.data.readers import cifar10, cifar100

PYRAMID = (16, 16, 32, 32, 64, 64, 128, 128)


def cifar10_at_16(root: str, download: bool) -> tuple[ImageArrays, ImageArrays]:
    """CIFAR-10's training and test set with every 2×2 pixels averaged."""
    train, test = cifar10(root, download)
    return halved(train), halved(test)


def cifar100_at_16(root: str, download: bool) -> tuple[ImageArrays, ImageArrays]:
    """CIFAR-100's training and test set with every 2×2 pixels averaged."""
    train, test = cifar100(root, download)
    return halved(train), halved(test)


def halved(images: ImageArrays) -> ImageArrays:
    """The images with the rounded mean of every 2×2 pixels as one."""
    means = torch.cat([F.avg_pool2d(some.float(), 2) for some in images.images.split(5000)])
    return ImageArrays(means.round().to(torch.uint8), images.labels, images.num_classes, images.class_names)


class VGG8(nn.Module):
    """Eight 3×3 convolutions with batch norm, pooled after every second: (batch, in_channels, 16, 16) to logits."""

    def __init__(self, num_classes: int, in_channels: int = 3, widths: Sequence[int] = PYRAMID) -> None:
        super().__init__()
        self.depth = len(widths)
        for number, width in enumerate(widths, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(in_channels, width, 3, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            in_channels = width
        self.fc = nn.Linear(in_channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, self.depth + 1):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
            if number % 2 == 0:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


def resnet8(
    num_classes: int, in_channels: int = 3, tied: bool = False, widths: Sequence[int] | None = None
) -> nn.Module:
    """The residual networks of CIFAR with one block in each of the three stages, instead of ResNet-20's three."""
    return residual(1, num_classes, in_channels, tied, widths)


def resnet20(
    num_classes: int, in_channels: int = 3, tied: bool = False, widths: Sequence[int] | None = None
) -> nn.Module:
    """The ResNet-20 of CIFAR, with three blocks in each of the three stages."""
    return residual(3, num_classes, in_channels, tied, widths)


def residual(
    blocks: int, num_classes: int, in_channels: int, tied: bool, widths: Sequence[int] | None = None
) -> nn.Module:
    """A residual network of CIFAR with so many blocks in each of the three stages.

    tied: the blocks of a stage share their output width. widths: of the convolutions in their order, by default 16, 32
    and 64 in the three stages.
    """
    depths = (blocks,) * 3
    full = resnet_cifar.full_widths(depths)
    own = full if widths is None else dict(zip(full, widths, strict=True))
    return resnet_cifar.CifarResNet(depths, own, num_classes, in_channels, tied)
