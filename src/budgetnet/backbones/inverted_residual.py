"""What MobileNetV2 and its successors are made of: blocks that widen, filter each channel alone, and narrow again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import convolution, initialise

Activation = Callable[[Tensor], Tensor]


def depthwise(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    """A convolution of each channel alone, before a batch norm."""
    return nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False)


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole image says of them (Hu et al. 2018), by two 1×1 convolutions."""

    def __init__(
        self, channels: int, hidden: int, activation: Activation = F.relu, gate: Activation = torch.sigmoid
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)  # fvcore counts a mean as free, a pooling layer not
        return x * self.gate(self.expand(self.activation(self.reduce(pooled))))


class Block(NamedTuple):
    """One inverted residual of a table. hidden: channels of its depthwise convolution; squeeze: of its squeeze-excite.

    expand: with a 1×1 convolution to the hidden channels. shortcut: with an identity beside it.
    """

    kernel_size: int
    hidden: int
    out_channels: int
    stride: int
    expand: bool
    shortcut: bool
    activation: Activation = F.relu
    squeeze: int = 0


class InvertedResidual(nn.Module):
    """1×1 convolution, depthwise convolution, squeeze-excite and a linear 1×1 convolution, beside an identity."""

    def __init__(self, in_channels: int, block: Block, gates: tuple[Activation, Activation]) -> None:
        super().__init__()
        hidden = block.hidden if block.expand else in_channels
        self.conv1 = convolution(in_channels, hidden, 1) if block.expand else None
        self.bn1 = nn.BatchNorm2d(hidden) if block.expand else None
        self.conv2 = depthwise(hidden, block.kernel_size, block.stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.attention = SqueezeExcite(hidden, block.squeeze, *gates) if block.squeeze else None
        self.conv3 = convolution(hidden, block.out_channels, 1)
        self.bn3 = nn.BatchNorm2d(block.out_channels)
        self.activation, self.shortcut = block.activation, block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = x
        if self.conv1 is not None and self.bn1 is not None:
            out = self.activation(self.bn1(self.conv1(out)))
        out = self.activation(self.bn2(self.conv2(out)))
        if self.attention is not None:
            out = self.attention(out)
        added: Tensor = self.bn3(self.conv3(out))
        return x + added if self.shortcut else added


class Head(NamedTuple):
    """What follows the blocks. last: filters of a 1×1 convolution; squeeze: of a squeeze-excite behind it.

    hidden: units of a linear layer before the classifier. dropout: before the classifier.
    """

    last: int
    squeeze: int = 0
    hidden: int = 0
    dropout: float = 0.0


class InvertedResidualNet(nn.Module):
    """Images (batch, in_channels, height, width) to logits (batch, num_classes).

    stem: filters and stride of the 3×3 convolution before the blocks. activation: of stem and head. gates: of
    squeeze-excite, between its convolutions and behind them.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stem: tuple[int, int],
        blocks: Iterable[Block],
        head: Head,
        activation: Activation,
        gates: tuple[Activation, Activation] = (F.relu, torch.sigmoid),
    ) -> None:
        super().__init__()
        channels, stride = stem
        self.activation = activation
        self.conv1 = convolution(in_channels, channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        layers = []
        for block in blocks:
            layers.append(InvertedResidual(channels, block, gates))
            channels = block.out_channels
        self.blocks = nn.Sequential(*layers)
        self.conv2 = convolution(channels, head.last, 1)
        self.bn2 = nn.BatchNorm2d(head.last)
        self.attention = SqueezeExcite(head.last, head.squeeze, *gates) if head.squeeze else None
        self.hidden = nn.Linear(head.last, head.hidden) if head.hidden else None
        self.dropout = nn.Dropout(head.dropout)
        self.fc = nn.Linear(head.hidden or head.last, num_classes)
        initialise(self, classifier=self.fc)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.activation(self.bn1(self.conv1(x))))
        x = self.activation(self.bn2(self.conv2(x)))
        if self.attention is not None:
            x = self.attention(x)
        x = x.mean((2, 3))
        if self.hidden is not None:
            x = self.activation(self.hidden(x))
        logits: Tensor = self.fc(self.dropout(x))
        return logits


Stage = tuple[int, int, int, int, int]
"""kernel size, expansion, channels, blocks, stride of the first."""


def stages(
    rows: Sequence[Stage], in_channels: int, width: Callable[[int], int], activation: Activation, squeeze: int = 0
) -> list[Block]:
    """The blocks of a table of stages. width: what a number of channels becomes. squeeze: a block's input channels to
    those of its squeeze-excite."""
    blocks = []
    for kernel_size, expansion, channels, depth, first_stride in rows:
        for number in range(depth):
            stride = first_stride if number == 0 else 1
            blocks.append(
                Block(
                    kernel_size,
                    width(in_channels * expansion),
                    width(channels),
                    stride,
                    expand=expansion != 1,
                    shortcut=stride == 1 and in_channels == channels,
                    activation=activation,
                    squeeze=width(in_channels // squeeze) if squeeze else 0,
                )
            )
            in_channels = channels
    return blocks
