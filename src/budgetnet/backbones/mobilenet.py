"""MobileNetV1, V2 and V3, MnasNet and EfficientNet-B0, in the form in which LW-DNA (CVPR 2021) has them.

Howard et al. 2017; Sandler et al. 2018; Howard et al. 2019; Tan et al. 2019; Tan and Le 2019. Small images are halved
fewer times: the stem keeps the size of those of up to 32 pixels a side (MobileNetV3, EfficientNet: 64), and so do the
stages that `mobilenet_v2` and `efficientnet_b0` name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import convolution, initialise
from budgetnet.backbones.fabric import scaled
from budgetnet.backbones.inverted_residual import Block, Head, InvertedResidualNet, Stage, depthwise, stages
from budgetnet.errors import UsageError, nearest

Width = Callable[[int], int]
"""What a number of channels of the full backbone becomes."""

_V1 = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
"""Channels and stride of each pair of convolutions."""


class DepthwiseSeparable(nn.Module):
    """A depthwise and a 1×1 convolution, each with a batch norm and a ReLU6."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = depthwise(in_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = convolution(in_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn2(self.conv2(F.relu6(self.bn1(self.conv1(x))))))


class MobileNetV1(nn.Module):
    """Images (batch, in_channels, height, width) to logits (batch, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, stem_stride: int, width: Width, dropout: float) -> None:
        super().__init__()
        channels = width(32)
        self.conv1 = convolution(in_channels, channels, stride=stem_stride)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for out_channels, stride in _V1:
            blocks.append(DepthwiseSeparable(channels, width(out_channels), stride))
            channels = width(out_channels)
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))  # fvcore counts a mean as free, a pooling layer not
        return logits


def mobilenet_v1(num_classes: int, in_channels: int, side: int, width: Width) -> nn.Module:
    return MobileNetV1(num_classes, in_channels, 1 if side <= 32 else 2, width, dropout=0.2)


_V2 = [
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (3, 6, 32, 3, 2), (3, 6, 64, 4, 2), (3, 6, 96, 3, 1), (3, 6, 160, 3, 2),
    (3, 6, 320, 1, 1),
]  # fmt: skip
"""Stages: kernel size, expansion, channels, blocks, stride of the first."""


def mobilenet_v2(num_classes: int, in_channels: int, side: int, width: Width) -> nn.Module:
    """The second stage keeps the size of images of up to 64 pixels a side."""
    rows = _keeping(_V2, (1,)) if side <= 64 else _V2
    stem = (width(32), 1 if side <= 32 else 2)
    blocks = stages(rows, 32, width, F.relu6)
    return InvertedResidualNet(num_classes, in_channels, stem, blocks, Head(width(1280), dropout=0.2), F.relu6)


_V3_LARGE = [
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 1), (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
]  # fmt: skip
_V3_SMALL = [
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
]  # fmt: skip
"""Blocks: kernel size, hidden channels, channels, squeeze-excite or not, hard swish or ReLU, stride."""


def _mobilenet_v3(
    table: Sequence[tuple[int, ...]],
    last: Head,
    num_classes: int,
    in_channels: int,
    side: int,
    width: Width,
) -> nn.Module:
    blocks, channels = [], 16
    for kernel_size, hidden, out_channels, squeeze, hard, stride in table:
        blocks.append(
            Block(
                kernel_size,
                width(hidden),
                width(out_channels),
                stride,
                expand=hidden != channels,
                shortcut=stride == 1 and channels == out_channels,
                activation=F.hardswish if hard else F.relu,
                squeeze=width(hidden // 4) if squeeze else 0,
            )
        )
        channels = out_channels
    stem = (width(16), 1 if side <= 64 else 2)
    head = Head(width(last.last), width(last.squeeze) if last.squeeze else 0, width(last.hidden))
    return InvertedResidualNet(num_classes, in_channels, stem, blocks, head, F.hardswish, gates=(F.relu, F.hardsigmoid))


_MNASNET = [
    (3, 1, 16, 1, 1), (3, 3, 24, 3, 2), (5, 3, 40, 3, 2), (5, 6, 80, 3, 2), (3, 6, 96, 2, 1), (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
]  # fmt: skip


def mnasnet(num_classes: int, in_channels: int, side: int, width: Width) -> nn.Module:
    stem = (width(32), 1 if side <= 32 else 2)
    blocks = stages(_MNASNET, 32, width, F.relu)
    return InvertedResidualNet(num_classes, in_channels, stem, blocks, Head(width(1280), dropout=0.2), F.relu)


_B0 = [
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
]  # fmt: skip


def efficientnet_b0(num_classes: int, in_channels: int, side: int, width: Width) -> nn.Module:
    """The second and third stage keep the size of images of up to 32 pixels a side; there is no dropout."""
    rows = _keeping(_B0, (1, 2)) if side <= 32 else _B0
    stem = (width(32), 1 if side <= 64 else 2)
    blocks = stages(rows, 32, width, F.silu, squeeze=4)
    return InvertedResidualNet(
        num_classes, in_channels, stem, blocks, Head(width(1280)), F.silu, gates=(F.silu, torch.sigmoid)
    )


def _keeping(rows: Sequence[Stage], which: Sequence[int]) -> list[Stage]:
    """The stages, of which some have stride 1."""
    return [(*row[:4], 1) if number in which else row for number, row in enumerate(rows)]


NETWORKS: dict[str, Callable[[int, int, int, Width], nn.Module]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": partial(_mobilenet_v3, _V3_SMALL, Head(576, squeeze=144, hidden=1280)),
    "mobilenet_v3_large": partial(_mobilenet_v3, _V3_LARGE, Head(960, hidden=1280)),
    "mnasnet": mnasnet,
    "efficientnet_b0": efficientnet_b0,
}


def build(
    name: str, num_classes: int, in_channels: int, image_size: Sequence[int], multiplier: float | None = None
) -> nn.Module:
    """A freshly initialised network for images of this height and width. multiplier: factor on every width.

    Raises UsageError for an unknown name and for what is no multiplier.
    """
    if name not in NETWORKS:
        raise UsageError(f"no backbone is called {name!r}{nearest(str(name), NETWORKS)}")
    return NETWORKS[name](num_classes, in_channels, max(image_size), lambda width: scaled(width, multiplier))
