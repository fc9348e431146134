"""ThiNet (Luo, Wu and Lin, ICCV 2017): channels that the next layer misses least, and the rest scaled to fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.methods.pruning.consumers import (
    Consumer,
    measurable_groups,
    observe,
    rows,
    scale_columns,
    units,
    windows,
)
from budgetnet.methods.pruning.coupled import Scores

SAMPLES = 2048
"""Outputs of each consumer that are looked at; the paper takes 10 of every image."""

_DEAD = 1e-9  # of the largest eigenvalue: directions in which the kept channels cannot say anything


def thinet(graph: ChannelGraph, images: Tensor, seed: int = 0) -> Scores:
    """The place of every channel in the order in which its group's are removed, from 0, which goes first, up to 1.

    A sampled output of a consumer is the sum over channels of what each contributes, x_j. The removed set T grows by
    the channel that keeps the squared sum of what is removed, Σ (Σ_{j∈T} x_j)², smallest (section 3.2 and
    algorithm 1 of the paper), over the samples of all consumers of the group.

    images: (N, C, height, width) on the model's device. seed: of the sampled outputs. The model stays as it is.
    Raises UsageError without images, and for a group that no layer reads.
    """
    groups = measurable_groups(graph, images)
    products = _products(graph, [group.name for group in groups], images, seed)
    scores = {}
    for group in groups:
        total = torch.zeros(group.width, group.width, dtype=torch.float64)
        for path in group.consumers:
            start = products[path].starts[group.name]
            total += products[path].sums[start : start + group.width, start : start + group.width]
        scores[group.name] = removal_order(total) / group.width  # comparable in groups that lose channels together
    return scores


def rescale(graph: ChannelGraph, kept: Mapping[str, Sequence[int]], images: Tensor, seed: int = 0) -> None:
    """Let the kept channels stand in for those that will be removed: scale what the consumers read of them, in place.

    kept: channels to keep by group, as for `resize`, which narrows the network afterwards. In each consumer the
    columns of a kept channel are multiplied by its factor of ŵ = argmin Σ (y - Σ_{j kept} w_j x_j)², y being the sum
    over all channels (section 3.2 of the paper), and of several the one nearest to 1: a channel that contributes
    nothing keeps its weights. All layers are fitted to the full network, at once.
    Raises UsageError without images, and for a group that no layer reads.
    """
    measurable_groups(graph, images)
    kept = {name: channels for name, channels in kept.items() if len(channels) < graph.group(name).width}
    for products in _products(graph, list(kept), images, seed).values():
        stays = torch.zeros(len(products.sums), dtype=torch.bool)
        for name, start in products.starts.items():
            stays[start + torch.tensor(kept[name])] = True
        square, missing = products.sums[stays][:, stays], products.sums[stays][:, ~stays].sum(1)
        found = torch.ones(len(stays), dtype=torch.float64)
        found[stays] += torch.linalg.pinv(square, rtol=_DEAD, hermitian=True) @ missing
        owner = products.owner
        scale_columns(products.layer, torch.where(owner < 0, 1.0, found[owner.clamp_min(0)]))


class _Products:
    """Inner products of what the channels that a consumer reads contribute to its sampled outputs.

    starts: where each group's channels begin among all (n) of them. owner: (units,) which of them an input unit
    belongs to, -1: to none. sums: (n, n), Σ over the samples of x_i x_j.
    """

    def __init__(self, graph: ChannelGraph, path: str, layer: Consumer, names: Sequence[str]) -> None:
        self.layer = layer
        self.starts: dict[str, int] = {}
        self.owner = torch.full((layer.weight.shape[1] * getattr(layer, "groups", 1),), -1)
        count = 0
        for name in names:
            if path in graph.group(name).consumers:
                position = units(graph, path, name)
                self.owner[position] = torch.arange(count, count + len(position))[:, None]
                self.starts[name] = count
                count += len(position)
        self.sums = torch.zeros(count, count, dtype=torch.float64)

    def add(self, inputs: Tensor, samples: int, generator: torch.Generator) -> None:
        """Look at `samples` random outputs of one call."""
        view = windows(self.layer, inputs)
        limits = (view.shape[0], view.shape[2], view.shape[3], self.layer.weight.shape[0])
        image, row, column, filters = (
            torch.randint(limit, (samples,), generator=generator).to(inputs.device) for limit in limits
        )
        seen = view[image, :, row, column].flatten(2)
        parts = (seen * rows(self.layer, filters)).sum(2).cpu().double()
        owned = self.owner >= 0
        x = parts.new_zeros(samples, len(self.sums)).index_add_(1, self.owner[owned], parts[:, owned])
        self.sums += x.T @ x


def _products(graph: ChannelGraph, names: Sequence[str], images: Tensor, seed: int) -> dict[str, _Products]:
    """Of every consumer of the named groups, by its path."""
    found: dict[str, _Products] = {}
    wanted = dict.fromkeys(path for name in names for path in graph.group(name).consumers)
    generator = torch.Generator().manual_seed(seed)

    def see(path: str, layer: Consumer, inputs: Tensor) -> None:
        if path not in found:
            found[path] = _Products(graph, path, layer, names)
        found[path].add(inputs, -(-SAMPLES * len(inputs) // len(images)), generator)

    observe(graph, wanted, images, see)
    return found


def removal_order(sums: Tensor) -> Tensor:
    """(n,) places in the greedy order, from the inner products of the contributions, (n, n).

    Adding j to T changes ‖Σ_T x‖² by ‖x_j‖² + 2 x_j · Σ_T x, which one row of `sums` a step keeps up to date.
    """
    change = sums.diagonal().clone()
    place = torch.empty_like(change)
    for step in range(len(sums)):
        first = int(change.argmin())
        place[first] = step
        change += 2 * sums[first]
        change[first] = torch.inf
    return place
