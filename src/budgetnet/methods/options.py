"""Options of the methods, one value object for each configuration section; they check themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budgetnet.errors import UsageError
from budgetnet.methods.phases import SCHEDULES
from budgetnet.options import read as options
from budgetnet.options import require_not_negative, require_one_of, require_positive

__all__ = ["Bregman", "FineTuning", "Optimization", "Pruning", "Rounds", "SeedNetwork", "must_fit", "options"]


@dataclass(frozen=True)
class Optimization:
    """conf/optim: SGD's settings; `schedule` is that of training a fixed network."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_positive("optim", lr=self.lr)
        require_not_negative(
            "optim", momentum=self.momentum, weight_decay=self.weight_decay, warmup_epochs=self.warmup_epochs
        )
        require_one_of("optim", "schedule", self.schedule, SCHEDULES)
        if self.momentum >= 1:
            raise UsageError(f"optim.momentum={self.momentum}: expected 0 up to, not including, 1")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"optim.label_smoothing={self.label_smoothing}: expected 0 up to, not including, 1")


@dataclass(frozen=True)
class Bregman:
    """conf/lbi: the clock of a growth round (`coupling`, `selection_norm`), or ν and λ (`threshold`) fixed by hand."""

    coupling: float = 0.1
    selection_norm: float = 0.9
    kappa: float = 1.0
    weight_decay: float = 0.0
    nu: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        require_positive("lbi", coupling=self.coupling, selection_norm=self.selection_norm, kappa=self.kappa)
        require_positive("lbi", nu=self.nu, threshold=self.threshold)
        require_not_negative("lbi", weight_decay=self.weight_decay)

    def nu_of(self, lr: float, steps: int) -> float:
        """ν for which the coupling pulls an unselected filter by `coupling` in a round: lr · steps / ν = coupling."""
        return lr * steps / self.coupling if self.nu is None else self.nu


@dataclass(frozen=True)
class FineTuning:
    """conf/finetune: what follows the last growth round. `lr` None: that of optim. 0 epochs: nothing (method=bsn)."""

    epochs: int
    optimizer: str = "sgd"
    lr: float | None = None
    schedule: str = "cosine"
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        require_positive("finetune", lr=self.lr)
        require_not_negative("finetune", epochs=self.epochs, warmup_epochs=self.warmup_epochs)
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"finetune.warmup_epochs={self.warmup_epochs}: longer than finetune.epochs={self.epochs}")
        require_one_of("finetune", "optimizer", self.optimizer, ("sgd", "lbi"))
        require_one_of("finetune", "schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class Rounds:
    """conf/growth: when the network grows and how its new channels start (GrowthRule says who and by how much)."""

    epochs_per_round: int = 10
    max_rounds: int | None = None
    init: str = "he"
    state: str = "reset"
    rescale: bool = True
    reduction: str = "max"
    readout: str = "path"
    quantile: float = 0.5

    def __post_init__(self) -> None:
        from budgetnet.channels.initialise import INITIALISATIONS
        from budgetnet.methods.growth.capacity import READOUTS, REDUCTIONS

        require_positive("growth", epochs_per_round=self.epochs_per_round, max_rounds=self.max_rounds)
        require_one_of("growth", "init", self.init, (*INITIALISATIONS, "firefly"))
        require_one_of("growth", "state", self.state, ("reset", "carry"))
        require_one_of("growth", "reduction", self.reduction, REDUCTIONS)
        require_one_of("growth", "readout", self.readout, READOUTS)
        if not 0 < self.quantile < 1:
            raise UsageError(f"growth.quantile={self.quantile}: expected a part of the filters, above 0 and below 1")

    def must_fit(self, epochs: int, finetune: FineTuning) -> None:
        """Raises UsageError where a run is too short for a round and the fine-tuning."""
        round = f"growth.epochs_per_round={self.epochs_per_round}"
        must_fit(epochs, self.epochs_per_round + finetune.epochs, round, f"finetune.epochs={finetune.epochs}")


@dataclass(frozen=True)
class Pruning:
    """conf/prune: when the full backbone is narrowed, in how many steps, and what scores are measured on."""

    epochs: int
    steps: int = 1
    epochs_per_step: int = 5
    scope: str = "all"
    images: int = 1024
    sparsity: float = 1e-4

    def __post_init__(self) -> None:
        from budgetnet.methods.pruning.pools import SCOPES

        require_positive(
            "prune", epochs=self.epochs, steps=self.steps, epochs_per_step=self.epochs_per_step, images=self.images
        )
        require_not_negative("prune", sparsity=self.sparsity)
        require_one_of("prune", "scope", self.scope, SCOPES)


@dataclass(frozen=True)
class SeedNetwork:
    """conf/growth: what growth starts from, and how wide a layer may become (`budgetnet.channels.fresh`)."""

    seed_width: int
    seed_shape: str = "proportional"
    max_width: Any = None
    linear: bool = False


def must_fit(epochs: int, needed: int, *parts: str) -> None:
    """Raises UsageError if `needed` epochs, those of all `parts` ("finetune.epochs=40"), are more than a run's."""
    if needed > epochs:
        raise UsageError(
            f"{', '.join(parts[:-1])} and {parts[-1]} do not fit into epochs={epochs}: "
            f"raise it to {needed} or shorten one of them"
        )
