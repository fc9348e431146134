"""AdeNeL: a seed network that grows, while it trains, until it meets the budget (Zhong, Liu, Fu, BMVC 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.fresh import growing_groups, max_widths, reshape_fresh, seed_widths
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.methods.growth import (
    GrowthPlan,
    GrowthRule,
    Planner,
    best_scored,
    firefly_candidates,
    growth_gradients,
    initial_norms,
    path_norms,
    selection_threshold,
    shares,
    sparse_sets,
    supports,
)
from budgetnet.methods.options import Bregman, FineTuning, Optimization, Rounds, options
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.optim import LBI
from budgetnet.seeding import keyed_seed


class AdeNeL(ResizingModule):
    """Grows `net` in rounds under LBI at a constant learning rate, then fine-tunes it.

    net: the seed network, traced. budget: resolved (whole numbers). max_widths: what each group that may grow may
    become. epochs: of the whole run at most; growth stops in time to leave the fine-tuning its epochs. The growth
    callback asks `plan_round` at the end of each round and has `carry_out` do it.
    """

    phase = "grow"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        lbi: Bregman,
        rule: GrowthRule,
        rounds: Rounds,
        finetune: FineTuning,
        max_widths: Mapping[str, int],
        epochs: int,
        grow_linear: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.lbi, self.rounds, self.finetune = optim, lbi, rounds, finetune
        self.epochs, self.grow_linear, self.seed = epochs, grow_linear, seed
        self.planner = Planner(self.cost, rule, max_widths, seed)
        self.initial_norms = initial_norms(sparse_sets(self.graph, grow_linear))
        self.images_wanted = int(rounds.init in ("gradmax", "firefly") or rule.policy in ("gradient", "firefly"))

    # -- optimizer --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> LBI:
        """LBI over filters, hidden linear entries, other matrices, and vectors (no weight decay), in that order.

        While the network grows, weights decay by `lbi.weight_decay`: another decay would lower every norm that the
        clock's bar is set against. Fine-tuning brings that of `optim`.
        """
        kinds = sparse_sets(self.graph, self.grow_linear)
        rest = [p for p in self.net.parameters() if p not in kinds]
        steps = self.rounds.epochs_per_round * self.data.steps_per_epoch(self.trainer.world_size)
        groups: list[dict[str, Any]] = []
        for kind in ("filter", "entry"):
            params = [p for p in self.net.parameters() if kinds.get(p) == kind]
            if params:
                groups.append({"params": params, "sparse": kind, "threshold": self.threshold(kind, steps)})
        groups.append({"params": [p for p in rest if p.dim() > 1]})
        groups.append({"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0, "decays": False})
        return LBI(
            [{"decays": True, **group} for group in groups if group["params"]],
            lr=self.optim.lr,
            nu=self.lbi.nu_of(self.optim.lr, steps),
            kappa=self.lbi.kappa,
            momentum=self.optim.momentum,
            weight_decay=self.lbi.weight_decay,
        )

    def threshold(self, kind: str, steps_per_round: int) -> float:
        """λ of one kind of unit ("filter" or "entry"): `lbi.threshold`, or what the clock makes of the bar."""
        if self.lbi.threshold is not None:
            return self.lbi.threshold
        lr, nu = self.optim.lr, self.lbi.nu_of(self.optim.lr, steps_per_round)
        return selection_threshold(self.lbi.selection_norm, self.initial_norms[kind], lr, nu, steps_per_round)

    @property
    def optimizer(self) -> LBI:
        optimizer = super().optimizer
        assert isinstance(optimizer, LBI)
        return optimizer

    # -- growth -----------------------------------------------------------------------------------------------------

    def saturated(self) -> dict[str, list[torch.Tensor]]:
        """Which filters count as saturated now, for each layer of every group that may grow (growth.readout)."""
        graph, groups = self.graph, self.planner.max_widths
        if self.rounds.readout == "support":
            return supports(graph, groups, self.optimizer)
        return best_scored(path_norms(graph, groups, self.optimizer), self.rounds.quantile)

    def saturation(self) -> dict[str, float]:
        """s of every group that may grow, now (equation 9)."""
        return shares(self.saturated(), self.rounds.reduction)

    def selected(self, group: str, plan: GrowthPlan) -> torch.Tensor:
        """(width,) which filters of a group are saturated."""
        return self.saturated()[group][0]

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None = None) -> GrowthPlan:
        """The plan at the end of a round, after `epochs` epochs; its `stop` also counts rounds and epochs."""
        policy, init, seed = self.planner.rule.policy, self.rounds.init, keyed_seed(self.seed, self.round + 1)
        gradients = candidates = scores = None
        if policy == "gradient":
            assert batch is not None
            gradients = growth_gradients(self.net, self.planner.max_widths, batch, seed)
        if "firefly" in (policy, init):
            assert batch is not None
            candidates = firefly_candidates(self.net, self.planner.increases, batch, seed)
            scores = candidates.scores
        limits = self.growth_limits(images_per_epoch)
        plan = self.planner.plan(self.round + 1, self.saturation(), limits, gradients, scores)
        if init == "firefly" and candidates is not None:
            plan = self.started(plan, candidates)
        return self.bounded(plan, epochs)

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None = None) -> None:
        """Grow as planned after `epochs` epochs: resize, reset or carry the optimizer's state, maybe end the phase."""
        optimizer = self.optimizer
        if self.rounds.state == "reset":
            optimizer.reset_state()
        if plan.changes:
            seed = keyed_seed(self.seed, plan.round)
            self.grow(plan, optimizer, seed, batch)
        self.end_round(plan, epochs)
        if plan.stop is not None:
            self._start_finetuning()

    def _start_finetuning(self) -> None:
        """SGD is LBI without a sparse set: Z is dropped."""
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.optim.weight_decay if group["decays"] else 0.0
        if self.finetune.optimizer == "sgd":
            for group in self.optimizer.param_groups:
                group["sparse"] = None
            for state in self.optimizer.state.values():
                state.pop("z", None)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["budgetnet"]["initial_norms"] = self.initial_norms

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.initial_norms = checkpoint["budgetnet"]["initial_norms"]


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> AdeNeL:
    """The method for a resolved configuration; `net` is the full backbone, traced, and becomes the seed network.

    Raises UsageError for options out of range, a budget that the seed network misses or that no allowed network
    reaches, and a growth round longer than the run.
    """
    growth = dict(config["growth"])
    rule = options(GrowthRule, "growth", growth)
    rounds = options(Rounds, "growth", growth)
    finetune = options(FineTuning, "finetune", config["finetune"])
    epochs, linear = config["epochs"], growth["linear"]
    rounds.must_fit(epochs, finetune)
    graph = ChannelGraph.of(net)
    cost = CostModel(graph)
    budget = Budget(**config["budget"])
    budget.require()
    budget = budget.resolve({**cost.costs(), "train_cost": ledger.baseline_cost})
    largest = max_widths(graph, growth["max_width"], linear)
    seed = seed_widths(graph, growth["seed_width"], growth["seed_shape"], linear)
    shortest = (rounds.epochs_per_round + finetune.epochs) * ledger.images_per_epoch * cost.flops(seed)
    budget.check({**cost.costs(seed), "train_cost": shortest}, cost.costs(largest))
    reshape_fresh(net, seed, config["seed"])
    return AdeNeL(
        net,
        num_classes,
        ledger,
        budget,
        options(Optimization, "optim", config["optim"]),
        options(Bregman, "lbi", config["lbi"]),
        rule,
        rounds,
        finetune,
        {name: largest[name] for name in growing_groups(graph, linear)},
        epochs,
        linear,
        config["seed"],
    )
