"""Weights of samples at exits: what predicts them, how they are centred, and the loss that they make."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.errors import UsageError, nearest

Centring = Literal["matrix", "sample", "exit"]

AXES: dict[str, tuple[int, ...]] = {"matrix": (0, 1), "sample": (1,), "exit": (0,)}
"""By mode of centring, the axes of (batch, exits) over which it takes the mean."""


def centred(u: Tensor, mode: Centring, delta: float) -> Tensor:
    """w = 1 + δ(u − mean(u)), (batch, exits): weights of a mean of 1.

    u: what the network that predicts weights gives, in [-1, 1]. mode: the mean is of all ("matrix"), of a sample over
    its exits ("sample"), or of an exit over the batch ("exit"). u − mean(u) reaches 2, so that a weight may be negative
    where δ is above a half; it is not clamped. Raises UsageError for another mode.
    """
    if mode not in AXES:
        raise UsageError(f"centring={mode!r}: expected matrix, sample or exit{nearest(str(mode), AXES)}")
    return 1 + delta * (u - u.mean(AXES[mode], keepdim=True))


def weighted_loss(losses: Tensor, weights: Tensor) -> Tensor:
    """Σ_k mean_i w_ik·l_ik, of losses and weights (batch, exits)."""
    return (weights * losses).mean(0).sum()


def exit_losses(logits: tuple[Tensor, ...], labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every sample at every exit, (batch, exits). logits: by exit, (batch, classes)."""
    losses = [F.cross_entropy(each, labels, reduction="none", label_smoothing=label_smoothing) for each in logits]
    return torch.stack(losses, 1)


class WeightPrediction(nn.Sequential):
    """g of the paper: the losses of samples at their exits, (batch, exits), to u in (-1, 1), (batch, exits).

    depth: hidden layers, of `width` units with a ReLU each. Give it losses that are detached.
    """

    def __init__(self, exits: int, width: int = 500, depth: int = 1) -> None:
        layers: list[nn.Module] = []
        units = exits
        for _ in range(depth):
            layers += [nn.Linear(units, width), nn.ReLU()]
            units = width
        super().__init__(*layers, nn.Linear(units, exits), nn.Tanh())
