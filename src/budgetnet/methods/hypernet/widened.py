"""What methods share that widen a network and narrow it once, to its budget, by scores of latent vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from budgetnet.channels.untrained import resize_untrained
from budgetnet.errors import UsageError
from budgetnet.methods.hypernet.criteria import Scores
from budgetnet.methods.hypernet.selection import Counts
from budgetnet.methods.hypernet.shrinking import narrow, widened
from budgetnet.methods.method import Images, Method, Training
from budgetnet.methods.plan import Plan, WidthPlan


@dataclass(frozen=True, repr=False)
class Selected(WidthPlan):
    """Channels that stay: those with a score of `threshold` or more, those that floors keep, and what still fitted."""

    threshold: float = field(default=math.inf, kw_only=True)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "threshold": self.threshold if math.isfinite(self.threshold) else None}


class Widened(Method):
    """A network that is narrowed once, to the most channels that its budget allows, with weights made from latents.

    Percentages of a budget are of the full backbone, before it is widened.
    """

    budgets: ClassVar[tuple[str, ...]] = ("flops", "params")
    no_weights = "its weights are made from latent vectors: use method=l1 or another that prunes"
    floors: Counts
    """The fewest channels of every group."""

    def widen(self, training: Training, multiplier: float) -> None:
        """The full backbone becomes the network that is narrowed later."""
        self.training = training
        if multiplier != 1:
            resize_untrained(self.net, widened(self.graph, multiplier), training.seed)
            training.pricing.update()

    def must_narrow(self, floors: Counts) -> None:
        """Raises UsageError for a network without a group to shrink, a budget that the floors exceed, and one that the
        network meets as it is."""
        self.floors = floors
        limits, full = self.training.budget.limits, self.training.pricing.model.costs()
        none = {name: torch.zeros(width) for name, width in self.graph.widths.items()}
        narrow(self.graph, none, floors, limits)
        if all(full[kind] <= most for kind, most in limits.items()):
            stated = ", ".join(f"budget.{kind}={most:,}" for kind, most in limits.items())
            costs = ", ".join(f"{full[kind]:,}" for kind in limits)
            raise UsageError(
                f"{stated} holds the network that is narrowed ({costs}): lower it or raise method.multiplier"
            )

    def select(self, scores: Scores) -> Selected:
        """Who stays, so that the budget is met, as the plan that ends the search."""
        budget, before = self.training.budget, self.graph.widths
        threshold, keep = narrow(self.graph, scores, self.floors, budget.limits)
        after = {**before, **{name: len(channels) for name, channels in keep.items()}}
        stop = budget.binding(self.training.pricing.model.costs(after))
        return Selected(self.training.round + 1, before, after, stop=stop, keep=keep, threshold=threshold)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Narrow the network; every process has the first one's weights, and a fresh optimizer."""
        assert isinstance(plan, WidthPlan)
        self.training.resize({name: plan.keep[name] for name in plan.changes}, optimizer=self.training.optimizer)
        self.training.optimizer.state.clear()
        self.training.processes.synchronise([*(p.detach() for p in self.net.parameters()), *self.net.buffers()])
