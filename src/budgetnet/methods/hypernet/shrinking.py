"""From the scores of a network's channels to the plan that narrows it to its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.channels.upsampled import upsampled
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.hypernet.latents import shrinking_sets
from budgetnet.methods.hypernet.selection import Counts, kept, select
from budgetnet.methods.pruning import allocate
from budgetnet.methods.pruning.coupled import CoupledChannels, channels_to_keep

MOST_TIMES = 64

Plan = dict[str, list[int]]
"""The channels that stay, increasing, by width group: a plan for `resize`."""


def widened(graph: ChannelGraph, multiplier: float) -> Counts:
    """The widths of all groups that can be shrunk again times `multiplier`, in whole blocks: a plan for `resize`.

    Raises UsageError for what is no factor above 1.
    """
    if isinstance(multiplier, bool) or not isinstance(multiplier, (int, float)) or not 1 < multiplier <= MOST_TIMES:
        raise UsageError(f"method.multiplier={multiplier!r}: expected a number above 1, {MOST_TIMES} at most")
    may_shrink = {name for each in shrinking_sets(graph) for name in each.groups}
    return {
        group.name: round(group.width * multiplier / group.blocks) * group.blocks
        for group in graph.groups
        if group.name in may_shrink
    }


def fed_to_classifier(graph: ChannelGraph) -> set[str]:
    """The groups that a layer reads whose own width never changes: the classifier, or the last convolution."""
    producers = {path for group in graph.groups for path in group.producers}
    producers |= {path for paths in upsampled(graph).values() for path in paths}
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

    scores: (width,) by width group. What the threshold keeps is filled up: the best of the channels below it come
    back, one by one, while they fit. Channels that go together compete together: those of groups that a parameter-free
    shortcut joins have one score, their mean, and of a group in blocks each block keeps equally many, the channel of
    rank r of all blocks having one score. Raises UsageError, with both numbers, if the floors alone exceed a limit, and
    for a network without a group to shrink.
    """
    units = _Units(graph, scores, floors)
    cost = CostModel(graph)

    def price(kind: str, counts: Counts) -> int:
        return cost.price(kind, cost.vector({**graph.widths, **units.widths(counts)}))

    def threshold(kind: str) -> float:
        return select(units.scores, units.floors, partial(price, kind), limits[kind], f"budget.{kind}")[0]

    highest = max(threshold(kind) for kind in limits)  # kept sets are nested: the smallest fits every limit
    counts = units.counts(highest)
    return highest, units.keep(
        _filled(units, counts, lambda more: all(price(kind, more) <= limits[kind] for kind in limits))
    )


def kept_widths(
    graph: ChannelGraph, scores: Mapping[str, Tensor], floors: Mapping[str, int], threshold: float
) -> Counts:
    """The widths of the groups if every channel below a given threshold went, but for the floors."""
    units = _Units(graph, scores, floors)
    return units.widths(units.counts(threshold))


class _Units:
    """The channels that go together, as groups for `select`: sets of coupled channels, and in them ranks over blocks.

    scores: of each set by its number, decreasing. floors: the fewest of each.
    """

    def __init__(self, graph: ChannelGraph, scores: Mapping[str, Tensor], floors: Mapping[str, int]) -> None:
        self.coupled = [each for each in shrinking_sets(graph) if set(each.groups) <= scores.keys()]
        if not self.coupled:
            raise UsageError(
                f"{type(graph.model).__name__} has no width group to shrink: expected a convolution whose number of "
                "filters may change"
            )
        self.sizes = {name: values.detach().abs().double().cpu() for name, values in scores.items()}
        self.scores, self.floors = {}, {}
        for number, each in enumerate(self.coupled):
            ranked = each.scores(self.sizes).reshape(each.blocks, -1).sort(dim=1, descending=True).values
            self.scores[str(number)] = ranked.mean(0)
            self.floors[str(number)] = max(_floor(each, floors[name], graph.group(name).width) for name in each.groups)

    def counts(self, threshold: float) -> Counts:
        """How many of each set a threshold keeps."""
        return {name: int(kept(self.scores[name], threshold, self.floors[name]).sum()) for name in self.scores}

    def widths(self, counts: Mapping[str, int]) -> Counts:
        return allocate.widths(self.coupled, self._channels(counts))

    def keep(self, counts: Mapping[str, int]) -> Plan:
        return channels_to_keep(self.coupled, self.sizes, self._channels(counts))

    def _channels(self, counts: Mapping[str, int]) -> list[int]:
        return [counts[str(number)] * each.blocks for number, each in enumerate(self.coupled)]


def _filled(units: _Units, counts: Counts, fits: Callable[[Counts], bool]) -> Counts:
    """Counts such that nothing more fits: of what is left the best score comes first, and none after one that does
    not fit in the same set."""
    counts = dict(counts)
    waiting = {name for name, scores in units.scores.items() if counts[name] < len(scores)}
    while waiting:
        best = max(sorted(waiting), key=lambda name: float(units.scores[name][counts[name]]))
        more = {**counts, best: counts[best] + 1}
        if not fits(more):
            waiting.remove(best)
            continue
        counts = more
        if counts[best] == len(units.scores[best]):
            waiting.remove(best)
    return counts


def _floor(each: CoupledChannels, floor: int, width: int) -> int:
    """Of a group's floor the part that falls to a set, in units of which every block has one."""
    return math.ceil(floor * len(each) / width / each.blocks)
