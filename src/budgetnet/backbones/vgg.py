"""VGG (Simonyan and Zisserman 2015) with batch norm, for 32×32 images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn

from budgetnet.backbones.common import initialise

DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""The number of convolutions before each of the five pooling layers."""


def full_widths(depths: Sequence[int]) -> dict[str, int]:
    """The filters of conv1, conv2, ... and the units of fc1, in order of execution."""
    stages = zip((64, 128, 256, 512, 512), depths, strict=True)
    filters = [width for width, depth in stages for _ in range(depth)]
    return {**{f"conv{i}": width for i, width in enumerate(filters, start=1)}, "fc1": 512}


class VGG(nn.Module):
    """Convolutions with bias, five pooling layers and two linear layers.

    It maps (batch, in_channels, 32, 32) to (batch, num_classes).

    depths: the number of convolutions before each pooling layer.
    widths: the filters of conv1, conv2, ... and the units of fc1.
    """

    def __init__(
        self, depths: Sequence[int], widths: Mapping[str, int], num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.convolutions = sum(depths)
        self.pooled = tuple(accumulate(depths))
        for i in range(1, self.convolutions + 1):
            width = widths[f"conv{i}"]
            self.add_module(f"conv{i}", nn.Conv2d(in_channels, width, 3, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            in_channels = width
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(in_channels, widths["fc1"])
        self.fc2 = nn.Linear(widths["fc1"], num_classes)
        initialise(self, classifier=self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(1, self.convolutions + 1):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
            if i in self.pooled:
                x = self.pool(x)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        logits: torch.Tensor = self.fc2(x)
        return logits
