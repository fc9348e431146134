"""Options of growth: conf/growth and conf/lbi."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budgetnet.channels.initialise import INITIALISATIONS
from budgetnet.errors import UsageError
from budgetnet.methods.growth.capacity import READOUTS, REDUCTIONS
from budgetnet.methods.growth.policy import GrowthRule
from budgetnet.methods.options import FineTuning
from budgetnet.options import require_not_negative, require_one_of, require_positive


@dataclass(frozen=True)
class NewChannels:
    """conf/growth: how new channels are initialised, and whether the optimizer's state is reset.

    Raises UsageError for unknown values.
    """

    init: str = "he"
    state: str = "reset"
    rescale: bool = True

    def __post_init__(self) -> None:
        require_one_of("growth", "init", self.init, (*INITIALISATIONS, "firefly"))
        require_one_of("growth", "state", self.state, ("reset", "carry"))


@dataclass(frozen=True)
class Rounds:
    """conf/growth: when a network grows. Raises UsageError for numbers that are not positive."""

    epochs_per_round: int = 10
    max_rounds: int | None = None

    def __post_init__(self) -> None:
        require_positive("growth", epochs_per_round=self.epochs_per_round, max_rounds=self.max_rounds)


@dataclass(frozen=True)
class Growth(NewChannels, Rounds, GrowthRule):
    """conf/growth: when which groups grow by how much, from what seed network, and how saturation is measured.

    Raises UsageError for values out of range.
    """

    seed_width: int = 4
    seed_shape: str = "proportional"
    max_width: Any = "8x"
    linear: bool = False
    reduction: str = "max"
    readout: str = "path"
    quantile: float = 0.5

    def __post_init__(self) -> None:
        for base in (NewChannels, Rounds, GrowthRule):
            base.__post_init__(self)
        require_one_of("growth", "reduction", self.reduction, REDUCTIONS)
        require_one_of("growth", "readout", self.readout, READOUTS)
        if not 0 < self.quantile < 1:
            raise UsageError(
                f"growth.quantile={self.quantile}: expected a fraction of the filters, above 0 and below 1"
            )


@dataclass(frozen=True)
class Bregman:
    """conf/lbi: ν and λ, either derived from `coupling` and `selection_norm` or stated as `nu` and `threshold`.

    Raises UsageError for values out of range.
    """

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
        """`nu` if it is stated, or else the ν for which lr · steps / ν = `coupling` in a round of `steps` steps.

        This is the fraction of its norm by which the coupling term shrinks an unselected filter in a round.
        """
        return lr * steps / self.coupling if self.nu is None else self.nu


@dataclass(frozen=True)
class LBIFineTuning(FineTuning):
    """conf/finetune after growth under LBI, with SGD or LBI. Raises UsageError for values out of range."""

    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("finetune", "optimizer", self.optimizer, ("sgd", "lbi"))
