"""Options of growth by blocks: conf/growth and conf/method/autogrow.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.errors import UsageError
from budgetnet.methods.growth.options import Rounds
from budgetnet.options import require_one_of

INITIALISATIONS = ("he", "zero_out")
"""How new blocks start."""


@dataclass(frozen=True)
class BlockRounds(Rounds):
    """conf/growth: when blocks are added, how they are initialised, and whether the optimizer's state is reset.

    Raises UsageError for values out of range.
    """

    init: str = "he"
    state: str = "reset"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("growth", "state", self.state, ("reset", "carry"))
        if self.init not in INITIALISATIONS:
            known = " or ".join(INITIALISATIONS)
            raise UsageError(f"growth.init={self.init} starts new channels: new blocks start by {known}")


@dataclass(frozen=True)
class DepthRule:
    """conf/method/autogrow.yaml: by how much a block must improve the metric, and how deep a stage may become.

    Raises UsageError for values out of range.
    """

    threshold: float = 0.05
    max_depth: int | None = None

    def __post_init__(self) -> None:
        if not -100 <= self.threshold <= 100:
            raise UsageError(f"method.threshold={self.threshold}: expected percentage points, -100 to 100")
        if self.max_depth is not None and self.max_depth < 2:
            raise UsageError(f"method.max_depth={self.max_depth}: expected 2 blocks or more, or null")
