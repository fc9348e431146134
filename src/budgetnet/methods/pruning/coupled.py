"""Which channels can only be removed together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph

SCOPES = ("all", "inner")

Scores = Mapping[str, Tensor]
"""How much each channel of a width group matters, (width,) by group name; the higher, the more."""


@dataclass(frozen=True)
class CoupledChannels:
    """Channels that compete with each other: the range start..stop of every group in `groups`, removed in all of them.

    Most sets are one whole group. Groups that a parameter-free shortcut joins (it pads and crops at the end, so that
    equal indices are added) are coupled: a channel that goes, goes from all of them, and what is left stays
    aligned. blocks: equal parts that must lose equally many.
    """

    groups: tuple[str, ...]
    start: int
    stop: int
    blocks: int = 1

    def __len__(self) -> int:
        return self.stop - self.start

    def scores(self, scores: Scores) -> Tensor:
        """(channels,) in double precision: the mean over the groups."""
        return torch.stack([scores[name][self.start : self.stop].double() for name in self.groups]).mean(0)

    def best(self, scores: Scores, count: int) -> list[int]:
        """The `count` channels that matter most, as increasing indices into the groups; of equals the first."""
        by_block = self.scores(scores).reshape(self.blocks, -1)
        order = by_block.argsort(dim=1, descending=True, stable=True)[:, : count // self.blocks]
        chosen = order + torch.arange(self.blocks)[:, None] * by_block.shape[1]
        return [self.start + index for index in sorted(chosen.flatten().tolist())]


def coupled_channels(graph: ChannelGraph, scope: str = "all") -> list[CoupledChannels]:
    """The sets of all convolution filters, in order of execution; the input, the logits and linear layers stay.

    So do channels that a parameter-free shortcut adds to others than those of equal index in a group: to channels of
    a width that never changes, of a concatenation, or of groups in blocks with different widths.

    scope "inner": only filters inside residual blocks and the like, which no shortcut carries on; the channels that
    blocks hand on to each other stay as they are.
    """
    joined = _joined(graph)
    inner = [group for group in graph.groups if group.kind == "convolution" and group.name not in joined]
    found = {group.name: [CoupledChannels((group.name,), 0, group.width, group.blocks)] for group in inner}
    if scope == "all":
        widths = graph.widths
        for chain in dict.fromkeys(joined.values()):
            edges = sorted({0, *(widths[name] for name in chain)})
            blocks = math.lcm(*(graph.group(name).blocks for name in chain))
            if blocks > 1 and len(edges) > 2:
                continue
            for start, stop in pairwise(edges):
                wide = tuple(name for name in chain if widths[name] >= stop)
                found.setdefault(wide[0], []).append(CoupledChannels(wide, start, stop, blocks))
    return [each for group in graph.groups for each in found.get(group.name, [])]


def _joined(graph: ChannelGraph) -> dict[str, tuple[str, ...]]:
    """Every group that a parameter-free shortcut joins to others -> all of these, in order of execution.

    -> (): equal indices of the groups joined are not what is added.
    """
    chains: dict[str, set[str | None]] = {}
    for sides in graph.joins:
        names = {segment.group for layout in sides for segment in layout}  # None: a width that never changes
        if any(len(layout) > 1 or layout[0].factor > 1 for layout in sides):
            names.add(None)
        together = set.union(names, *(chains[name] for name in names if name in chains))
        chains.update((name, together) for name in together if name is not None)
    convolutions = [group.name for group in graph.groups if group.kind == "convolution"]
    return {
        name: () if None in chains[name] else tuple(n for n in convolutions if n in chains[name])
        for name in convolutions
        if name in chains
    }


def channels_to_keep(coupled: list[CoupledChannels], scores: Scores, counts: list[int]) -> dict[str, list[int]]:
    """Channels to keep by group, increasing, if each set keeps its best so many: a plan for `resize`."""
    plan: dict[str, list[int]] = {}
    for each, count in zip(coupled, counts, strict=True):
        for name in each.groups:
            plan.setdefault(name, []).extend(each.best(scores, count))
    return {name: sorted(channels) for name, channels in plan.items()}
