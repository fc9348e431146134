"""Coupled channels: those that can only be removed together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph

Scores = Mapping[str, Tensor]
"""The importance of each channel, (width,) by width group; channels with higher scores are kept."""


_LARGEST = 1e30
"""A score that sums of scores stay finite with."""


@dataclass(frozen=True)
class CoupledChannels:
    """A set of channels that compete with each other: the range start..stop of every group in `groups`.

    A channel is removed from all groups at once. Most sets consist of one whole group. A parameter-free shortcut pads
    and crops at the end and adds channels of equal index, which couples the groups that it joins.

    blocks: the number of blocks of equal size into which the range is divided, each of which must lose equally many
    channels.
    """

    groups: tuple[str, ...]
    start: int
    stop: int
    blocks: int = 1

    def __len__(self) -> int:
        return self.stop - self.start

    def scores(self, scores: Scores) -> Tensor:
        """The mean scores over the groups, (channels,) in double precision and finite: nan counts as the lowest, 0."""
        found = torch.stack([scores[name][self.start : self.stop].double() for name in self.groups])
        return found.nan_to_num(0.0, _LARGEST, -_LARGEST).clamp(-_LARGEST, _LARGEST).mean(0)

    def best(self, scores: Scores, count: int) -> list[int]:
        """The `count` channels with the highest scores, as increasing indices; among equals the first come first."""
        by_block = self.scores(scores).reshape(self.blocks, -1)
        order = by_block.argsort(dim=1, descending=True, stable=True)[:, : count // self.blocks]
        chosen = order + torch.arange(self.blocks)[:, None] * by_block.shape[1]
        return [self.start + index for index in sorted(chosen.flatten().tolist())]


def coupled_channels(graph: ChannelGraph, scope: str = "all") -> list[CoupledChannels]:
    """The sets of coupled convolution filters, in order of execution. Channels outside these sets are never removed.

    scope "all": all filters, except those that a parameter-free shortcut adds to channels other than those of equal
    index in a group: to channels of a fixed width, to a concatenation, or to groups in blocks with different widths.
    scope "inner": only filters that no shortcut carries on, such as those inside residual blocks.
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
    """For each group that parameter-free shortcuts join to others, all groups so joined, in order of execution.

    The tuple is empty if the shortcuts do not add channels of equal index.
    """
    chains: dict[str, set[str | None]] = {}
    for sides in graph.joins:
        names = {segment.group for layout in sides for segment in layout}  # None stands for a fixed width
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
    """The channels to keep in each group, increasing, if each set keeps its best `counts`: a plan for `resize`."""
    plan: dict[str, list[int]] = {}
    for each, count in zip(coupled, counts, strict=True):
        for name in each.groups:
            plan.setdefault(name, []).extend(each.best(scores, count))
    return {name: sorted(channels) for name, channels in plan.items()}
