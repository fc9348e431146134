"""Pruning: the full backbone is trained, narrowed to the budget in one or several steps, and fine-tuned."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from budgetnet.channels import ChannelGraph
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.errors import UsageError
from budgetnet.methods.growth import GrowthPlan
from budgetnet.methods.options import FineTuning, Optimization, Pruning, must_fit, options
from budgetnet.methods.phases import learning_rate
from budgetnet.methods.pruning import Scores, allocate, criteria, kept, pools
from budgetnet.methods.pruning.pfp import pfp
from budgetnet.methods.pruning.thinet import rescale, thinet
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.methods.train import sgd


@dataclass(frozen=True)
class Method:
    """A published way to prune. score: (graph, images) -> scores. allocation: one of `allocate.ALLOCATIONS`.

    penalty: the norms' scales are drawn to zero while the full network trains. soft: the weakest filters are zeroed
    after every epoch of it, and may recover. data: the scores need images.
    """

    score: Callable[[ChannelGraph, torch.Tensor], Scores]
    allocation: str = "uniform"
    penalty: bool = False
    soft: bool = False
    data: bool = False


METHODS = {
    "l1": Method(lambda graph, _: criteria.l1(graph)),
    "fpgm": Method(lambda graph, _: criteria.fpgm(graph)),
    "soft": Method(lambda graph, _: criteria.l2(graph), soft=True),
    "slimming": Method(lambda graph, _: criteria.norm_scale(graph), "ranked", penalty=True),
    "thinet": Method(thinet, data=True),
    "pfp": Method(pfp, "by_error", data=True),
}


class Prune(ResizingModule):
    """Trains `net` for `prune.epochs`, narrows it to the budget in `prune.steps` steps, and fine-tunes it.

    net: the full backbone, traced. budget: resolved. The steps divide the way to the budget into equal factors, with
    `prune.epochs_per_step` of fine-tuning after each but the last, which the whole fine-tuning follows.
    """

    phase = "train"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        method: Method,
        pruning: Pruning,
        finetune: FineTuning,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.method, self.pruning, self.finetune = optim, method, pruning, finetune
        self.pools = pools(self.graph, pruning.scope)
        self.full = self.costs()
        self.images_wanted = pruning.images if method.data else 0

    # -- optimizer --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net, self.optim)

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """The schedule of `optim` for the full network; constant between steps; then the fine-tuning's own."""
        o, spe = self.optim, steps_per_epoch
        if self.phase == "finetune":
            return self.tuning_rate(epoch, batch, spe)
        if self.round:
            return self.tuning_lr
        return learning_rate(o.schedule, o.lr, epoch * spe + batch, self.pruning.epochs * spe, o.warmup_epochs * spe)

    def regularise(self) -> None:
        """Network slimming: the gradient of `sparsity` · Σ|γ| while the full network trains."""
        if self.method.penalty and self.phase == "train":
            for norm in set(self.graph.norm_after.values()):
                scale = self.net.get_submodule(norm)._parameters.get("weight")
                if scale is not None and scale.grad is not None:
                    scale.grad.add_(scale.detach().sign(), alpha=self.pruning.sparsity * self.loss_scale)

    # -- pruning ----------------------------------------------------------------------------------------------------

    def round_is_over(self, epochs: int) -> bool:
        """Whether a step follows after `epochs` epochs."""
        return self.phase == "train" and epochs >= self.pruning.epochs + self.round * self.pruning.epochs_per_step

    @torch.no_grad()
    def epoch_is_over(self, epochs: int) -> None:
        """Soft pruning: zero the filters that would go now; they train on and may come back."""
        if not self.method.soft or self.phase != "train":
            return
        keep = self._kept(self._limits(self.pruning.steps), None)
        for name, channels in keep.items():
            gone = torch.ones(self.graph.group(name).width, dtype=torch.bool)
            gone[channels] = False
            for path in self.graph.group(name).producers:
                weight = self.net.get_parameter(f"{path}.weight")
                weight[gone.to(weight.device)] = 0

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> GrowthPlan:
        """The next step: who stays, so that the step's share of the way to the budget is done."""
        step = self.round + 1
        keep = self._kept(self._limits(step), batch)
        before = self.graph.widths
        after = {**before, **{name: len(channels) for name, channels in keep.items()}}
        last = step == self.pruning.steps
        stop = self.budget.binding({**self.cost.costs(after), "train_cost": self.ledger.spent}) if last else None
        return GrowthPlan(step, before, after, stop=stop, kept=keep)

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None) -> None:
        """Narrow the network and the optimizer's state; after the last step, fine-tuning begins."""
        if plan.changes:
            if self.method.score is thinet:
                assert batch is not None
                rescale(self.graph, plan.kept, batch[0])
            changed = {name: plan.kept[name] for name in plan.changes}
            self.resize(changed, optimizer=self.optimizer)
            self.pools = pools(self.graph, self.pruning.scope)
        self.end_round(plan, epochs)

    def _limits(self, step: int) -> dict[str, int]:
        return limits_after(step, self.pruning.steps, self.budget, self.full)

    def _kept(self, limits: Mapping[str, int], batch: Images | None) -> dict[str, list[int]]:
        scores = self.method.score(self.graph, torch.empty(0) if batch is None else batch[0])
        counts = allocate.ALLOCATIONS[self.method.allocation](self.pools, scores, allocate.fits(self.cost, limits))
        return kept(self.pools, scores, counts)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.pools = pools(self.graph, self.pruning.scope)


def limits_after(step: int, steps: int, budget: Budget, full: Mapping[str, int]) -> dict[str, int]:
    """What the network may cost after `step` of `steps`: equal factors from the full costs down to the budget."""
    return {
        kind: max(most, math.floor(full[kind] * (most / full[kind]) ** (step / steps)))
        for kind, most in budget.limits.items()
        if kind in full
    }


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> Prune:
    """The method for a resolved configuration; `net` is the full backbone, traced.

    Raises UsageError for options out of range, and for a budget that no pruned network meets.
    """
    name = config["method"]["name"]
    pruning = options(Pruning, "prune", config["prune"])
    finetune = options(FineTuning, "finetune", config["finetune"])
    whole = pruning.epochs + (pruning.steps - 1) * pruning.epochs_per_step + finetune.epochs
    between = [f"{pruning.steps - 1} · prune.epochs_per_step={pruning.epochs_per_step}"] if pruning.steps > 1 else []
    parts = (f"prune.epochs={pruning.epochs}", *between, f"finetune.epochs={finetune.epochs}")
    must_fit(config["epochs"], whole, *parts)
    graph = ChannelGraph.of(net)
    cost = CostModel(graph)
    budget = Budget(**config["budget"])
    budget.require()
    budget = budget.resolve({**cost.costs(), "train_cost": ledger.baseline_cost})
    _check(budget, cost, pruning, finetune, ledger)
    module = Prune(
        net,
        num_classes,
        ledger,
        budget,
        options(Optimization, "optim", config["optim"]),
        METHODS[name],
        pruning,
        finetune,
    )
    if METHODS[name].penalty:
        criteria.norm_scale(graph)  # refused before the training, not after it
    return module


def _check(budget: Budget, cost: CostModel, pruning: Pruning, finetune: FineTuning, ledger: TrainCostLedger) -> None:
    """Whether there is anything to prune, and the budget can be met: by what is left, and in training."""
    full = cost.costs()
    allocate.check({kind: most for kind, most in budget.limits.items() if kind in full}, cost, pruning.scope)
    if "train_cost" in budget.limits:
        epochs = [pruning.epochs, *[pruning.epochs_per_step] * (pruning.steps - 1), finetune.epochs]
        steps = [limits_after(step, pruning.steps, budget, full) for step in range(pruning.steps + 1)]
        flops = [min(full["flops"], step.get("flops", full["flops"])) for step in steps]
        spent = ledger.images_per_epoch * sum(map(operator.mul, epochs, flops))
        if spent > budget.limits["train_cost"]:
            raise UsageError(
                f"budget.train_cost={budget.limits['train_cost']:,} is below the {spent:,} that prune.epochs="
                f"{pruning.epochs} of the full backbone and the fine-tuning cost: raise it or shorten them"
            )
