"""One indicator s for each filter: its mask σ(βs), which filters are sampled from it, and what pulls it.

Yuan, Savarese and Maire, "Growing Efficient Deep Networks by Structured Continuous Sparsification", ICLR 2021. Channels
that can only go together (`coupled_channels`) have one indicator, and so do those in one place of their blocks.
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
from budgetnet.methods.pruning.consumers import by_column, input_layout, units
from budgetnet.methods.pruning.coupled import CoupledChannels


class Indicators(nn.Module):
    """The indicators of all sets of coupled channels, (n,), one set after the other.

    start: the probability that each begins with. epochs: after so many in which it was active an indicator has the
    temperature `highest`.
    """

    def __init__(self, coupled: Sequence[CoupledChannels], start: float, epochs: int, highest: float) -> None:
        super().__init__()
        count = sum(sizes(coupled))
        self.epochs, self.highest = epochs, highest
        self.scores = nn.Parameter(torch.full((count,), math.log(start / (1 - start))))
        """s."""
        self.activity: Tensor
        """Epochs in which each was active."""
        self.active: Tensor
        """Which are active now."""
        self.register_buffer("activity", torch.zeros(count, dtype=torch.long))
        self.register_buffer("active", torch.zeros(count, dtype=torch.bool))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Indicators:
        """Move to where `fn` would, in single precision whatever that of the network: half would swallow the steps."""
        super()._apply(lambda tensor: tensor.to(fn(tensor[:0]).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def temperatures(self) -> Tensor:
        """β of each."""
        return temperature(self.activity, self.epochs, self.highest)

    def logits(self) -> Tensor:
        """βs of each; differentiable."""
        return self.temperatures() * self.scores

    def masks(self) -> Tensor:
        """σ(βs) of each; differentiable."""
        return self.logits().sigmoid()


def temperature(activity: Tensor, epochs: int, highest: float) -> Tensor:
    """β = highest^(active epochs / epochs): each anneals from 1 as far as it took part, so that late ones stay soft."""
    return torch.pow(highest, activity / epochs)


def sizes(coupled: Sequence[CoupledChannels]) -> list[int]:
    """Indicators of each set."""
    return [len(each) // each.blocks for each in coupled]


def by_channel(coupled: Sequence[CoupledChannels], values: Tensor) -> dict[str, Tensor]:
    """Of (n,) values of the indicators, those of each group's channels, (full width,)."""
    found: dict[str, list[Tensor]] = {}
    for each, own in zip(coupled, torch.split(values, sizes(coupled)), strict=True):
        for name in each.groups:
            found.setdefault(name, []).append(own.repeat(each.blocks))
    return {name: torch.cat(parts) for name, parts in found.items()}


def kept_by(coupled: Sequence[CoupledChannels], active: Tensor) -> dict[str, list[int]]:
    """The channels of each group whose indicators are active, (n,): increasing, as `resize` takes them."""
    return {name: channels.nonzero().flatten().tolist() for name, channels in by_channel(coupled, active.cpu()).items()}


def active_of(coupled: Sequence[CoupledChannels], keep: Mapping[str, Sequence[int]]) -> Tensor:
    """(n,) whether each indicator's channels are among those kept: the inverse of `kept_by`."""
    found = []
    for each, size in zip(coupled, sizes(coupled), strict=True):
        own = set(keep[each.groups[0]])
        found += [each.start + place in own for place in range(size)]
    return torch.tensor(found)


def sample(coupled: Sequence[CoupledChannels], logits: Tensor, draws: Tensor, fits: Fits) -> Tensor:
    """Which are active, (n,): q ~ Bernoulli(σ(βs)), without the least likely of them until the network fits.

    logits: (n,) βs. draws: (n,) uniform in 0..1; they decide among equally likely ones too. At least one of each set
    is active.
    """
    drawn = draws < logits.sigmoid()
    order = draws.argsort(stable=True)
    order = order[logits[order].argsort(descending=True, stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place = torch.where(drawn, place, place + len(order))  # those drawn come first

    owner = torch.repeat_interleave(torch.tensor(sizes(coupled)))
    first = [start + int(own.argmin()) for start, own in _parts(coupled, place)]
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


def _parts(coupled: Sequence[CoupledChannels], values: Tensor) -> list[tuple[int, Tensor]]:
    """Where each set's indicators begin, and their values."""
    starts, parts = 0, []
    for own in torch.split(values, sizes(coupled)):
        parts.append((starts, own))
        starts += len(own)
    return parts


def distance(coupled: Sequence[CoupledChannels], masks: Tensor, cost: CostModel, limits: Mapping[str, int]) -> float:
    """Δu: by which part the expected network, Σσ(βs) channels wide, costs more than the budget; negative: less.

    masks: (n,) σ(βs). limits: by kind ("flops", "params"); of several the scarcest counts.
    """
    widths = {
        name: max(1, round(float(own.sum()))) for name, own in by_channel(coupled, masks.detach().double()).items()
    }
    vector = cost.vector({**cost.graph.widths, **widths})
    return max(cost.price(kind, vector) / most for kind, most in limits.items()) - 1


def pull(indicators: Indicators, weight: float) -> Tensor:
    """(n,) gradient of the penalty Σ λσ(βs) of all indicators, active or not: λβσ(βs)(1 - σ(βs)), λ = weight / β².

    A step of it moves every βs by weight · σ(βs)(1 - σ(βs)), whatever its β. With the same λ for all, the hard ones,
    for which a small step of s is a large one of βs, would overshoot the budget in both directions.
    """
    masks = indicators.masks().detach()
    return weight / indicators.temperatures() * masks * (1 - masks)


def columns(graph: ChannelGraph, numbers: Mapping[str, Tensor], none: int) -> dict[str, Tensor]:
    """By the path of each layer that reads a masked group: the indicator of each of its input units, (units,).

    numbers: the indicator of each channel there is now, (width,) by group. none: for units that no indicator masks.
    """
    widths, found = graph.widths, dict[str, Tensor]()
    for name, own in numbers.items():
        for path in graph.group(name).consumers:
            if path not in found:
                found[path] = torch.full((layout_size(input_layout(graph, path), widths),), none)
            found[path][units(graph, path, name)] = own[:, None]
    return found


def masked(net: nn.Module, by_path: Mapping[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
    """The weights of the layers in `by_path` (see `columns`) with each input unit's columns times its mask, by name.

    To scale what is read of a channel is to scale the channel, wherever norms, shortcuts or pooling come between; a
    mask on the filter itself would be undone by the batch norm behind it. masks: (n,) by indicator. Differentiable.
    """
    factors, found = torch.cat([masks, masks.new_ones(1)]), {}
    for path, own in by_path.items():
        layer = net.get_submodule(path)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        found[f"{path}.weight"] = layer.weight * by_column(layer, factors[own])
    return found
