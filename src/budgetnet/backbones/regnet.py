"""RegNetX and RegNetY (Radosavovic et al., "Designing Network Design Spaces", CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import convolution, initialise, subsampled
from budgetnet.backbones.fabric import scaled
from budgetnet.backbones.inverted_residual import SqueezeExcite
from budgetnet.backbones.resnet import projection
from budgetnet.errors import UsageError, nearest


class Design(NamedTuple):
    """depths, widths: of the four stages. group_width: channels of a group. squeeze: a block's input channels to those
    of its squeeze-excite, 0 for none."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int
    squeeze: int = 0


DESIGNS = {
    "regnet_x_200mf": Design((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "regnet_x_400mf": Design((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "regnet_x_4gf": Design((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "regnet_y_200mf": Design((1, 1, 4, 7), (24, 56, 152, 368), 8, squeeze=4),
    "regnet_y_400mf": Design((1, 3, 6, 6), (48, 104, 208, 440), 8, squeeze=4),
}


class Block(nn.Module):
    """A 1×1, a grouped 3×3 and a 1×1 convolution beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, groups: int, stride: int, squeeze: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.attention = SqueezeExcite(channels, squeeze) if squeeze else None
        self.conv3 = convolution(channels, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.downsample = projection(in_channels, channels) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        if self.attention is not None:
            out = self.attention(out)
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(subsampled(x, self.stride))))


class RegNet(nn.Module):
    """A stem and four stages: (batch, in_channels, height, width) to (batch, num_classes).

    stem: its filters and stride. strides: of the stages. widths are multiples of the design's group width.
    """

    def __init__(
        self, design: Design, num_classes: int, in_channels: int, stem: tuple[int, int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        channels, stem_stride = stem
        self.conv1 = convolution(in_channels, channels, stride=stem_stride)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for depth, width, stride in zip(design.depths, design.widths, strides, strict=True):
            blocks = []
            for number in range(depth):
                squeeze = channels // design.squeeze if design.squeeze else 0
                groups = width // design.group_width
                blocks.append(Block(channels, width, groups, stride if number == 0 else 1, squeeze))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))))
        logits: Tensor = self.fc(x.mean((2, 3)))  # fvcore counts a mean as free, a pooling layer not
        return logits


def build(
    name: str, num_classes: int, in_channels: int, image_size: Sequence[int], multiplier: float | None = None
) -> nn.Module:
    """A freshly initialised network for images of this height and width.

    Images of up to 64 pixels a side are not halved by the stem, those of up to 32 not by the first two stages either.
    multiplier: factor on every width, rounded to whole groups. Raises UsageError for an unknown name and for what is no
    multiplier.
    """
    if name not in DESIGNS:
        raise UsageError(f"no backbone is called {name!r}{nearest(str(name), DESIGNS)}")
    design, side = DESIGNS[name], max(image_size)
    widths = [scaled(width // design.group_width, multiplier) * design.group_width for width in design.widths]
    strides = (1, 1, 2, 2) if side <= 32 else (2, 2, 2, 2)
    stem = (scaled(32, multiplier), 1 if side <= 64 else 2)
    return RegNet(design._replace(widths=tuple(widths)), num_classes, in_channels, stem, strides)
