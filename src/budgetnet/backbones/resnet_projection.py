"""The ResNets of He et al. 2016 for 32×32 images with 1×1 convolutions where a stage widens (option B).

Elsewhere a block is added to what it read, so that all blocks of a stage share a width; `resnet_cifar` has the
parameter-free shortcuts that leave every block its own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import convolution, initialise, subsampled
from budgetnet.backbones.fabric import scaled
from budgetnet.backbones.resnet import projection
from budgetnet.errors import UsageError

FULL_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = convolution(in_channels, channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels) if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(subsampled(x, self.stride))))


class ProjectionResNet(nn.Module):
    """Three stages of basic blocks: (batch, in_channels, height, width) to (batch, num_classes).

    blocks: of each stage. widths: of the stages; the stem has that of the first.
    """

    def __init__(self, num_classes: int, in_channels: int, blocks: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1 = convolution(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for stage, width in enumerate(widths):
            layers = []
            for number in range(blocks):
                layers.append(BasicBlock(channels, width, stride=2 if stage and not number else 1))
                channels = width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.fc(x.mean((2, 3)))  # fvcore counts a mean as free, a pooling layer not
        return logits


def build(
    num_classes: int,
    in_channels: int,
    depth: int = 56,
    multiplier: float | None = None,
    name: str = "resnet56_projection",
) -> ProjectionResNet:
    """A freshly initialised ResNet of this depth, 6n + 2. multiplier: factor on every width.

    Raises UsageError for a depth that there is no such ResNet of, and for what is no multiplier.
    """
    if type(depth) is not int or depth < 8 or (depth - 2) % 6:
        raise UsageError(f"backbone.depth={depth!r}: expected 2 more than a multiple of 6, such as 20 or 56")
    first, second, third = (scaled(width, multiplier) for width in FULL_WIDTHS)
    return ProjectionResNet(num_classes, in_channels, (depth - 2) // 6, (first, second, third))
