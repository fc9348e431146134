"""What the backbones share: the join of unequal widths, their convolution, and initialisation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function


def match_channels(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x`, (batch, C, height, width), with the number of channels of `like`; `x` itself where they agree.

    Missing channels are zeros and surplus channels are cropped, both at the end, so that channel i of a
    shortcut meets channel i of the block at any widths: growth appends channels and re-aligns none.
    """
    if has_torch_function((x, like)):  # a symbolic trace (torch.fx): one operation, whatever the widths
        traced: torch.Tensor = handle_torch_function(match_channels, (x, like), x, like)
        return traced
    missing = like.shape[1] - x.shape[1]
    if missing == 0:
        return x
    if missing < 0:
        return x[:, : like.shape[1]]
    return F.pad(x, (0, 0, 0, 0, 0, missing))


def subsampled(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Every `stride`-th pixel of `x`, (batch, channels, height, width), from the first."""
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def convolution(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that a batch norm follows: no bias, and padding that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def initialise(network: nn.Module, classifier: nn.Module) -> None:
    """He initialisation by fan-in (He et al. 2015): gain √2 before a ReLU, 1 for the classifier.

    With fan-in, unlike fan-out, every filter of every hidden layer starts with an expected squared norm of 2.
    The selection clock of LBI relies on it: one bar on the norm then means the same in all layers.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            gain: Literal["linear", "relu"] = "linear" if module is classifier else "relu"
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
