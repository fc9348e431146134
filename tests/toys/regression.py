"""A task in one file: a number for each image, judged by its mean absolute error."""

from __future__ import annotations

import torch
from torch import Tensor

from budgetnet.tasks import Metric, Output, Task


class Regression(Task):
    """Outputs (N, 1), targets (N,): numbers."""

    name = "regression"
    metrics = (Metric("mae", "mean absolute error", unit="", higher_is_better=False),)

    def outputs(self, num_classes: int) -> int:
        return 1

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        assert isinstance(output, Tensor)
        return (output[:, 0] - targets).abs()

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        errors = self.losses(output, targets)
        return torch.stack([errors.double().sum(), torch.ones_like(errors).double().sum()])

    def compute(self, sums: Tensor) -> dict[str, float]:
        return {"mae": float(sums[0] / sums[1])}
