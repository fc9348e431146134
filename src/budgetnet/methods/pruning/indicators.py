"""Indicators s of filters: their masks σ(βs), the filters sampled from them, and the penalty on them.

Yuan, Savarese and Maire, "Growing Efficient Deep Networks by Structured Continuous Sparsification", ICLR 2021. Channels
that can only be removed together (`coupled_channels`) have one indicator, and so do channels of equal position in the
blocks of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.graph import layout_size
from budgetnet.costs import CostModel
from budgetnet.methods.pruning import allocate
from budgetnet.methods.pruning.allocate import Fits
from budgetnet.methods.pruning.consumers import CONVOLUTIONS, by_column, input_layout, units
from budgetnet.methods.pruning.coupled import CoupledChannels


class Indicators(nn.Module):
    """The indicators of all sets of coupled channels, (n,), one set after the other.

    start: the initial probability of each indicator.
    epochs: the number of active epochs after which an indicator has the temperature `highest`.
    """

    def __init__(self, coupled: Sequence[CoupledChannels], start: float, epochs: int, highest: float) -> None:
        super().__init__()
        count = sum(sizes(coupled))
        self.epochs, self.highest = epochs, highest
        self.scores = nn.Parameter(torch.full((count,), math.log(start / (1 - start))))
        """s, (n,)."""
        self.activity: Tensor
        """The number of epochs in which each indicator was active, (n,)."""
        self.active: Tensor
        """Which indicators are active now, bool (n,)."""
        self.register_buffer("activity", torch.zeros(count, dtype=torch.long))
        self.register_buffer("active", torch.zeros(count, dtype=torch.bool))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Indicators:
        """Move to the device of `fn`, but stay in single precision: half precision would round small steps to zero."""
        super()._apply(lambda tensor: tensor.to(fn(tensor[:0]).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def temperatures(self) -> Tensor:
        """β of each indicator, (n,)."""
        return temperature(self.activity, self.epochs, self.highest)

    def logits(self) -> Tensor:
        """βs of each indicator, (n,). Differentiable."""
        return self.temperatures() * self.scores

    def masks(self) -> Tensor:
        """σ(βs) of each indicator, (n,). Differentiable."""
        return self.logits().sigmoid()


def temperature(activity: Tensor, epochs: int, highest: float) -> Tensor:
    """β = highest^(activity / epochs), so that indicators that become active late stay soft.

    activity: the number of epochs in which each indicator was active, (n,).
    """
    return torch.pow(highest, activity / epochs)


def sizes(coupled: Sequence[CoupledChannels]) -> list[int]:
    """The number of indicators of each set."""
    return [len(each) // each.blocks for each in coupled]


def by_channel(coupled: Sequence[CoupledChannels], values: Tensor) -> dict[str, Tensor]:
    """The values, (n,), of the indicators as values of the channels of each group, (full width,)."""
    found: dict[str, list[Tensor]] = {}
    for each, own in zip(coupled, torch.split(values, sizes(coupled)), strict=True):
        for name in each.groups:
            found.setdefault(name, []).append(own.repeat(each.blocks))
    return {name: torch.cat(values) for name, values in found.items()}


def kept_by(coupled: Sequence[CoupledChannels], active: Tensor) -> dict[str, list[int]]:
    """The channels of each group whose indicators are active, increasing, as `resize` takes them. active: bool (n,)."""
    return {name: channels.nonzero().flatten().tolist() for name, channels in by_channel(coupled, active.cpu()).items()}


def active_of(coupled: Sequence[CoupledChannels], keep: Mapping[str, Sequence[int]]) -> Tensor:
    """Whether the channels of each indicator are among those to keep, bool (n,): the inverse of `kept_by`."""
    found = []
    for each, size in zip(coupled, sizes(coupled), strict=True):
        own = set(keep[each.groups[0]])
        found += [each.start + place in own for place in range(size)]
    return torch.tensor(found)


def sample(coupled: Sequence[CoupledChannels], logits: Tensor, draws: Tensor, fits: Fits) -> Tensor:
    """Sample the active indicators, bool (n,), from Bernoulli(σ(βs)).

    The least likely of them become inactive until the network fits; at least one of each set stays active.

    logits: βs, (n,). draws: uniform random numbers in 0..1, (n,), which also order equally likely indicators.
    """
    drawn = draws < logits.sigmoid()
    order = draws.argsort(stable=True)
    order = order[logits[order].argsort(descending=True, stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place = torch.where(drawn, place, place + len(order))  # those that were drawn come first

    owner = torch.repeat_interleave(torch.tensor(sizes(coupled)))
    first = [start + int(own.argmin()) for start, own in _by_set(coupled, place)]
    needed = torch.zeros(len(order), dtype=torch.bool)
    needed[first] = True
    further = order[(drawn & ~needed)[order]]

    def chosen(number: int) -> Tensor:
        active = needed.clone()
        active[further[:number]] = True
        return active

    def within(number: int) -> bool:
        counts = owner[chosen(number)].bincount(minlength=len(coupled)).tolist()
        channels = [count * each.blocks for each, count in zip(coupled, counts, strict=True)]
        return fits(allocate.widths(coupled, channels))

    low, high = 0, len(further)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if within(middle) else (low, middle - 1)
    return chosen(low)


def _by_set(coupled: Sequence[CoupledChannels], values: Tensor) -> list[tuple[int, Tensor]]:
    """The index of the first indicator of each set, and the values of its indicators."""
    start, found = 0, []
    for own in torch.split(values, sizes(coupled)):
        found.append((start, own))
        start += len(own)
    return found


def distance(coupled: Sequence[CoupledChannels], masks: Tensor, cost: CostModel, limits: Mapping[str, int]) -> float:
    """Δu, the relative excess over the budget of the cost of the expected network, with widths Σσ(βs); negative below.

    masks: σ(βs), (n,). limits: by kind ("flops", "params"); the largest excess counts.
    """
    widths = {
        name: max(1, round(float(own.sum()))) for name, own in by_channel(coupled, masks.detach().double()).items()
    }
    vector = cost.vector({**cost.graph.widths, **widths})
    return max(cost.price(kind, vector) / most for kind, most in limits.items()) - 1


def pull(indicators: Indicators, weight: float) -> Tensor:
    """The gradient, (n,), of the penalty Σ λσ(βs) of all indicators: λβσ(βs)(1 - σ(βs)) with λ = weight / β².

    A gradient step moves every βs in proportion to weight · σ(βs)(1 - σ(βs)), whatever its β. If all indicators had
    the same λ, those with a high β, whose βs moves far in a small step of s, would overshoot the budget in both
    directions.
    """
    masks = indicators.masks().detach()
    return weight / indicators.temperatures() * masks * (1 - masks)


def columns(graph: ChannelGraph, numbers: Mapping[str, Tensor], none: int) -> dict[str, Tensor]:
    """The indicator of each input unit, (units,), by the path of each layer that reads a masked group.

    numbers: the indicator of each current channel, (width,) by group. none: the number for units without an indicator.
    """
    widths, found = graph.widths, dict[str, Tensor]()
    for name, own in numbers.items():
        for path in graph.group(name).consumers:
            if path not in found:
                found[path] = torch.full((layout_size(input_layout(graph, path), widths),), none)
            found[path][units(graph, path, name)] = own[:, None]
    return found


def masked(net: nn.Module, by_path: Mapping[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
    """The weights, by name, of the layers in `by_path` with the columns of each input unit times its mask.

    This scales the channels as their consumers read them, whatever norms, shortcuts or pooling come before. A mask on
    the filters would be undone by the batch norms behind them.

    by_path: see `columns`. masks: σ(βs), (n,). Differentiable.
    """
    factors, found = torch.cat([masks, masks.new_ones(1)]), {}
    for path, own in by_path.items():
        layer = net.get_submodule(path)
        assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        found[f"{path}.weight"] = layer.weight * by_column(layer, factors[own])
    return found
