"""The weight of each limited cost in the search for edges, learned by dual ascent on the budget."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ASCENT = 1e-3
"""The rate of the integral as a part of that of the logits, which must follow it."""
DAMPING = 2.0
"""What is added to the integral for masks that cost twice the limit, in nats."""


class Multipliers:
    """A Lagrange multiplier λ ≥ 0 for each limited kind of cost, for min E[loss] subject to E[cost] ≤ limit.

    The Lagrangian E[loss] + Σ λ (E[cost] / limit - 1) is descended on the logits of edges and ascended on λ, so that λ
    falls while masks cost less than the limit and the loss draws edges in. λ is an integral of the relative excess
    plus a part in proportion to it, which damps the oscillation of plain dual ascent (Stooke, Achiam, Abbeel,
    "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods", ICML 2020, section 5).

    limits: the limits by kind. lr: the learning rate of the logits.
    """

    def __init__(self, limits: Mapping[str, int], lr: float) -> None:
        self.limits, self._rate = dict(limits), ASCENT * lr
        self._integral = dict.fromkeys(limits, 0.0)
        self._excess = dict.fromkeys(limits, 0.0)

    def weights(self) -> dict[str, float]:
        """λ by kind, in nats for each budget."""
        return {kind: max(0.0, self._integral[kind] + DAMPING * self._excess[kind]) for kind in self.limits}

    def price(self, costs: Mapping[str, Tensor]) -> Tensor:
        """Σ λ (cost / limit - 1), float64 (masks,), which is negative for a mask below the limits.

        costs: the costs of every mask, (masks,), by kind.
        """
        priced = [w * (costs[kind].double() / self.limits[kind] - 1) for kind, w in self.weights().items()]
        return torch.stack(priced).sum(0) if priced else torch.zeros(())

    def ascend(self, means: Mapping[str, float]) -> None:
        """Take a step of dual ascent. means: the mean cost of the step's masks, by kind.

        λ of a step depends on the masks of earlier ones alone, which leaves the estimate of the gradient unbiased.
        """
        for kind, mean in means.items():
            self._excess[kind] = mean / self.limits[kind] - 1
            self._integral[kind] = max(0.0, self._integral[kind] + self._rate * self._excess[kind])

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The integral and the last excess, by kind."""
        return {"integral": dict(self._integral), "excess": dict(self._excess)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore `state_dict()`."""
        self._integral, self._excess = dict(state["integral"]), dict(state["excess"])
