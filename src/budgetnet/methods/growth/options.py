"""Options of growth: conf/growth, conf/lbi and conf/method/replay.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budgetnet.errors import UsageError, nearest
from budgetnet.methods.options import FineTuning
from budgetnet.options import require_not_negative, require_one_of, require_positive

POLICIES = ("cost_aware", "balanced", "saturation", "uniform", "random", "gradient", "firefly")
INITIALISATIONS = ("he", "zero_out", "net2wider", "gradmax", "firefly")
REDUCTIONS = ("max", "mean")
BY_COST = ("cost_aware", "balanced")
"""Policies that add channels one by one, by what they cost."""
ROUNDS_BY_COST = (*BY_COST, "uniform")
"""Policies whose rounds raise the use of the budget by one ratio, at most `cost_ratio`."""
SELECTIONS = ("path", "support")
"""Read-outs of which filters are selected."""
GAINS = ("importance", "gradient", "firefly")
"""Read-outs of what one more channel is worth to the loss."""


@dataclass(frozen=True)
class GrowthRule:
    """conf/growth: how much a round adds. Each option is explained in conf/growth/*.yaml.

    `cost_ratio` is the relative rise of the cost per round under the policies of ROUNDS_BY_COST. Under the others a
    candidate grows to max(width + number, floor(width * (1 + ratio))). Widths are multiples of `round_to`. shortcuts:
    "pad" for widths that do not fall along a parameter-free shortcut, which then crops nothing. policy: None for the
    one that does best on networks of the kind at hand (`policy.usual_policy`), or cost_aware where `shortcuts` asks for
    it. Raises UsageError for values out of range.
    """

    policy: str | None = None
    threshold: float = 0.4
    number: int = 2
    ratio: float = 0.3
    cost_ratio: float = 0.5
    round_to: int = 1
    shortcuts: str | None = None

    def __post_init__(self) -> None:
        if self.policy is not None and self.policy not in POLICIES:
            raise UsageError(f"growth.policy={self.policy!r} is unknown{nearest(self.policy, POLICIES)}")
        if self.shortcuts not in (None, "pad"):
            raise UsageError(f"growth.shortcuts={self.shortcuts!r}: expected pad or null")
        if self.shortcuts and self.policy is None:
            object.__setattr__(self, "policy", "cost_aware")
        if self.shortcuts and self.policy not in BY_COST:
            raise UsageError(
                f"growth.shortcuts={self.shortcuts}: growth.policy={self.policy} widens what it widens; "
                f"use {' or '.join(BY_COST)}"
            )
        if self.number < 0 or self.ratio < 0 or (self.number == 0 and self.ratio == 0):
            raise UsageError(f"growth.number={self.number}, growth.ratio={self.ratio}: one must be above 0, none below")
        if not 0 <= self.threshold < 1:
            raise UsageError(f"growth.threshold={self.threshold}: expected a saturation from 0 up to, not including, 1")
        if self.cost_ratio <= 0:
            raise UsageError(f"growth.cost_ratio={self.cost_ratio}: expected a rise of FLOPs per round above 0")
        if self.round_to < 1:
            raise UsageError(f"growth.round_to={self.round_to}: expected 1 or more channels")


@dataclass(frozen=True)
class NewChannels:
    """conf/growth: how new channels are initialised, and whether the optimizer's state is reset.

    Raises UsageError for unknown values.
    """

    init: str = "he"
    state: str = "reset"
    rescale: bool = True

    def __post_init__(self) -> None:
        require_one_of("growth", "init", self.init, INITIALISATIONS)
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
        require_one_of("growth", "readout", self.readout, (*SELECTIONS, *GAINS))
        if self.readout in GAINS and self.policy is None:
            object.__setattr__(self, "policy", "cost_aware")
        if self.readout in GAINS and self.policy != "cost_aware":
            raise UsageError(
                f"growth.readout={self.readout}: growth.policy={self.policy} does not weigh what a channel is worth; "
                "use cost_aware"
            )
        if not 0 < self.quantile < 1:
            raise UsageError(
                f"growth.quantile={self.quantile}: expected a fraction of the filters, above 0 and below 1"
            )

    @property
    def unread(self) -> dict[str, str]:
        """The options of conf/growth that the policy does not read, with what reads them."""
        if self.policy not in (None, *ROUNDS_BY_COST):
            return {"cost_ratio": f"growth.policy={', '.join(ROUNDS_BY_COST)}"}
        others = f"growth.policy={', '.join(each for each in POLICIES if each not in ROUNDS_BY_COST)}"
        if "firefly" in (self.init, self.readout):  # as many candidates as the rule would add
            return {"threshold": others}
        return {"threshold": others} | dict.fromkeys(("number", "ratio"), f"{others}, growth.init=firefly")


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


@dataclass(frozen=True)
class ReplayOptions:
    """conf/method/replay.yaml: the directory of a finished run that grew."""

    schedule_from: str | None = None
