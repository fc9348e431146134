"""How many channels each set of coupled channels keeps so that the network fits its budget.

round_to: a set keeps a multiple of so many channels, or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from budgetnet.costs import CostModel
from budgetnet.costs.budget import percentage
from budgetnet.errors import UsageError
from budgetnet.methods.pruning.coupled import CoupledChannels, Scores, coupled_channels

Counts = list[int]
Fits = Callable[[Mapping[str, int]], bool]
"""Whether a network of these widths is within the budget."""


def widths(coupled: Sequence[CoupledChannels], counts: Sequence[int]) -> dict[str, int]:
    """The widths of the groups if each set keeps the number of channels in `counts`."""
    found: dict[str, int] = {}
    for each, count in zip(coupled, counts, strict=True):
        for name in each.groups:
            found[name] = found.get(name, 0) + count
    return found


def uniform(coupled: Sequence[CoupledChannels], scores: Scores, fits: Fits, round_to: int = 1) -> Counts:
    """The channels of each set by the largest common fraction that fits, then single channels, the best first."""
    counts = _largest(
        lambda fraction: [_at_least_one(each, fraction * len(each), round_to) for each in coupled], coupled, fits
    )
    return _top_up(coupled, scores, counts, fits, round_to)


def ranked(coupled: Sequence[CoupledChannels], scores: Scores, fits: Fits, round_to: int = 1) -> Counts:
    """As many of the channels with the highest scores of the whole network as fit, and at least one of each set."""
    values = torch.cat([each.scores(scores).sort(descending=True).values for each in coupled])
    owner = torch.cat([torch.full((len(each),), number) for number, each in enumerate(coupled)])
    # if scores are equal, such as those of untrained scales, every set keeps the same fraction
    order = torch.cat([torch.arange(len(each)) / len(each) for each in coupled]).argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]

    def above(fraction: float) -> Counts:
        best = owner[order[: int(fraction * len(order))]].bincount(minlength=len(coupled))
        return [_at_least_one(each, float(count), round_to) for each, count in zip(coupled, best, strict=True)]

    return _top_up(coupled, scores, _largest(above, coupled, fits), fits, round_to)


def by_error(coupled: Sequence[CoupledChannels], scores: Scores, fits: Fits, round_to: int = 1) -> Counts:
    """The channels that remain at the lowest common error that fits.

    The error of a set is the sum of the scores of its removed channels as a fraction of the sum of all its scores.
    """
    fractions = []
    for each in coupled:
        ascending = each.scores(scores).sort().values
        fractions.append(ascending.cumsum(0) / ascending.sum().clamp_min(1e-30))

    def within(fraction: float) -> Counts:
        return [
            _at_least_one(each, len(each) - float((lost <= 1 - fraction).sum()), round_to)
            for each, lost in zip(coupled, fractions, strict=True)
        ]

    return _top_up(coupled, scores, _largest(within, coupled, fits), fits, round_to)


def fits(cost: CostModel, limits: Mapping[str, int]) -> Fits:
    """A function that tells whether widths cost no more than `limits`, by kind ("flops", "params")."""

    def within(chosen: Mapping[str, int]) -> bool:
        vector = cost.vector({**cost.graph.widths, **chosen})
        return all(cost.price(kind, vector) <= most for kind, most in limits.items())

    return within


def check(limits: Mapping[str, int], cost: CostModel, scope: str, images: int = 0, round_to: int = 1) -> None:
    """Check that the full backbone exceeds a limit, and that the narrowest pruned network is within all limits.

    limits: by kind ("flops", "params", "train_cost").
    scope: see `coupled_channels`.
    images: the number of training images of the whole run, for a limit on the train cost.

    Raises UsageError otherwise.
    """
    found = coupled_channels(cost.graph, scope)
    full, least = cost.costs(), cost.costs(widths(found, [_at_least_one(each, 0, round_to) for each in found]))
    for costs in (full, least):
        costs["train_cost"] = images * costs["flops"]
    if all(most >= full[kind] for kind, most in limits.items()):
        raise UsageError("the full backbone is within the budget: state budget.flops or budget.params below its costs")
    for kind, most in limits.items():
        if most < least[kind]:
            further = ", or set prune.scope=all" if scope == "inner" else ""
            further += f", or lower prune.round_to={round_to}" if round_to > 1 else ""
            raise UsageError(
                f"budget.{kind}={most:,} is below the {least[kind]:,} of the narrowest network: raise it{further}"
                f"{percentage(kind, most)}"
            )


def _step(each: CoupledChannels, round_to: int) -> int:
    """The number of channels by which a set may become narrower."""
    return math.lcm(each.blocks, round_to)


def _at_least_one(each: CoupledChannels, count: float, round_to: int) -> int:
    step = _step(each, round_to)
    return len(each) if count >= len(each) else min(len(each), max(1, int(count) // step) * step)


def _largest(counts: Callable[[float], Counts], coupled: Sequence[CoupledChannels], fits: Fits) -> Counts:
    """The counts for the largest fraction in 0..1 that fits, or for 0 if none does."""
    if fits(widths(coupled, counts(1.0))):
        return counts(1.0)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(widths(coupled, counts(middle))) else (low, middle)
    return counts(low)


def _top_up(coupled: Sequence[CoupledChannels], scores: Scores, counts: Counts, fits: Fits, round_to: int) -> Counts:
    """Add one channel, or `round_to`, to each set in turn while any fits.

    In each turn those sets come first whose next channel has the highest score relative to the best of its set.
    """
    counts = list(counts)
    ordered = [each.scores(scores).sort(descending=True).values for each in coupled]
    waiting = [number for number, each in enumerate(coupled) if counts[number] < len(each)]
    while waiting:
        waiting.sort(key=lambda number: -float(ordered[number][counts[number]] / ordered[number][0].clamp_min(1e-30)))
        fitted = []
        for number in waiting:
            before = counts[number]
            counts[number] = min(len(coupled[number]), before + _step(coupled[number], round_to))
            if not fits(widths(coupled, counts)):
                counts[number] = before
            elif counts[number] < len(coupled[number]):
                fitted.append(number)
        waiting = fitted
    return counts
