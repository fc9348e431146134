"""Which stage gets a block next, within the budget: pure functions behind AutoGrow (Wen et al., KDD 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from budgetnet.methods.depth.options import DepthRule
from budgetnet.methods.growth.policy import Limit
from budgetnet.methods.plan import WidthPlan

Costs = Mapping[str, int]
"""Params, macs and flops."""


@dataclass(frozen=True)
class StageOrder:
    """The order in which stages grow, and the progress of growth.

    order: all stages.
    ended: the stages that no longer grow.
    last: the stage that grew last.
    reached: the value of the metric before the last stage grew; higher is better.
    """

    order: tuple[str, ...]
    ended: tuple[str, ...] = ()
    last: str | None = None
    reached: float = 0.0

    def judged(self, reached: float, threshold: float) -> StageOrder:
        """The same with the last stage ended, unless the metric has risen by `threshold` since it grew."""
        if self.last is None or self.last in self.ended or reached - self.reached >= threshold:
            return self
        return replace(self, ended=(*self.ended, self.last))

    def waiting(self) -> tuple[str, ...]:
        """The stages that still grow, beginning with the next one."""
        start = 0 if self.last is None else self.order.index(self.last) + 1
        return tuple(name for name in (*self.order[start:], *self.order[:start]) if name not in self.ended)


@dataclass(frozen=True, repr=False)
class DepthPlan(WidthPlan):
    """A round of AutoGrow: (blocks before, blocks after) by stage, and the stage order after the round."""

    depths: Mapping[str, tuple[int, int]] = field(default_factory=dict, kw_only=True)
    stage_order: StageOrder = field(default_factory=lambda: StageOrder(()), kw_only=True)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "depths": dict(self.depths)}

    @property
    def replaces_parameters(self) -> bool:
        return True  # blocks may have no width of their own


@dataclass(frozen=True)
class NextBlock:
    """The result of `next_block`.

    stage: the stage that gets a block, or None.
    stage_order: the stage order after this round.
    stop: the reason why growth ends with this round, or None.
    """

    stage: str | None
    stage_order: StageOrder
    stop: str | None


def next_block(
    stage_order: StageOrder,
    reached: float,
    rule: DepthRule,
    depths: Mapping[str, int],
    costs: Costs,
    blocks: Mapping[str, Costs],
    limits: Sequence[Limit],
) -> NextBlock:
    """Judge the last block, and give a block to the next stage that may have one.

    reached: the current value of the metric; higher is better.
    depths: the current number of blocks of each stage.
    costs: the current costs of the network.
    blocks: the costs that another block adds to each stage.

    `stop` is "accuracy" if every stage has ended. It is "max_depth" or the kind of a limit if that prevents all other
    stages from growing, or if no further round fits into a limit. Growth ends together with the last possible block,
    because its effect on the metric would change nothing.
    """
    stage_order = stage_order.judged(reached, rule.threshold)
    refused = _refusals(rule, depths, costs, blocks, limits)
    stage = next((name for name in stage_order.waiting() if refused[name] is None), None)
    if stage is None:
        return NextBlock(None, stage_order, next((refused[name] for name in stage_order.waiting()), "accuracy"))
    stage_order = replace(stage_order, last=stage, reached=reached)
    costs = {kind: cost + blocks[stage][kind] for kind, cost in costs.items()}
    refused = _refusals(rule, {**depths, stage: depths[stage] + 1}, costs, blocks, limits)
    if all(refused[name] for name in stage_order.waiting()):
        return NextBlock(stage, stage_order, refused[stage_order.waiting()[0]])
    last = (limit.kind for limit in limits if limit.next_most is not None and costs[limit.form] > limit.next_most)
    return NextBlock(stage, stage_order, next(last, None))


def _refusals(
    rule: DepthRule,
    depths: Mapping[str, int],
    costs: Costs,
    blocks: Mapping[str, Costs],
    limits: Sequence[Limit],
) -> dict[str, str | None]:
    """Why each stage cannot have another block: "max_depth" or the kind of a limit; None for those that can."""
    refused: dict[str, str | None] = {}
    for name, block in blocks.items():
        exceeded = (limit.kind for limit in limits if costs[limit.form] + block[limit.form] > limit.most)
        deepest = rule.max_depth is not None and depths[name] >= rule.max_depth
        refused[name] = "max_depth" if deepest else next(exceeded, None)
    return refused
