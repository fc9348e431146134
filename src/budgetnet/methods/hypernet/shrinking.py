"""From the scores of a network's channels to the plan that narrows it to its budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.hypernet.selection import Counts, kept, select
from budgetnet.pruning import allocate
from budgetnet.pruning.pools import Pool, pools
from budgetnet.pruning.pools import kept as plan_of

MOST_TIMES = 64

Plan = dict[str, list[int]]
"""The channels that stay, increasing, by width group: a plan for `resize`."""


def widened(graph: ChannelGraph, multiplier: float) -> Counts:
    """The widths of all groups that can be shrunk again times `multiplier`, in whole blocks: a plan for `resize`.

    Raises UsageError for what is no factor above 1.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, (int, float)) or not 1 < multiplier <= MOST_TIMES:
        raise UsageError(f"method.multiplier={multiplier!r}: expected a number above 1, {MOST_TIMES} at most")
    in_pools = {name for pool in pools(graph) for name in pool.groups}
    return {
        group.name: round(group.width * multiplier / group.blocks) * group.blocks
        for group in graph.groups
        if group.name in in_pools
    }


def fed_to_classifier(graph: ChannelGraph) -> set[str]:
    """The groups that a layer reads whose own width never changes: the classifier, or the last convolution."""
    producers = {path for group in graph.groups for path in group.producers}
    return {group.name for group in graph.groups if set(group.consumers) - producers}


def floors_by_share(graph: ChannelGraph, rho: float, tau: float) -> Counts:
    """The fewest channels of every group: the part ρ of its width, τ where it feeds the classifier, at least one.

    Raises UsageError for what is no part.
    """
    for option, share in {"method.rho": rho, "method.tau": tau}.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UsageError(f"{option}={share!r}: expected the least part of its channels that a layer keeps, 0 to 1")
    last = fed_to_classifier(graph)
    return {g.name: max(1, int(g.width * (tau if g.name in last else rho))) for g in graph.groups}


def floors_by_count(graph: ChannelGraph, count: int) -> Counts:
    """The fewest channels of every group: `count`, or all where there are no more. Raises UsageError for no count."""
    if type(count) is not int or count < 1:
        raise UsageError(f"method.floor={count!r}: expected a number of channels, 1 or more")
    return {group.name: min(count, group.width) for group in graph.groups}


def narrow(
    graph: ChannelGraph, scores: Mapping[str, Tensor], floors: Mapping[str, int], limits: Mapping[str, int]
) -> tuple[float, Plan]:
    """The global threshold and the plan that keeps the most channels within `limits`, by kind ("flops", "params").

    scores: (width,) by width group. Channels that go together compete together: those of groups that a parameter-free
    shortcut joins have one score, their mean, and of a group in blocks each block keeps equally many, the channel of
    rank r of all blocks having one score. Raises UsageError, with both numbers, if the floors alone exceed a limit, and
    for a network without a group to shrink.
    """
    units = _Units(graph, scores, floors)
    cost = CostModel(graph)

    def threshold(kind: str) -> float:
        def price(counts: Counts) -> int:
            return cost.price(kind, cost.vector({**graph.widths, **units.widths(counts)}))

        return select(units.scores, units.floors, price, limits[kind], f"budget.{kind}")[0]

    highest = max(threshold(kind) for kind in limits)  # kept sets are nested: the smallest fits every limit
    return highest, units.plan(highest)


def kept_widths(
    graph: ChannelGraph, scores: Mapping[str, Tensor], floors: Mapping[str, int], threshold: float
) -> Counts:
    """The widths of the groups if every channel below a given threshold went, but for the floors."""
    units = _Units(graph, scores, floors)
    return {name: len(channels) for name, channels in units.plan(threshold).items()}


class _Units:
    """The channels that go together, as groups for `select`: pools of width groups, and in them ranks over blocks."""

    def __init__(self, graph: ChannelGraph, scores: Mapping[str, Tensor], floors: Mapping[str, int]) -> None:
        self.pools = [pool for pool in pools(graph) if set(pool.groups) <= scores.keys()]
        if not self.pools:
            raise UsageError(
                f"{type(graph.model).__name__} has no width group to shrink: expected a convolution whose number of "
                "filters may change"
            )
        self.sizes = {name: values.detach().abs().double().cpu() for name, values in scores.items()}
        self.scores, self.floors = {}, {}
        for number, pool in enumerate(self.pools):
            ranked = pool.scores(self.sizes).reshape(pool.blocks, -1).sort(dim=1, descending=True).values
            self.scores[str(number)] = ranked.mean(0)
            self.floors[str(number)] = max(_floor(pool, floors[name], graph.group(name).width) for name in pool.groups)

    def widths(self, counts: Mapping[str, int]) -> Counts:
        return allocate.widths(self.pools, self._channels(counts))

    def plan(self, threshold: float) -> Plan:
        counts = {name: int(kept(self.scores[name], threshold, self.floors[name]).sum()) for name in self.scores}
        return plan_of(self.pools, self.sizes, self._channels(counts))

    def _channels(self, counts: Mapping[str, int]) -> list[int]:
        return [counts[str(number)] * pool.blocks for number, pool in enumerate(self.pools)]


def _floor(pool: Pool, floor: int, width: int) -> int:
    """Of a group's floor the part that falls to a pool, in units of which every block has one."""
    return math.ceil(floor * len(pool) / width / pool.blocks)
