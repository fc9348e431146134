"""Options of pruning: conf/prune and conf/method/grow_prune.yaml. A class for the options of each kind of method."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.errors import UsageError
from budgetnet.options import require_not_negative, require_one_of, require_positive

SCOPES = ("all", "inner")


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


@dataclass(frozen=True)
class Sampling:
    """conf/method/grow_prune.yaml: how long filters are sampled, and how the indicators begin, move and harden.

    search_epochs: the number of epochs in which filters are sampled, by default all before fine-tuning.
    start: the initial probability of each indicator.
    temperature: the highest temperature β.
    pull: the total weight of the penalty on the distance from the budget.

    Raises UsageError for values out of range.
    """

    search_epochs: int | None = None
    start: float = 0.2
    temperature: float = 100.0
    pull: float = 40.0

    def __post_init__(self) -> None:
        require_positive("method", search_epochs=self.search_epochs, pull=self.pull)
        if not 0 < self.start < 1:
            raise UsageError(f"method.start={self.start}: expected a fraction of the filters between 0 and 1")
        if not self.temperature >= 1:
            raise UsageError(f"method.temperature={self.temperature}: expected 1 or more")
