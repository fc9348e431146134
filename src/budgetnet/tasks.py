"""What a network is trained to tell: the class of an image, or the class of each of its pixels.

Logits are (N, K) for labels (N,), or (N, K, H, W) for masks (N, H, W); functions of plain tensors, without a trainer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Label of a pixel that has none: it counts neither in the loss nor in a score. torch's cross-entropy skips it too."""


class Task(ABC):
    """What the loss is, and what is right.

    name: as the option `task` has it. measures: what an evaluation gives, in percent; the first selects the network.
    """

    name: str
    measures: tuple[str, ...]

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of the examples, a scalar."""
        return self.losses(logits, targets, label_smoothing).mean()

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of every example, (N,)."""

    @abstractmethod
    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What part of every example is right, (N,), float32 in 0..1."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Classification(Task):
    """A class for each image: logits (N, K), targets (N,)."""

    name = "classification"
    measures = ("top1", "top5")

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 where the largest logit is the right one, else 0."""
        return (logits.argmax(1) == targets).float()


class Segmentation(Task):
    """A class for each pixel: logits (N, K, H, W), targets (N, H, W) with IGNORED where there is none.

    An image's loss is the mean cross-entropy of its labelled pixels, so images count alike however many pixels of them
    are labelled; one without any has loss 0.
    """

    name = "segmentation"
    measures = ("top1", "miou")

    def losses(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        # a row for each pixel: of whole maps, torch adds up in no fixed order on a GPU
        pixels, labels = logits.movedim(1, -1).flatten(0, -2), targets.flatten()
        losses = functional.cross_entropy(
            pixels, labels, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
        )
        return losses.view(len(targets), -1).sum(1) / _labelled(targets)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The part of an image's labelled pixels whose largest logit is the right one; 0 for one without any."""
        return (logits.argmax(1) == targets).flatten(1).sum(1).float() / _labelled(targets)

    def confusion(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How many labelled pixels of class i (rows) were taken for class j (columns): (K, K), int64."""
        classes = logits.shape[1]
        cells = torch.where(targets == IGNORED, classes**2, targets * classes + logits.argmax(1))
        return torch.bincount(cells.flatten(), minlength=classes**2 + 1)[:-1].view(classes, classes)

    def scores(self, confusion: Tensor) -> dict[str, float]:
        """Pixel accuracy ("top1") and mean intersection over union ("miou"), in percent, of a set of images.

        confusion: the sum of theirs. Every labelled pixel counts alike. The mean is over the classes that are either
        labelled or predicted anywhere; without any, both are 0.
        """
        counts = confusion.double()
        right = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - right
        if not bool(union.any()):
            return {"top1": 0.0, "miou": 0.0}
        there = union > 0
        parts = {"top1": right.sum() / counts.sum(), "miou": (right[there] / union[there]).mean()}
        return {name: 100 * part.item() for name, part in parts.items()}


def _labelled(targets: Tensor) -> Tensor:
    """Pixels of each mask (N, H, W) that have a class, at least 1: (N,)."""
    return (targets != IGNORED).flatten(1).sum(1).clamp(min=1)


TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (Classification(), Segmentation())})
"""By name."""
