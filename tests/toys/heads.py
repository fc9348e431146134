"""A network with two heads, and the task that it has: the mean of their losses, judged by the second."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budgetnet.errors import UsageError
from budgetnet.tasks import Classification, Output


class TwoHeads(nn.Module):
    """Logits after one convolution, and after two."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(in_channels, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.early, self.late = nn.Linear(8, num_classes), nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.first(x)))
        return self.early(x.mean((2, 3))), self.late(F.relu(self.second(x)).mean((2, 3)))


class BothHeads(Classification):
    """Targets (N,), as for one head."""

    name = "both_heads"

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        return torch.stack([super(BothHeads, self).losses(head, targets) for head in output]).mean(0)

    def training_losses(self, output: Output, targets: Tensor) -> Tensor:
        return self.losses(output, targets)

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        return self.losses(output, targets).mean()

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        return super().sums(output[-1], targets)

    def check(self, output: object, outputs: int, input_shape: tuple[int, int, int]) -> None:
        if not isinstance(output, tuple):
            raise UsageError(f"it gives a {type(output).__name__} for two images: expected a tuple of logits")
        for head in output:
            super().check(head, outputs, input_shape)
