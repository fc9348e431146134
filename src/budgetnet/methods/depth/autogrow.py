"""AutoGrow: a backbone of one block per stage that gets deeper while it trains (Wen, Yan, Chen, Li, KDD 2020)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.depth import Stage, change_depth, depths, find_stages
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.depth.options import BlockRounds, DepthRule
from budgetnet.methods.depth.stage_order import DepthPlan, StageOrder, next_block
from budgetnet.methods.growth.growing import bounded, growth_limits, rounds_must_fit
from budgetnet.methods.method import Images, Method, Training
from budgetnet.methods.options import FineTuning, Optimization
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan
from budgetnet.seeding import keyed_seed


def block_costs(model: nn.Module, stages: Sequence[Stage]) -> dict[str, dict[str, int]]:
    """The params, macs and flops that another block adds to each stage, which are the same at any depth."""
    now, costs = CostModel(ChannelGraph.of(model)).costs(), {}
    for name, depth in depths(model, stages).items():
        deeper = CostModel(change_depth(copy.deepcopy(model), stages, {name: depth + 1}, seed=0)).costs()
        costs[name] = {kind: deeper[kind] - now[kind] for kind in now}
    return costs


class AutoGrow(Method):
    """Adds blocks to the stages in turn at a constant learning rate, then fine-tunes.

    Growth stops early enough to leave fine-tuning its epochs. A block is judged by how much it improves the best
    validation value so far of the task's first metric.
    """

    no_weights = "it begins with one block a stage: use method=train, or one that prunes"

    def __init__(self, optim: Optimization, growth: BlockRounds, finetune: FineTuning, method: DepthRule) -> None:
        super().__init__(optim)
        self.growth, self.finetune, self.rule = growth, finetune, method
        self.full_depths: Mapping[str, int] = {}

    def start(self, training: Training) -> list[Phase]:
        """Reduce every stage to one block.

        Raises UsageError for a backbone without stages, a budget without room for a block, a round and fine-tuning
        longer than the run, and a run whose rounds do not end with a validation.
        """
        self.training = training
        rounds_must_fit(training.epochs, self.growth, self.finetune)
        every, round = training.validation_every, self.growth.epochs_per_round
        metric = training.task.metric.title
        if every is None:
            raise UsageError(f"method=autogrow grows by validation {metric}: hold out images with dataset.validation")
        if round % every:
            raise UsageError(
                f"growth.epochs_per_round={round}: method=autogrow looks at the validation {metric} at the end of a "
                f"round, expected a multiple of trainer.check_val_every_n_epoch={every}"
            )
        self.stages = tuple(find_stages(self.net))
        if not self.stages:
            raise UsageError(
                f"backbone={training.backbone} has no stage that method=autogrow could add blocks to, an nn.Sequential "
                "of blocks of one shape: choose a ResNet such as resnet20"
            )
        self.full_depths = depths(self.net, self.stages)
        change_depth(self.net, self.stages, dict.fromkeys(self.full_depths, 1))
        training.pricing.update()
        self.block_costs = block_costs(self.net, self.stages)
        self.stage_order = StageOrder(tuple(stage.name for stage in self.stages))
        self.best: float | None = None
        self._check_budget()
        return [self.optim.growing(), self.finetune.phase(self.optim)]

    def _check_budget(self) -> None:
        """Raises UsageError for a budget below the seed network, or without room for another block."""
        costs, images = self.costs(), self.training.ledger.images_per_epoch
        first, tune = self.growth.epochs_per_round * images, self.finetune.epochs * images
        seed = {**costs, "train_cost": (first + tune) * costs["flops"]}
        least = {kind: cost + min(block[kind] for block in self.block_costs.values()) for kind, cost in costs.items()}
        least["train_cost"] = first * costs["flops"] + tune * least["flops"]
        for kind, limit in self.training.budget.limits.items():
            if limit < seed[kind]:
                raise UsageError(
                    f"budget.{kind}={limit:,} is below the {seed[kind]:,} of the seed network, one block in each "
                    "stage: raise it or choose a narrower backbone"
                )
            if limit < least[kind]:
                raise UsageError(
                    f"budget.{kind}={limit:,} leaves nothing to grow: one block beside the seed network comes to "
                    f"{least[kind]:,} at least: raise it or choose a narrower backbone"
                )

    # -- growth -------------------------------------------------------------------------------------------------------

    def after_epoch(self, epochs: int) -> None:
        """Record the best value, since at a large learning rate the values of single epochs vary by more than τ."""
        metric = self.training.task.metric
        value = self.training.results.get(f"val_{metric.name}")
        if value is not None and (self.best is None or metric.better(value, self.best)):
            self.best = value

    @property
    def reached(self) -> float:
        """The best value so far, with a sign such that higher is better; 0 before the first validation."""
        return 0.0 if self.best is None else self.training.task.metric.gain(self.best)

    def plan(self, epochs: int, batch: Images | None) -> DepthPlan | None:
        """Plan the next block at the end of a round. The limits on rounds and epochs can end growth as well."""
        if self.training.phase.final or epochs == 0 or epochs % self.growth.epochs_per_round:
            return None
        deep, before = depths(self.net, self.stages), self.graph.widths
        limits = growth_limits(self.training, self.growth, self.finetune)
        step = next_block(self.stage_order, self.reached, self.rule, deep, self.costs(), self.block_costs, limits)
        after = before
        if step.stage is not None:
            deeper = {step.stage: deep[step.stage] + 1}
            after = change_depth(copy.deepcopy(self.net), self.stages, deeper, seed=0).widths
        plan = DepthPlan(
            self.training.round + 1,
            before,
            after,
            candidates=self.stage_order.judged(self.reached, self.rule.threshold).waiting(),
            stop=step.stop,
            depths={name: (depth, depth + (name == step.stage)) for name, depth in deep.items()},
            stage_order=step.stage_order,
        )
        return bounded(plan, epochs, self.training.epochs, self.growth, self.finetune)

    def apply(self, plan: Plan, batch: Images | None) -> None:
        """Append the block; `growth.state` says whether the optimizer's state is reset or carried over."""
        assert isinstance(plan, DepthPlan)
        optimizer = self.training.optimizer
        if self.growth.state == "reset":
            optimizer.state.clear()
        if deeper := {name: after for name, (before, after) in plan.depths.items() if after != before}:
            seed = keyed_seed(self.training.seed, plan.round)
            self._deepen(deeper, optimizer=optimizer, init=self.growth.init, seed=seed)
        self.stage_order = plan.stage_order

    def _deepen(self, plan: Mapping[str, int], **options: Any) -> None:
        """Change depths of the live network (see `channels.depth.change_depth`) and update its price."""
        change_depth(self.net, self.stages, plan, **options)
        self.training.pricing.update()

    def facts(self) -> dict[str, Any]:
        return {"full_depths": dict(self.full_depths)}

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        stage_order = {
            "ended": list(self.stage_order.ended),
            "last": self.stage_order.last,
            "reached": self.stage_order.reached,
        }
        return {"depths": depths(self.net, self.stages), "stage_order": stage_order, "best": self.best}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        now = depths(self.net, self.stages)
        if changes := {name: depth for name, depth in state["depths"].items() if now.get(name) != depth}:
            self._deepen(changes, seed=self.training.seed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        order = state["stage_order"]
        self.stage_order = replace(self.stage_order, **{**order, "ended": tuple(order["ended"])})
        self.best = state["best"]
