"""Plans for the end of a round. The first process makes a plan, and all processes apply it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """One round of a method. Subclasses describe the changes.

    stop: the reason why the current phase ends with this round, or None if it continues.
    clipped: whether a limit reduced the changes that the rule proposed.
    """

    round: int
    stop: str | None = field(default=None, kw_only=True)
    clipped: bool = field(default=False, kw_only=True)

    def record(self) -> dict[str, Any]:
        """The entries of the plan in growth.jsonl, as plain values."""
        return {}

    @property
    def replaces_parameters(self) -> bool:
        """Whether the plan replaces parameter objects, so that DistributedDataParallel must wrap the network again."""
        return True


@dataclass(frozen=True, repr=False)
class WidthPlan(Plan):
    """Widths of the groups before and after a round.

    saturation: the saturation of each group, if it was measured.
    candidates: the groups that the rule proposed to change.
    keep: the channels that remain in each group, if the network is narrowed.
    start: the initial values, by name, of tensors that get new channels (growth.init=firefly).
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    saturation: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    keep: Mapping[str, Sequence[int]] = field(default_factory=dict, kw_only=True)
    start: Mapping[str, Tensor] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def changes(self) -> dict[str, int]:
        """New widths of the groups that change (as `resize` takes them), or that are new (added by `change_depth`)."""
        return {name: width for name, width in self.after.items() if width != self.before.get(name)}

    def record(self) -> dict[str, Any]:
        return {
            "saturation": dict(self.saturation),
            "candidates": list(self.candidates),
            "plan": {name: [self.before.get(name, 0), width] for name, width in self.changes.items()},
            "widths": dict(self.after),
        }

    @property
    def replaces_parameters(self) -> bool:
        return bool(self.changes or self.stop)  # a method may drop parameters of its own in its last round

    def __repr__(self) -> str:
        changes = ", ".join(f"{name} {self.before.get(name, 0)}->{width}" for name, width in self.changes.items())
        stop = f"; the phase ends: {self.stop}" if self.stop else ""
        clipped = ", clipped" * self.clipped
        return f"{type(self).__name__}(round {self.round}: {changes or 'nothing changes'}{clipped}{stop})"
