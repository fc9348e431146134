"""The phases of a run, and learning rates as functions of the step alone, so that a schedule has no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from budgetnet.errors import UsageError, nearest

SCHEDULES = ("constant", "cosine", "step", "step_at_half")


def learning_rate(schedule: str, base: float, step: int, steps: int, warmup: int = 0) -> float:
    """Learning rate at `step` (from 0) of a phase of `steps` steps.

    "cosine" decays to 0 at the end of the phase. "step" multiplies by 0.1 after each third, as the baselines of the
    AdeNeL paper do; "step_at_half" after one half and after three quarters (He et al. 2016, on CIFAR). The rate first
    rises linearly for `warmup` steps, which count as steps of the phase. Raises UsageError for any other schedule.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return base * 0.1 ** min(2, int(3 * progress))
    if schedule == "step_at_half":
        return base * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    raise UsageError(f"schedule={schedule!r} is unknown{nearest(schedule, SCHEDULES)}")


@dataclass(frozen=True)
class Stretch:
    """Epochs that are to come, as far as they can be foreseen. flops: those of the network for one image meanwhile."""

    name: str
    epochs: int
    flops: float


@dataclass(frozen=True)
class Phase:
    """A period of a run with one learning-rate schedule.

    name: the name in metrics.csv.
    epochs: the most epochs it lasts, or None if it lasts until a plan ends it (`Plan.stop`).
    lr, schedule, warmup_epochs: the learning rate over `decay_epochs` (by default the epochs of the phase), of which
    `elapsed` epochs lie before the phase.
    final: whether the network has its final shape, so that it can be compiled and saved as best.ckpt.
    """

    name: str
    epochs: int | None
    lr: float
    schedule: str = "constant"
    warmup_epochs: int = 0
    decay_epochs: int | None = None
    elapsed: int = 0
    final: bool = False

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """Learning rate at batch `batch` of epoch `epoch`, both from 0, of the phase.

        Raises UsageError for an unknown schedule.
        """
        epochs = self.decay_epochs or self.epochs or 1
        step = (self.elapsed + epoch) * steps_per_epoch + batch
        warmup = self.warmup_epochs * steps_per_epoch
        return learning_rate(self.schedule, self.lr, step, epochs * steps_per_epoch, warmup)
