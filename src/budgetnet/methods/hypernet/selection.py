"""Which channels stay: those with the largest scores of the whole network, as many as a limit allows.

All functions work on plain tensors; scores are (n,) for the n channels of a group, and count by their magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from budgetnet.errors import UsageError

Counts = dict[str, int]
"""Channels by group."""


def kept(scores: Tensor, threshold: float, floor: int) -> Tensor:
    """bool (n,): channel j stays iff |s_j| ≥ min(threshold, the floor-th largest |s|).

    Of equals at the floor, zeros among them, the first stay: a group in which fewer than `floor` channels reach the
    threshold keeps `floor` of them, and not all.
    """
    size = scores.detach().abs()
    stays = size >= threshold
    stays[size.argsort(descending=True, stable=True)[:floor]] = True
    return stays


def select(
    scores: Mapping[str, Tensor],
    floors: Mapping[str, int],
    price: Callable[[Counts], int],
    limit: int,
    option: str = "limit",
) -> tuple[float, dict[str, Tensor]]:
    """The largest kept set within the limit, over one global threshold: (threshold, {group: bool mask}).

    scores: (n,) by group. floors: the fewest channels of each group. price: what so many channels of each group cost;
    never less for more of them. The threshold is the least of the |s| that brings the cost within the limit, found by
    bisection, and infinite where none of them does. option: the name of the limit in an error message.
    Raises UsageError, with both numbers, if the floors alone exceed the limit, and for scores that are not finite.
    """
    for name, values in scores.items():
        if not bool(values.isfinite().all()):
            raise UsageError(f"scores of {name!r} are not finite: the network diverges; lower the learning rate")
    sizes = torch.cat([values.detach().abs().flatten().double() for values in scores.values()])
    thresholds = [*sorted(set(sizes.tolist())), math.inf]

    def masks(place: int) -> dict[str, Tensor]:
        return {name: kept(values.double(), thresholds[place], floors[name]) for name, values in scores.items()}

    def cost(place: int) -> int:
        return price({name: int(mask.sum()) for name, mask in masks(place).items()})

    low, high = 0, len(thresholds) - 1
    if cost(high) > limit:
        raise UsageError(
            f"{option}={limit:,} is below the {cost(high):,} of the channels that the floors keep: raise it or lower "
            "the floors"
        )
    while low < high:  # the first place that fits is in low..high
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    return thresholds[low], masks(low)
