"""DnCNN (Zhang et al. 2017) and U-Net (Ronneberger et al. 2015) for images of the size of their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.common import initialise
from budgetnet.backbones.fabric import scaled
from budgetnet.backbones.super_resolution import convolution
from budgetnet.errors import UsageError


class DnCNN(nn.Module):
    """A chain of 3×3 convolutions that learns what to add to the image: (batch, channels, height, width) to the same.

    layers: between the first and the last convolution.
    """

    def __init__(self, channels: int, layers: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width)
        body: list[nn.Module] = []
        for _ in range(layers):
            body.append(convolution(width, width))
            if batch_norm:
                body.append(nn.BatchNorm2d(width))
            body.append(nn.ReLU())
        self.body = nn.Sequential(*body)
        self.conv2 = convolution(width, channels)
        initialise(self, classifier=self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.conv2(self.body(F.relu(self.conv1(x))))
        return x + added


class Pair(nn.Module):
    """Two 3×3 convolutions with ReLUs."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width)
        self.conv2 = convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class UNet(nn.Module):
    """Levels of half the size and twice the filters, and back: (batch, channels, height, width) to the same.

    What a level found on the way down stands beside what comes up. Sizes that do not halve often enough are padded with
    copies of the border, which are cut off again.
    """

    def __init__(self, channels: int, levels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(Pair(before, after) for before, after in zip([channels, *widths], widths))
        upwards = list(zip(reversed(widths), reversed(widths[:-1])))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(before, after, 2, stride=2) for before, after in upwards)
        self.up = nn.ModuleList(Pair(2 * after, after) for _, after in upwards)
        self.last = nn.Conv2d(width, channels, 1)
        initialise(self, classifier=self.last)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        multiple = 2 ** len(self.grow)
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        found = []
        for level, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2) if level else x)
            found.append(x)
        for grow, pair, beside in zip(self.grow, self.up, reversed(found[:-1])):
            x = pair(torch.cat([grow(x), beside], dim=1))
        out: Tensor = self.last(x)
        return out[:, :, :height, :width]


def dncnn(
    in_channels: int,
    layers: int = 15,
    width: int = 64,
    batch_norm: bool = True,
    multiplier: float | None = None,
    name: str = "dncnn",
) -> DnCNN:
    """A freshly initialised DnCNN. Raises UsageError for what is no number of layers or filters."""
    _check(layers=layers, width=width)
    if not isinstance(batch_norm, bool):
        raise UsageError(f"backbone.batch_norm={batch_norm!r}: expected true or false")
    return DnCNN(in_channels, layers, scaled(width, multiplier), batch_norm)


def unet(
    in_channels: int, levels: int = 5, width: int = 32, multiplier: float | None = None, name: str = "unet"
) -> UNet:
    """A freshly initialised U-Net; width: of its first level. Raises UsageError for what is no number of either."""
    _check(levels=levels, width=width)
    return UNet(in_channels, levels, scaled(width, multiplier))


def _check(**options: int) -> None:
    for option, value in options.items():
        if type(value) is not int or value < 1:
            raise UsageError(f"backbone.{option}={value!r}: expected a whole number, 1 or more")
