"""ResNet-18, 34 and 50 for ImageNet (He et al. 2016), with the stride of a bottleneck in its 3×3 convolution.

The modules are named as in torchvision. A shortcut has a 1×1 convolution if the full backbone has one; all others join
their blocks by `match_channels`, so that every block may have its own width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from budgetnet.backbones.common import convolution, initialise, match_channels, subsampled

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
"""Blocks in each of the four stages."""


def full_widths(depths: Sequence[int], bottleneck: bool = False) -> dict[str, int]:
    """The filters of every convolution in order of execution. Those in shortcuts have the width of their block."""
    widths = {"conv1": 64}
    for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), start=1):
        for i in range(depth):
            widths[f"layer{stage}.{i}.conv1"] = widths[f"layer{stage}.{i}.conv2"] = width
            if bottleneck:
                widths[f"layer{stage}.{i}.conv3"] = 4 * width
    return widths


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """The shortcut of a block that changes the number of channels.

    A block that also changes the size passes every second pixel to it. A 1×1 convolution with stride 2 would be the
    same, but crashes in oneDNN (issue 6035) on a CPU with channels_last and few input channels.
    """
    return nn.Sequential(convolution(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut. widths: the filters of conv1 and conv2."""

    def __init__(self, in_channels: int, widths: Sequence[int], stride: int, downsample: bool) -> None:
        super().__init__()
        hidden, out_channels = widths
        self.conv1 = convolution(in_channels, hidden, stride=stride)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = convolution(hidden, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels) if downsample else None
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        # computed before the shortcut, because a width group is named after its first producer
        out = self.bn2(self.conv2(out))
        shortcut = match_channels(x, out) if self.downsample is None else self.downsample(subsampled(x, self.stride))
        return F.relu(out + shortcut)


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution and a shortcut. widths: the filters of conv1, conv2 and conv3."""

    def __init__(self, in_channels: int, widths: Sequence[int], stride: int, downsample: bool) -> None:
        super().__init__()
        first, second, out_channels = widths
        self.conv1 = convolution(in_channels, first, 1)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = convolution(first, second, stride=stride)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = convolution(second, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = projection(in_channels, out_channels) if downsample else None
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = match_channels(x, out) if self.downsample is None else self.downsample(subsampled(x, self.stride))
        return F.relu(out + shortcut)


class ResNet(nn.Module):
    """A 7×7 stem and four stages, from (batch, in_channels, height, width) to (batch, num_classes).

    depths: the number of blocks in each stage.
    widths: the filters of conv1 and of layer{stage}.{block}.conv1, .conv2 and, in a bottleneck, .conv3.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Mapping[str, int],
        num_classes: int,
        in_channels: int = 3,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        kind: type[Bottleneck] | type[BasicBlock] = Bottleneck if bottleneck else BasicBlock
        convolutions = ("conv1", "conv2", "conv3") if bottleneck else ("conv1", "conv2")
        channels = widths["conv1"]
        self.conv1 = convolution(in_channels, channels, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for stage, depth in enumerate(depths, start=1):
            blocks = []
            for i in range(depth):
                block_widths = [widths[f"layer{stage}.{i}.{name}"] for name in convolutions]
                stride = 2 if stage > 1 and i == 0 else 1
                downsample = i == 0 and (stage > 1 or bottleneck)
                blocks.append(kind(channels, block_widths, stride, downsample))
                channels = block_widths[-1]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits
