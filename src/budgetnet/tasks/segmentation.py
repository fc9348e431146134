"""A class for each pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from budgetnet.tasks.task import Metric, Output, Task

IGNORED = -100
"""Label of a pixel that has none: it counts neither in the loss nor in a metric. torch's cross-entropy skips it too."""

MIOU, PIXEL_ACCURACY = Metric("miou", "mIoU"), Metric("pixel_accuracy", "pixel accuracy")


class Segmentation(Task):
    """A class for each pixel: logits (N, K, H, W), targets (N, H, W) with IGNORED where there is none.

    An image's loss is the mean cross-entropy of its labelled pixels, so images count alike however many pixels of them
    are labelled; one without any has loss 0. label_smoothing: of the training loss alone.
    """

    name = "segmentation"
    metrics = (MIOU, PIXEL_ACCURACY)
    target_dims = 3
    has_examples = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def losses(self, output: Output, targets: Tensor) -> Tensor:
        return _losses(output, targets, 0.0)

    def training_losses(self, output: Output, targets: Tensor) -> Tensor:
        return _losses(output, targets, self.label_smoothing)

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """(K²,): how many labelled pixels of class i (rows) were taken for class j (columns), row by row."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # takes a second to import

        assert isinstance(output, Tensor)
        counts: Tensor = multiclass_confusion_matrix(
            output, targets, output.shape[1], ignore_index=IGNORED, validate_args=False
        )
        return counts.flatten()

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Mean intersection over union, and the part of all labelled pixels that are right, in percent.

        The mean is over the classes that are either labelled or predicted anywhere; without any, both are 0.
        """
        counts = sums.double().view(math.isqrt(len(sums)), -1)
        right = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - right
        if not bool(union.any()):
            return {"miou": 0.0, "pixel_accuracy": 0.0}
        there = union > 0
        parts = {"miou": (right[there] / union[there]).mean(), "pixel_accuracy": right.sum() / counts.sum()}
        return {name: 100 * part.item() for name, part in parts.items()}

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        assert isinstance(output, Tensor)
        return {"true": targets, "predicted": output.argmax(1)}

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return (outputs, *input_shape[1:])


def _losses(output: Output, targets: Tensor, label_smoothing: float) -> Tensor:
    """(N,). A row for each pixel: of whole maps, torch adds up in no fixed order on a GPU."""
    assert isinstance(output, Tensor)
    pixels, labels = output.movedim(1, -1).flatten(0, -2), targets.flatten()
    losses = functional.cross_entropy(
        pixels, labels, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    labelled = (targets != IGNORED).flatten(1).sum(1).clamp(min=1)
    return torch.div(losses.view(len(targets), -1).sum(1), labelled)
