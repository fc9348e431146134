"""Image classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from budgetnet.tasks.task import Metric, Output, Task

TOP1, TOP5 = Metric("top1", "top-1"), Metric("top5", "top-5", in_tables=False)


class Classification(Task):
    """One class for each image: logits (N, K), targets (N,). label_smoothing applies to the training loss alone."""

    name = "classification"
    metrics = (TOP1, TOP5)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        assert isinstance(output, Tensor)
        return functional.cross_entropy(output, targets, reduction="none")

    def training_losses(self, output: Output, targets: Tensor) -> Tensor:
        assert isinstance(output, Tensor)
        return functional.cross_entropy(output, targets, reduction="none", label_smoothing=self.label_smoothing)

    def loss(self, output: Output, targets: Tensor) -> Tensor:
        """The mean of `training_losses`, in one operation."""
        assert isinstance(output, Tensor)
        return functional.cross_entropy(output, targets, label_smoothing=self.label_smoothing)

    def read(self, output: Output, classes: Sequence[str]) -> list[tuple[str, float]]:
        """The names and probabilities of all classes, the likeliest first."""
        assert isinstance(output, Tensor)
        probabilities = output[0].float().softmax(0)
        order = probabilities.argsort(descending=True, stable=True).tolist()
        return [(classes[number], float(probabilities[number])) for number in order]

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """The numbers of images with a correct top-1 prediction, with a correct top-5 prediction, and in all: (3,).

        They are counted without torchmetrics, whose accuracies hold such sums in an object for each metric.
        """
        assert isinstance(output, Tensor)
        largest = output.topk(min(5, output.shape[1])).indices
        correct = largest == targets[:, None]
        top1 = (output.argmax(1) == targets).sum()
        return torch.stack([top1, correct.sum(), torch.full_like(top1, len(targets))])

    def confusion(self, output: Output, targets: Tensor) -> Tensor | None:
        """Counts of int64; None for a network with several outputs, of which a task of its own makes a prediction."""
        if not isinstance(output, Tensor):
            return None
        classes = output.shape[1]
        return torch.bincount(targets * classes + output.argmax(1), minlength=classes**2).view(classes, classes)

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Accuracies in percent. The division is in single precision, as in torchmetrics."""
        top1, top5 = (sums[:2].float() / sums[2].float()).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5}
