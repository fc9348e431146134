"""SGD and Adam with the usual weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def sgd(net: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with momentum. The weight decay does not apply to biases, norm scales and norm shifts."""
    return torch.optim.SGD(_groups(net), lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(net: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with β₁ = momentum and β₂ = 0.999; the weight decay is a part of the gradient and applies as in `sgd`."""
    return torch.optim.Adam(_groups(net), lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def _groups(net: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in net.parameters() if p.dim() > 1]
    vectors = [p for p in net.parameters() if p.dim() <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
