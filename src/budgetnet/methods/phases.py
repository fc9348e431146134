"""The phases of a run, and learning rates as functions of where a phase stands: nothing to save, nothing to restart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from budgetnet.errors import UsageError, nearest

SCHEDULES = ("constant", "cosine", "step", "step_at_half")


def learning_rate(schedule: str, base: float, step: int, steps: int, warmup: int = 0) -> float:
    """Learning rate at `step` (from 0) of a phase of `steps` steps.

    "cosine" decays to 0 at the end of the phase; "step" multiplies by 0.1 at each third (the paper's baselines),
    "step_at_half" at a half and at three quarters (He et al. 2016, on CIFAR);
    `warmup` steps of linear rise come first and count in the phase. Raises UsageError for another schedule.
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
class Phase:
    """A part of a run.

    name: as in metrics.csv. epochs: how long it lasts at most; None: until a plan ends it (`Plan.stop`). schedule, lr,
    warmup_epochs: of the learning rate, over `decay_epochs` (by default the phase's epochs) of which `elapsed` came
    before the phase. final: whether the network has its final shape, so that it may be selected, and compiled.
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
        """Learning rate of a step. epoch: of the phase, from 0."""
        epochs = self.decay_epochs or self.epochs or 1
        step = (self.elapsed + epoch) * steps_per_epoch + batch
        warmup = self.warmup_epochs * steps_per_epoch
        return learning_rate(self.schedule, self.lr, step, epochs * steps_per_epoch, warmup)
