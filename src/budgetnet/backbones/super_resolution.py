"""EDSR (Lim et al. 2017) and SRResNet (Ledig et al. 2017): images `scale` times as large.

Residual blocks at the size of the input, then convolutions whose channels become pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import initialise
from budgetnet.backbones.fabric import scaled
from budgetnet.errors import UsageError

MEAN = (0.4488, 0.4371, 0.4040)
"""Of the red, green and blue of DIV2K, in 0..1."""

SCALES = {2: (2,), 3: (3,), 4: (2, 2)}
"""Factors of the upsampling steps."""


def convolution(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    """A convolution with bias that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def shift(channels: int, sign: int) -> nn.Conv2d:
    """A 1×1 convolution that starts as the addition of `sign` times the mean colour; the published counts have it."""
    layer = nn.Conv2d(channels, channels, 1)
    mean = torch.tensor(MEAN if channels == len(MEAN) else [sum(MEAN) / len(MEAN)] * channels)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels)[:, :, None, None])
        layer.bias.copy_(sign * mean)
    return layer


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, with batch norms or without, added to what they read."""

    def __init__(self, channels: int, activation: nn.Module, norms: bool) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels)
        self.bn1 = nn.BatchNorm2d(channels) if norms else nn.Identity()
        self.activation = activation
        self.conv2 = convolution(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels) if norms else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        return x + out


class Upsampling(nn.Module):
    """A 3×3 convolution to factor² times the channels, which become factor × factor pixels."""

    def __init__(self, channels: int, factor: int, activation: nn.Module) -> None:
        super().__init__()
        self.factor = factor
        self.conv1 = convolution(channels, factor**2 * channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(F.pixel_shuffle(self.conv1(x), self.factor))
        return out


class Upscaler(nn.Module):
    """(batch, channels, height, width), values in 0..1, to (batch, channels, scale · height, scale · width).

    blocks, width: number and filters of the residual blocks. inside, outside: make their activations, and those of the
    first convolution and the upsampling. stem: side of the first convolution's kernel. shifted: subtract the mean
    colour first, and add it last.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        blocks: int,
        width: int,
        inside: Callable[[], nn.Module],
        outside: Callable[[], nn.Module],
        stem: int,
        norms: bool,
        shifted: bool,
    ) -> None:
        super().__init__()
        self.conv1, self.activation = convolution(channels, width, stem), outside()
        self.blocks = nn.Sequential(*[ResidualBlock(width, inside(), norms) for _ in range(blocks)])
        self.conv2 = convolution(width, width)
        self.bn2 = nn.BatchNorm2d(width) if norms else nn.Identity()
        self.upsampling = nn.Sequential(*[Upsampling(width, factor, outside()) for factor in SCALES[scale]])
        self.conv3 = convolution(width, channels)
        initialise(self, classifier=self.conv3)
        self.subtract_mean = shift(channels, -1) if shifted else nn.Identity()
        self.add_mean = shift(channels, 1) if shifted else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv1(self.subtract_mean(x)))
        x = x + self.bn2(self.conv2(self.blocks(x)))
        out: Tensor = self.add_mean(self.conv3(self.upsampling(x)))
        return out


def edsr(
    in_channels: int,
    scale: int,
    blocks: int = 8,
    width: int = 128,
    multiplier: float | None = None,
    name: str = "edsr",
) -> Upscaler:
    """EDSR without norms; of 8 blocks of 128 filters, as LW-DNA (CVPR 2021) has it, by default.

    Raises UsageError for a scale other than 2, 3 or 4, and for what is no number of blocks or width.
    """
    _check(scale, blocks, width)
    width = scaled(width, multiplier)
    return Upscaler(in_channels, scale, blocks, width, nn.ReLU, nn.Identity, stem=3, norms=False, shifted=True)


def srresnet(
    in_channels: int,
    scale: int,
    blocks: int = 16,
    width: int = 64,
    multiplier: float | None = None,
    name: str = "srresnet",
) -> Upscaler:
    """SRResNet: batch norms, and rectifiers with a learned slope. Raises UsageError as `edsr` does."""
    _check(scale, blocks, width)
    width = scaled(width, multiplier)
    return Upscaler(in_channels, scale, blocks, width, nn.PReLU, nn.PReLU, stem=9, norms=True, shifted=False)


def _check(scale: int, blocks: int, width: int) -> None:
    if type(scale) is not int or scale not in SCALES:
        raise UsageError(f"scale={scale!r}: expected {', '.join(map(str, SCALES))}")
    for option, value in {"backbone.blocks": blocks, "backbone.width": width}.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"{option}={value!r}: expected a whole number, 1 or more")
