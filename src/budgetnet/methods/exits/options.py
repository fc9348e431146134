"""Options of early exits: conf/method/exits.yaml and l2w.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from budgetnet.errors import UsageError
from budgetnet.options import require_not_negative, require_one_of, require_positive

MOST_UNITS, MOST_LAYERS = 2**16, 64
CENTRINGS = ("exit", "matrix", "sample")


@dataclass(frozen=True)
class Techniques:
    """conf/method/exits.yaml: whether a network with exits is trained by the techniques of imta.py, in two phases."""

    imta: bool = False


@dataclass(frozen=True)
class Weights(Techniques):
    """conf/method/l2w.yaml."""

    delta: float = 0.8
    centring: str = "sample"
    q: float = 0.75
    interval: int = 1
    width: int = 500
    depth: int = 1
    lr: float = 1e-4
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        require_not_negative("method", delta=self.delta, weight_decay=self.weight_decay)
        require_positive("method", q=self.q, interval=self.interval, lr=self.lr)
        require_one_of("method", "centring", self.centring, CENTRINGS)
        for name, most in (("width", MOST_UNITS), ("depth", MOST_LAYERS)):
            if not 0 < getattr(self, name) <= most:
                raise UsageError(f"method.{name}={getattr(self, name)}: expected a whole number, 1 to {most}")
