"""Which exit classifies which sample of a batch, under a budget; and the loss that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from budgetnet.errors import UsageError
from budgetnet.methods.exits.exchange import ALONE, Exchange


def quotas(q: float, exits: int) -> Tensor:
    """p_k = q^k / Σ_j q^j, float64 (exits,): which part of the samples leaves at every exit.

    q < 1 sends more of them to the early exits, and stands for a small budget. Raises UsageError unless q is finite and
    above 0.
    """
    if not 0 < q < math.inf:
        raise UsageError(f"q={q!r}: expected a finite number above 0; below 1 more samples leave early")
    powers = math.log(q) * torch.arange(1, exits + 1, dtype=torch.float64)
    return powers.softmax(0)


def counts(samples: int, q: float, exits: int) -> list[int]:
    """By exit, how many of the samples it takes: floor(samples·p_k), and the last one the rest."""
    taken = [math.floor(samples * share + 1e-9) for share in quotas(q, exits).tolist()]  # 49 · (1/49) is 1, not 0
    return [*taken[:-1], samples - sum(taken[:-1])]


def confidences(logits: Sequence[Tensor]) -> Tensor:
    """Largest probability of every sample at every exit, (batch, exits). logits: by exit, (batch, classes)."""
    return torch.stack([each.softmax(1).amax(1) for each in logits], 1)


def allocate(confidence: Tensor, q: float) -> list[Tensor]:
    """By exit, indices of the samples that it classifies: int64, the most confident first; the last exit's ascend.

    confidence: (batch, exits). One exit after the other takes the samples that it is most confident of among those that
    no exit before took; of equals the one of the lower index.
    """
    samples, exits = confidence.shape
    left = torch.ones(samples, dtype=torch.bool, device=confidence.device)
    groups = []
    for number, count in enumerate(counts(samples, q, exits)[:-1]):
        order = confidence[:, number].sort(descending=True, stable=True).indices
        group = order[left[order]][:count]
        left[group] = False
        groups.append(group)
    return [*groups, left.nonzero().flatten()]


def allocated_loss(logits: Sequence[Tensor], labels: Tensor, q: float, exchange: Exchange = ALONE) -> Tensor:
    """Σ_k mean of the cross-entropy of exit k over the samples allocated to it; an exit without samples adds nothing.

    Samples are allocated by the confidence of these logits, (batch, classes) by exit; no gradient goes through that.
    exchange: the samples are of all processes; the loss is the mean of what they find.
    """
    groups = allocate(exchange.gather(confidences([each.detach() for each in logits])), q)
    first = exchange.rank * len(labels)
    parts = []
    for each, group in zip(logits, groups):
        own = group[(group >= first) & (group < first + len(labels))] - first
        if len(own):
            parts.append(F.cross_entropy(each[own], labels[own], reduction="sum") / len(group))
    return exchange.processes * torch.stack(parts).sum()
