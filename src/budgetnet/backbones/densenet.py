"""DenseNet (Huang et al. 2017) for 32×32 images: every layer reads all the layers of its block before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import convolution, initialise
from budgetnet.backbones.fabric import scaled
from budgetnet.errors import UsageError


class Layer(nn.Module):
    """A batch norm, a ReLU and a 3×3 convolution, whose filters are put behind what it read."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv1(F.relu(self.bn1(x)))], dim=1)


class Transition(nn.Module):
    """A batch norm, a ReLU, a 1×1 convolution of as many filters, and a pooling that halves the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """Three blocks of layers: (batch, in_channels, height, width) to (batch, num_classes).

    layers: of each block. growth: filters of each layer. stem: filters of the convolution before the blocks.
    """

    def __init__(self, num_classes: int, in_channels: int, layers: int, growth: int, stem: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, stem)
        channels = stem
        parts: list[nn.Module] = []
        for block in range(3):
            parts += [Layer(channels + number * growth, growth) for number in range(layers)]
            channels += layers * growth
            if block < 2:
                parts.append(Transition(channels))
        self.blocks = nn.Sequential(*parts)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))  # fvcore counts a mean as free, a pooling layer not
        return logits


def build(
    num_classes: int,
    in_channels: int,
    depth: int = 40,
    growth: int = 12,
    multiplier: float | None = None,
    name: str = "densenet40",
) -> DenseNet:
    """A freshly initialised network of `depth` weighted layers, three blocks of (depth - 4) / 3 without bottlenecks.

    growth: filters of each layer; the first convolution has twice as many. multiplier: factor on both.
    Raises UsageError for a depth that there is no such network of, and for what is no width.
    """
    if type(depth) is not int or depth < 7 or (depth - 4) % 3:
        raise UsageError(f"backbone.depth={depth!r}: expected 4 more than a multiple of 3, such as 40")
    if type(growth) is not int or growth < 1:
        raise UsageError(f"backbone.growth={growth!r}: expected a number of filters, 1 or more")
    return DenseNet(
        num_classes, in_channels, (depth - 4) // 3, scaled(growth, multiplier), scaled(2 * growth, multiplier)
    )
