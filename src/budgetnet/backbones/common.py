"""Functions of all backbones: shortcuts between unequal widths, convolutions, and initialisation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function


def match_channels(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x`, (batch, C, height, width), padded with zeros or cropped to the number of channels of `like`.

    Channels are added or removed at the end, so that channel i of a shortcut is added to channel i of the block at any
    widths, and stays aligned when channels are appended. If the numbers are equal, the result is `x` itself.
    """
    if has_torch_function((x, like)):  # in a symbolic trace (torch.fx) it is one operation, whatever the widths
        traced: torch.Tensor = handle_torch_function(match_channels, (x, like), x, like)
        return traced
    missing = like.shape[1] - x.shape[1]
    if missing == 0:
        return x
    if missing < 0:
        return x[:, : like.shape[1]]
    return F.pad(x, (0, 0, 0, 0, 0, missing))


def subsampled(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Every `stride`-th pixel of `x`, (batch, channels, height, width), beginning with the first."""
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def convolution(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution before a batch norm: without bias, and with padding that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


def initialise(network: nn.Module, classifier: nn.Module) -> None:
    """He initialisation by fan-in (He et al. 2015): gain √2 before a ReLU, 1 for the classifier.

    With fan-in, unlike fan-out, every filter of every hidden layer has an expected squared norm of 2. The selection
    norm of LBI (`selection_threshold`) relies on this, so that it means the same in all layers.
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
