"""AutoGrow: a backbone of one block per stage that gets deeper while it trains (Wen, Yan, Chen, Li, KDD 2020)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.depth import DEPTH_INITIALISATIONS, Stage, change_depth, depths, find_stages
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.errors import UsageError
from budgetnet.methods.depth.turns import DepthPlan, DepthRule, Turns, next_block
from budgetnet.methods.growth import GrowthPlan
from budgetnet.methods.options import FineTuning, Optimization, Rounds, options
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.methods.train import sgd
from budgetnet.seeding import keyed_seed

_NEEDS_VALIDATION = "method=autogrow grows by validation accuracy: hold out images with dataset.validation"


def block_costs(model: nn.Module, stages: Sequence[Stage]) -> dict[str, dict[str, int]]:
    """By stage, the params, macs and flops that one block more adds; the same at any depth."""
    now, costs = CostModel(ChannelGraph.of(model)).costs(), {}
    for name, depth in depths(model, stages).items():
        deeper = CostModel(change_depth(copy.deepcopy(model), stages, {name: depth + 1}, seed=0)).costs()
        costs[name] = {kind: deeper[kind] - now[kind] for kind in now}
    return costs


class AutoGrow(ResizingModule):
    """Adds a block to one stage after another at a constant learning rate, then fine-tunes.

    net: the seed network, traced. stages: its own, with templates. budget: resolved. epochs: of the whole run at most;
    growth stops in time to leave the fine-tuning its epochs. Accuracy is the best on the validation set so far.
    """

    phase = "grow"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        rule: DepthRule,
        rounds: Rounds,
        finetune: FineTuning,
        stages: Sequence[Stage],
        epochs: int,
        seed: int = 0,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.rule, self.rounds, self.finetune = optim, rule, rounds, finetune
        self.stages, self.epochs, self.seed = tuple(stages), epochs, seed
        self.block_costs = block_costs(net, stages)
        self.turns = Turns(tuple(stage.name for stage in stages))
        self.accuracy = 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net, self.optim)

    def on_fit_start(self) -> None:
        if self.data.splits.validation is None:
            raise UsageError(_NEEDS_VALIDATION)

    # -- growth -----------------------------------------------------------------------------------------------------

    def epoch_is_over(self, epochs: int) -> None:
        """Note the best accuracy: that of a single epoch at a large learning rate goes up and down by more than τ."""
        self.accuracy = max(self.accuracy, self.results.get("val_top1", 0.0))

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None = None) -> DepthPlan:
        """The plan at the end of a round, after `epochs` epochs; its `stop` also counts rounds and epochs."""
        deep, before, limits = depths(self.net, self.stages), self.graph.widths, self.growth_limits(images_per_epoch)
        step = next_block(self.turns, self.accuracy, self.rule, deep, self.costs(), self.block_costs, limits)
        after = before
        planned = {name: (depth, depth + (name == step.stage)) for name, depth in deep.items()}
        if step.stage is not None:
            deeper = {step.stage: deep[step.stage] + 1}
            after = change_depth(copy.deepcopy(self.net), self.stages, deeper, seed=0).widths
        waiting = self.turns.judged(self.accuracy, self.rule.threshold).waiting()
        plan = DepthPlan(
            self.round + 1, before, after, candidates=waiting, stop=step.stop, depths=planned, turns=step.turns
        )
        return self.bounded(plan, epochs)

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None = None) -> None:
        """Append the block; the optimizer's state is reset or carried as the option of growth says."""
        assert isinstance(plan, DepthPlan)
        optimizer = self.optimizer
        if self.rounds.state == "reset":
            optimizer.state.clear()
        if deeper := {name: after for name, (before, after) in plan.depths.items() if after != before}:
            seed = keyed_seed(self.seed, plan.round)
            self.deepen(deeper, optimizer=optimizer, init=self.rounds.init, seed=seed)
        self.turns = plan.turns
        self.end_round(plan, epochs)

    def deepen(self, plan: Mapping[str, int], **options: Any) -> None:
        """Change depths of the live network (see `channels.depth.change_depth`) and price it anew."""
        self.graph = change_depth(self.net, self.stages, plan, **options)
        self.cost = CostModel(self.graph)
        self._flops = self.cost.flops()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        turns = {"ended": list(self.turns.ended), "last": self.turns.last, "accuracy": self.turns.accuracy}
        state = {"depths": depths(self.net, self.stages), "turns": turns, "accuracy": self.accuracy}
        checkpoint["budgetnet"] |= state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the checkpoint's depths, then its widths, before its weights are loaded."""
        state, now = checkpoint["budgetnet"], depths(self.net, self.stages)
        if changes := {name: depth for name, depth in state["depths"].items() if now.get(name) != depth}:
            self.deepen(changes, seed=self.seed)
        super().on_load_checkpoint(checkpoint)
        turns = state["turns"]
        self.turns = replace(self.turns, **{**turns, "ended": tuple(turns["ended"])})
        self.accuracy = state["accuracy"]


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> AutoGrow:
    """The method for a resolved configuration; `net` is the full backbone, traced, and becomes the seed network.

    Raises UsageError for options out of range, a backbone without stages, a budget that leaves nothing to grow, a
    growth round longer than the run, and where accuracy is not measured.
    """
    rule = options(DepthRule, "method", config["method"])
    rounds = options(Rounds, "growth", config["growth"])
    finetune = options(FineTuning, "finetune", config["finetune"])
    _check_rounds(config, rounds, finetune)
    budget = Budget(**config["budget"])
    budget.require()
    budget = budget.resolve({**CostModel(ChannelGraph.of(net)).costs(), "train_cost": ledger.baseline_cost})
    stages = find_stages(net)
    if not stages:
        name = config["backbone"].get("name", config["backbone"]["_target_"])
        raise UsageError(
            f"backbone={name} has no stage that method=autogrow could add blocks to, an nn.Sequential of blocks of one "
            "shape: choose a ResNet such as resnet20"
        )
    full = depths(net, stages)
    change_depth(net, stages, dict.fromkeys(full, 1))
    module = AutoGrow(
        net,
        num_classes,
        ledger,
        budget,
        options(Optimization, "optim", config["optim"]),
        rule,
        rounds,
        finetune,
        stages,
        config["epochs"],
        config["seed"],
    )
    module.full_depths = full
    _check_budget(module)
    return module


def _check_rounds(config: Mapping[str, Any], rounds: Rounds, finetune: FineTuning) -> None:
    rounds.must_fit(config["epochs"], finetune)
    if rounds.init not in DEPTH_INITIALISATIONS:
        raise UsageError(
            f"growth.init={rounds.init} starts new channels: new blocks start by {' or '.join(DEPTH_INITIALISATIONS)}"
        )
    if config["dataset"].get("validation", 1) == 0:
        raise UsageError(_NEEDS_VALIDATION)
    if rounds.epochs_per_round % (every := config["trainer"]["check_val_every_n_epoch"]):
        raise UsageError(
            f"growth.epochs_per_round={rounds.epochs_per_round}: method=autogrow looks at the validation accuracy at "
            f"the end of a round, expected a multiple of trainer.check_val_every_n_epoch={every}"
        )


def _check_budget(module: AutoGrow) -> None:
    """Raises UsageError for a budget below the seed network, or that has no room for any block beside it."""
    costs, images = module.costs(), module.ledger.images_per_epoch
    first, tune = module.rounds.epochs_per_round * images, module.finetune.epochs * images
    seed = {**costs, "train_cost": (first + tune) * costs["flops"]}
    least = {kind: cost + min(block[kind] for block in module.block_costs.values()) for kind, cost in costs.items()}
    least["train_cost"] = first * costs["flops"] + tune * least["flops"]
    for kind, limit in module.budget.limits.items():
        if limit < seed[kind]:
            raise UsageError(
                f"budget.{kind}={limit:,} is below the {seed[kind]:,} of the seed network, one block in each stage: "
                "raise it or choose a narrower backbone"
            )
        if limit < least[kind]:
            raise UsageError(
                f"budget.{kind}={limit:,} leaves nothing to grow: one block beside the seed network comes to "
                f"{least[kind]:,} at least: raise it or choose a narrower backbone"
            )
