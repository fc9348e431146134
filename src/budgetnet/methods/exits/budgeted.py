"""Budgeted batch classification: every image leaves at the first exit that is confident enough.

Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, ICLR 2018, as their code has it.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from budgetnet.errors import UsageError
from budgetnet.methods.exits.allocation import confidences, counts

NEVER = 1e8
"""The threshold of an exit at which no image leaves."""

SETTINGS: tuple[float, ...] = tuple(p / 20 for p in range(1, 40))
"""The values of q by which the published curves of accuracy against mean FLOPs are drawn."""


def thresholds(confidence: Tensor, q: float, exits: int) -> Tensor:
    """Confidences from which an image leaves, float64 (exits,), so that floor(N·p_k) of these images leave at exit k.

    confidence: (N, exits), of images that the network was not trained on. T_k is the confidence at which the quota of
    exit k is full, counted among the images that left at no exit before; then every image with at least that confidence
    counts as gone, so that more than the quota leave where some are equal. It is NEVER where the quota is 0 or fewer
    images than the quota are left. The last one is -inf.
    """
    left = torch.ones(len(confidence), dtype=torch.bool, device=confidence.device)
    found = []
    for number, count in enumerate(counts(len(confidence), q, exits)[:-1]):
        here = confidence[:, number]
        staying = here[left].sort(descending=True).values
        found.append(float(staying[count - 1]) if 0 < count <= len(staying) else NEVER)
        left &= here < found[-1]
    return torch.tensor([*found, -math.inf], dtype=torch.float64)


def leaving(confidence: Tensor, thresholds: Tensor) -> Tensor:
    """The number, from 0, of the exit at which every image leaves, int64 (N,): the first with at least the threshold.

    confidence: (N, exits). thresholds: (exits,), the last -inf.
    """
    return (confidence >= thresholds.to(confidence.device)).int().argmax(1)


def evaluate(confidence: Tensor, correct: Tensor, thresholds: Tensor, flops: Tensor) -> tuple[float, float]:
    """(accuracy, mean FLOPs) of images, each classified by the exit at which it leaves; accuracy in 0 to 1.

    confidence: (N, exits). correct: bool (N, exits), which exits are right. flops: (exits,), of an image that
    leaves there.
    """
    exits = leaving(confidence, thresholds)
    right = correct.gather(1, exits[:, None])
    gone = torch.bincount(exits.cpu(), minlength=len(flops)).double()
    return float(right.double().mean()), float(gone @ torch.as_tensor(flops).cpu().double()) / len(exits)


@dataclass(frozen=True)
class Setting:
    """Thresholds for q, and what images cost and how many of them, of 1, are right with them."""

    q: float
    thresholds: tuple[float, ...]
    accuracy: float
    mean_flops: float


def curve(confidence: Tensor, correct: Tensor, flops: Tensor) -> list[Setting]:
    """Every one of SETTINGS, with thresholds set and evaluated on the same images: those that were held out.

    confidence, correct: (N, exits). flops: (exits,).
    """
    found = []
    for q in SETTINGS:
        limits = thresholds(confidence, q, len(flops))
        found.append(Setting(q, tuple(limits.tolist()), *evaluate(confidence, correct, limits, flops)))
    return found


def check_budget(budget: float, flops: Tensor) -> None:
    """Raises UsageError for mean FLOPs below those of the first exit or above those of the last; flops: (exits,)."""
    least, most = float(flops[0]), float(flops[-1])
    if not least <= budget <= most:
        raise UsageError(
            f"budget.mean_flops={budget:g}: expected {least:.0f}, of the first exit, to {most:.0f}, of the last: "
            "choose another budget or network"
        )


def within(confidence: Tensor, correct: Tensor, flops: Tensor, budget: float) -> Setting:
    """The most accurate setting whose mean FLOPs are within the budget; of equals the cheapest.

    Where all of SETTINGS cost more, every image leaves at the first exit: q is 0. Raises UsageError for a budget below
    the first exit's FLOPs or above the last one's.
    """
    check_budget(budget, flops)
    first = torch.tensor([-math.inf] * len(flops), dtype=torch.float64)
    cheapest = Setting(0.0, tuple(first.tolist()), *evaluate(confidence, correct, first, flops))
    fits = [setting for setting in curve(confidence, correct, flops) if setting.mean_flops <= budget]
    return max([cheapest, *fits], key=lambda setting: (setting.accuracy, -setting.mean_flops))


class Lazy(Protocol):
    """What gives the logits of one exit after the other: an ExitNetwork, or what was exported of it."""

    def lazily(self, images: Tensor) -> Generator[Tensor, Tensor | None, None]:
        """As `ExitNetwork.lazily`."""


@torch.no_grad()
def early_exit(network: Lazy, images: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """(logits (batch, num_classes), number of the exit int64 (batch,)): each image is computed up to where it leaves.

    thresholds: (exits,), the last -inf. A network is in eval mode; an image's logits are those that the whole network
    gives at its exit, to the rounding of convolutions of other batch sizes.
    """
    stages = network.lazily(images)
    staying = torch.arange(len(images), device=images.device)
    numbers = torch.empty_like(staying)
    logits = next(stages)
    found = torch.empty_like(logits)
    for number, threshold in enumerate(thresholds.tolist()):
        going_on = confidences([logits])[:, 0].double() < threshold
        found[staying[~going_on]] = logits[~going_on]
        numbers[staying[~going_on]] = number
        staying = staying[going_on]
        if not len(staying):
            break
        logits = stages.send(None if going_on.all() else going_on)
    return found, numbers
