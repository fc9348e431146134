"""Options of pruning: conf/prune. Each class holds the options that one kind of method reads."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.methods.pruning.coupled import SCOPES
from budgetnet.options import require_not_negative, require_one_of, require_positive


@dataclass(frozen=True)
class Scope:
    """Which filters may be removed. Raises UsageError for an unknown scope."""

    scope: str = "all"

    def __post_init__(self) -> None:
        require_one_of("prune", "scope", self.scope, SCOPES)


@dataclass(frozen=True)
class Pruning(Scope):
    """When the full backbone is narrowed, in how many steps, and to multiples of how many channels.

    Raises UsageError for values out of range.
    """

    epochs: int = 150
    steps: int = 1
    epochs_per_step: int = 5
    round_to: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("prune", epochs=self.epochs)
        require_positive("prune", steps=self.steps, epochs_per_step=self.epochs_per_step, round_to=self.round_to)


@dataclass(frozen=True)
class DataDrivenPruning(Pruning):
    """Pruning by scores that are measured on `images` training images. Raises UsageError for values out of range."""

    images: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("prune", images=self.images)


@dataclass(frozen=True)
class PenalisedPruning(Pruning):
    """Pruning by norm scales under an L1 penalty of weight `sparsity`. Raises UsageError for values out of range."""

    sparsity: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative("prune", sparsity=self.sparsity)
