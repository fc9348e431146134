"""ThiNet (Luo, Wu and Lin, ICCV 2017): removes the channels that matter least to the next layer, rescales the rest."""

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
"""The number of outputs of each consumer that are sampled; the paper takes 10 of every image."""

_DEAD = 1e-9
"""Eigenvalues below this fraction of the largest count as 0: directions in which the kept channels do not vary."""


def thinet(graph: ChannelGraph, images: Tensor, seed: int = 0) -> Scores:
    """The position of every channel in the order in which channels of its group are removed, from 0 up to below 1.

    A sampled output of a consumer is a sum of the contributions x_j of channels. The removed set T grows greedily by
    the channel that gives the smallest sum Σ (Σ_{j∈T} x_j)² over the samples of all consumers of the group (section
    3.2 and algorithm 1 of the paper).

    images: (N, C, height, width) on the model's device. seed: selects the sampled outputs. The model does not change.
    Raises UsageError as `measurable_groups` does.
    """
    groups = measurable_groups(graph, images)
    products = _products(graph, [group.name for group in groups], images, seed)
    scores = {}
    for group in groups:
        total = torch.zeros(group.width, group.width, dtype=torch.float64)
        for path in group.consumers:
            start = products[path].starts[group.name]
            total += products[path].sums[start : start + group.width, start : start + group.width]
        scores[group.name] = removal_order(total) / group.width  # comparable between coupled groups
    return scores


def rescale(graph: ChannelGraph, kept: Mapping[str, Sequence[int]], images: Tensor, seed: int = 0) -> None:
    """Scale the weights that read the remaining channels, in place, to compensate for the channels to be removed.

    In each consumer the columns of a channel are multiplied by its factor in ŵ = argmin Σ (y - Σ_{j kept} w_j x_j)²,
    where y is the sum over all channels (section 3.2 of the paper). If several ŵ are optimal, the one nearest to 1 is
    taken, so that a channel without a contribution keeps its weights. All layers are fitted to the full network at
    once.

    kept: the channels that remain in each group, as for `resize`, which narrows the network afterwards.
    images: (N, C, height, width) on the model's device. seed: selects the sampled outputs.
    Raises UsageError as `measurable_groups` does.
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
    """Inner products of the contributions of n channels to the sampled outputs of a consumer.

    starts: the index of the first channel of each group. owner: the channel of each input unit, (units,), or -1.
    sums: Σ x_i x_j over the samples, (n, n).
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
        """Add `samples` random outputs of one call."""
        view = windows(self.layer, inputs)
        limits = (view.shape[0], view.shape[2], view.shape[3], self.layer.weight.shape[0])
        image, row, column, filters = (
            torch.randint(limit, (samples,), generator=generator).to(inputs.device) for limit in limits
        )
        patches = view[image, :, row, column].flatten(2)
        by_unit = (patches * rows(self.layer, filters)).sum(2).cpu().double()
        owned = self.owner >= 0
        x = by_unit.new_zeros(samples, len(self.sums)).index_add_(1, self.owner[owned], by_unit[:, owned])
        self.sums += x.T @ x


def _products(graph: ChannelGraph, names: Sequence[str], images: Tensor, seed: int) -> dict[str, _Products]:
    """The products of every consumer of the named groups, by its path."""
    found: dict[str, _Products] = {}
    wanted = dict.fromkeys(path for name in names for path in graph.group(name).consumers)
    generator = torch.Generator().manual_seed(seed)

    def see(path: str, layer: Consumer, inputs: Tensor, count: int) -> None:
        if path not in found:
            found[path] = _Products(graph, path, layer, names)
        found[path].add(inputs, -(-SAMPLES * count // len(images)), generator)

    observe(graph, wanted, images, see)
    return found


def removal_order(sums: Tensor) -> Tensor:
    """The position of each channel in the greedy order, (n,), from the inner products of contributions, (n, n).

    Adding j to T changes ‖Σ_T x‖² by ‖x_j‖² + 2 x_j · Σ_T x, which is updated with one row of `sums` per step.
    """
    change = sums.diagonal().clone()
    place = torch.empty_like(change)
    for step in range(len(sums)):
        first = int(change.argmin())
        place[first] = step
        change += 2 * sums[first]
        change[first] = torch.inf
    return place
