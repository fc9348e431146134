"""The gradient of an expected cost by the probabilities of edges: REINFORCE.

Equations 11 to 18 of Veniat and Denoyer, CVPR 2018.

Every edge u is on with probability γ_u = σ(a_u). For one drawn choice h and what it cost, D(h),
∂E[D]/∂a_u = E[(D - b)(h_u - γ_u)], whatever the baseline b, as long as it does not depend on h.

That is exact where D depends on one choice. Where images of a batch with choices of their own pass through one batch
norm, an image's choice also moves the statistics of the others; what that does to their losses is left out, as in the
paper. Parts of a batch that share a choice (`method.samples`) have statistics of their own, and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """bool (choices, edges): which edges are on, by `draws` in [0, 1), (choices, edges). logits: a, (edges,)."""
    return draws < torch.sigmoid(logits)


def penalties(costs: Mapping[str, Tensor], limits: Mapping[str, int]) -> Tensor:
    """Σ max(0, C / limit - 1) over the kinds that have a limit, float64 (choices,): 1 for one budget over a budget.

    costs: by kind, of every choice, (choices,).
    """
    over = [(costs[kind].double() / limit - 1).clamp(min=0) for kind, limit in limits.items()]
    return torch.stack(over).sum(0)


def advantages(losses: Tensor, baseline: float | None = None) -> Tensor:
    """D - b of every choice, (choices,): b is the mean of the other choices, or `baseline`.

    The authors' code takes the mean of all, which holds a choice's own loss too, and so shortens every gradient by
    (n - 1)/n; of the others it is unbiased. It takes two choices at least.
    """
    if baseline is not None:
        return losses - baseline
    count = len(losses)
    return (losses - losses.mean()) * (count / (count - 1))


def score_gradient(logits: Tensor, choices: Tensor, advantages: Tensor) -> Tensor:
    """The estimate of ∂E[D]/∂a, (edges,): the mean over choices, bool (choices, edges), of (D - b)(h - γ)."""
    scores = choices.to(logits) - torch.sigmoid(logits)
    return (advantages.to(logits)[:, None] * scores).mean(0)
