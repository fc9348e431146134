"""Options that several methods read: one value object, which checks its values, for each section of conf/."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.errors import UsageError
from budgetnet.methods.phases import SCHEDULES, Phase
from budgetnet.options import require_not_negative, require_one_of, require_positive

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Optimization:
    """conf/optim: the settings of SGD or Adam, whose β₁ is `momentum`.

    `schedule` applies to phases in which the shape of the network is fixed.

    Raises UsageError for values out of range.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        require_positive("optim", lr=self.lr)
        require_not_negative(
            "optim", momentum=self.momentum, weight_decay=self.weight_decay, warmup_epochs=self.warmup_epochs
        )
        require_one_of("optim", "schedule", self.schedule, SCHEDULES)
        require_one_of("optim", "optimizer", self.optimizer, OPTIMIZERS)
        if self.momentum >= 1:
            raise UsageError(f"optim.momentum={self.momentum}: expected 0 up to, not including, 1")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"optim.label_smoothing={self.label_smoothing}: expected 0 up to, not including, 1")

    def must_be_sgd(self, method: str) -> None:
        """Raises UsageError for another optimizer, on behalf of a method that has its own."""
        if self.optimizer != "sgd":
            raise UsageError(
                f"optim.optimizer={self.optimizer}: method={method} has an optimizer of its own, a kind of SGD: leave "
                "it out"
            )

    def phase(self, name: str, epochs: int, *, final: bool = False) -> Phase:
        """A phase of `epochs` epochs with this schedule."""
        return Phase(name, epochs, self.lr, self.schedule, self.warmup_epochs, final=final)

    def growing(self, name: str = "grow", epochs: int | None = None) -> Phase:
        """A phase with a constant learning rate after the warm-up, since the rate must not decay before the last round.

        epochs: None for a phase that lasts until a plan ends it.
        """
        return Phase(name, epochs, self.lr, "constant", self.warmup_epochs)


@dataclass(frozen=True)
class FineTuning:
    """conf/finetune: the training after the last round. If `lr` is None, the rate of `optim` is used.

    Raises UsageError for values out of range.
    """

    epochs: int
    lr: float | None = None
    schedule: str = "cosine"
    warmup_epochs: int = 0

    least_epochs = 1

    def __post_init__(self) -> None:
        require_positive("finetune", lr=self.lr)
        require_not_negative("finetune", warmup_epochs=self.warmup_epochs)
        if self.epochs < self.least_epochs:
            expected = "a number above 0" if self.least_epochs else "0 or more"
            raise UsageError(f"finetune.epochs={self.epochs}: expected {expected}")
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"finetune.warmup_epochs={self.warmup_epochs}: longer than finetune.epochs={self.epochs}")
        require_one_of("finetune", "schedule", self.schedule, SCHEDULES)

    def rate(self, optim: Optimization) -> float:
        """The initial learning rate of fine-tuning."""
        return optim.lr if self.lr is None else self.lr

    def phase(self, optim: Optimization) -> Phase:
        """The last phase of a run."""
        return Phase("finetune", self.epochs, self.rate(optim), self.schedule, self.warmup_epochs, final=True)


@dataclass(frozen=True)
class Source:
    """conf/method/train.yaml: a run directory, or its summary.json, whose final widths and edges are trained."""

    widths_from: str | None = None
