"""The REINFORCE estimate of the gradient of an expected cost with respect to the logits of edges.

Equations 11 to 18 of Veniat and Denoyer, CVPR 2018.

Edge u is on with probability γ_u = σ(a_u). For a sampled edge mask h with cost D(h) and any baseline b that does not
depend on h, ∂E[D]/∂a_u = E[(D - b)(h_u - γ_u)].

The estimate is unbiased if D depends on one mask alone. If images with different masks pass through the same batch
norm, the mask of one image also affects the statistics, and so the losses, of the others. This effect is ignored, as
in the paper. It does not arise if the images of a slice have one mask in common (`method.samples`), because each slice
has its own statistics.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """Edge masks, bool (masks, edges). logits: a, (edges,). draws: uniform random numbers in [0, 1), (masks, edges)."""
    return draws < torch.sigmoid(logits)


def penalties(costs: Mapping[str, Tensor], limits: Mapping[str, int]) -> Tensor:
    """Σ max(0, C / limit - 1) over the kinds with a limit, float64 (masks,): 1 if a cost is twice its limit.

    costs: the costs of every mask, (masks,), by kind.
    """
    over = [(costs[kind].double() / limit - 1).clamp(min=0) for kind, limit in limits.items()]
    return torch.stack(over).sum(0)


def advantages(losses: Tensor, baseline: float | None = None) -> Tensor:
    """D - b of every mask, (masks,). b is `baseline`, or else the mean loss of the other masks, of which one is needed.

    The authors' code takes the mean of all n masks. It includes the loss of the mask itself, which scales every
    gradient by (n - 1)/n. The mean of the others is unbiased.
    """
    if baseline is not None:
        return losses - baseline
    count = len(losses)
    return (losses - losses.mean()) * (count / (count - 1))


def score_gradient(logits: Tensor, masks: Tensor, advantages: Tensor) -> Tensor:
    """The estimate of ∂E[D]/∂a, (edges,): the mean of (D - b)(h - γ) over masks.

    logits: a, (edges,). masks: the masks h, bool (masks, edges). advantages: D - b, (masks,).
    """
    scores = masks.to(logits) - torch.sigmoid(logits)
    return (advantages.to(logits)[:, None] * scores).mean(0)
