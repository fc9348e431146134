"""Semantic segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from budgetnet.tasks.task import Metric, Output, Task

IGNORED = -100
"""The label of unlabelled pixels, which count neither in the loss nor in metrics (the default of torch's losses)."""

MIOU, PIXEL_ACCURACY = Metric("miou", "mIoU"), Metric("pixel_accuracy", "pixel accuracy")


class Segmentation(Task):
    """One class for each pixel: logits (N, K, H, W), targets (N, H, W) with IGNORED at unlabelled pixels.

    The loss of an image is the mean cross-entropy of its labelled pixels, so that all images have the same weight. An
    image without labelled pixels has loss 0. label_smoothing applies to the training loss alone.
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

    def read(self, output: Output, classes: Sequence[str]) -> Tensor:
        """The class of every pixel, int64 (H, W)."""
        assert isinstance(output, Tensor)
        return output[0].argmax(0)

    def sums(self, output: Output, targets: Tensor) -> Tensor:
        """The flattened confusion matrix, (K²,): how many pixels of class i (rows) were predicted as class j."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # takes a second to import

        assert isinstance(output, Tensor)
        counts: Tensor = multiclass_confusion_matrix(
            output, targets, output.shape[1], ignore_index=IGNORED, validate_args=False
        )
        return counts.flatten()

    def compute(self, sums: Tensor) -> dict[str, float]:
        """Mean intersection over union, and the accuracy over all labelled pixels, in percent.

        The mean is over the classes that occur among labels or predictions; without any, both metrics are 0.
        """
        counts = sums.double().view(math.isqrt(len(sums)), -1)
        correct = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - correct
        if not bool(union.any()):
            return {"miou": 0.0, "pixel_accuracy": 0.0}
        occurs = union > 0
        fractions = {"miou": (correct[occurs] / union[occurs]).mean(), "pixel_accuracy": correct.sum() / counts.sum()}
        return {name: 100 * fraction.item() for name, fraction in fractions.items()}

    def examples(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        assert isinstance(output, Tensor)
        return {"true": targets, "predicted": output.argmax(1)}

    def output_shape(self, outputs: int, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return (outputs, *input_shape[1:])


def _losses(output: Output, targets: Tensor, label_smoothing: float) -> Tensor:
    """The loss of each image, (N,).

    Cross-entropy is computed with a row for each pixel, since on a GPU torch adds over maps in no fixed order.
    """
    assert isinstance(output, Tensor)
    pixels, labels = output.movedim(1, -1).flatten(0, -2), targets.flatten()
    losses = functional.cross_entropy(
        pixels, labels, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    labelled = (targets != IGNORED).flatten(1).sum(1).clamp(min=1)
    return torch.div(losses.view(len(targets), -1).sum(1), labelled)
