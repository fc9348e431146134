"""Options of learning edges: conf/method/bsn.yaml and conf/finetune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budgetnet.errors import UsageError, nearest
from budgetnet.methods.options import FineTuning
from budgetnet.options import require_positive

CHOICES = ("learned", "random")
BASELINES = ("mean", "ema")
AUTO = "auto"
"""The value of `method.cost_weight` with which the weight of the cost is learned."""


@dataclass(frozen=True)
class SuperNetwork:
    """conf/method/bsn.yaml: how the probabilities of edges are learned. Raises UsageError for values out of range."""

    warmup_epochs: int = 50
    choice: str = "learned"
    cost_weight: Any = AUTO
    lr: float = 0.064
    initial: float = 3.0
    baseline: str = "mean"
    decay: float = 0.9
    samples: int | None = None
    search_epochs: int | None = None
    images: int = 1024

    def __post_init__(self) -> None:
        for name, known in (("choice", CHOICES), ("baseline", BASELINES)):
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"method.{name}={value!r} is unknown{nearest(value, known)}")
        require_positive("method", search_epochs=self.search_epochs, images=self.images)
        if self.warmup_epochs < 0:
            raise UsageError(f"method.warmup_epochs={self.warmup_epochs}: expected 0 or more")
        weight = self.cost_weight
        if weight != AUTO and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0):
            raise UsageError(f"method.cost_weight={weight}: expected a number above 0, or {AUTO}")
        require_positive("method", lr=self.lr)
        if not 0 < self.decay < 1:
            raise UsageError(f"method.decay={self.decay}: expected a number between 0 and 1")
        if not -30 <= self.initial <= 30:
            raise UsageError(f"method.initial={self.initial}: expected a number from -30 to 30")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"method.samples={self.samples}: expected 1 or more, or null")


class OptionalFineTuning(FineTuning):
    """conf/finetune for a method that may skip fine-tuning: 0 epochs, as published."""

    least_epochs = 0
