"""What happens at the end of a round: made by the first process, carried out by all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """One round of a method. Subclasses hold what is to be done.

    stop: why the running phase ends with this round, if it does; None: it goes on. clipped: whether a limit cut off
    some of what was wanted.
    """

    round: int
    stop: str | None = field(default=None, kw_only=True)
    clipped: bool = field(default=False, kw_only=True)

    def record(self) -> dict[str, Any]:
        """What growth.jsonl holds of the plan itself, as plain values."""
        return {}

    @property
    def replaces_parameters(self) -> bool:
        """Whether parameters are other objects afterwards, so that DistributedDataParallel must wrap them anew."""
        return True


@dataclass(frozen=True, repr=False)
class WidthPlan(Plan):
    """New widths of the groups: before -> after.

    saturation: of the groups, where it was measured. candidates: the groups that the rule wanted to change. keep: where
    the network is narrowed, the channels of each group that stay. start: values, by name, of the tensors that new
    channels bring along (growth.init=firefly).
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    saturation: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    keep: Mapping[str, Sequence[int]] = field(default_factory=dict, kw_only=True)
    start: Mapping[str, Tensor] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def changes(self) -> dict[str, int]:
        """New widths of the groups that change (what `resize` takes), or that are new (`change_depth` adds those)."""
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
        return bool(self.changes or self.stop)  # with its last round a method's own parameters may go

    def __repr__(self) -> str:
        changes = ", ".join(f"{name} {self.before.get(name, 0)}->{width}" for name, width in self.changes.items())
        stop = f"; the phase ends: {self.stop}" if self.stop else ""
        clipped = ", clipped" * self.clipped
        return f"{type(self).__name__}(round {self.round}: {changes or 'nothing changes'}{clipped}{stop})"
