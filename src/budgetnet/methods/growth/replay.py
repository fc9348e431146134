"""The widths that another run went through, with SGD from the start ("train-scratch-grow" of the paper's Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.fresh import reshape_fresh
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.errors import UsageError
from budgetnet.methods.growth import GrowthPlan, firefly_candidates
from budgetnet.methods.options import FineTuning, Optimization, Rounds, must_fit, options
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.methods.train import sgd
from budgetnet.runs.directory import RunDirectory
from budgetnet.seeding import keyed_seed

Schedule = Mapping[int, Mapping[str, int]]
"""Epochs finished -> the widths from then on; at 0 those of the seed network."""


class Replay(ResizingModule):
    """Grows `net` after the epochs and to the widths of `schedule`, then fine-tunes it; nothing is measured.

    net: the seed network, traced. budget: resolved; that of the run that is replayed, or a larger one.
    """

    phase = "grow"

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        optim: Optimization,
        rounds: Rounds,
        finetune: FineTuning,
        schedule: Schedule,
        seed: int = 0,
    ) -> None:
        super().__init__(net, num_classes, ledger, budget, optim.label_smoothing)
        self.optim, self.rounds, self.finetune, self.schedule, self.seed = optim, rounds, finetune, schedule, seed
        self.images_wanted = int(rounds.init in ("gradmax", "firefly"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net, self.optim)

    def round_is_over(self, epochs: int) -> bool:
        """Whether the run that is replayed had a round after `epochs` epochs."""
        return self.phase == "grow" and epochs in self.schedule

    def plan_round(self, epochs: int, images_per_epoch: int, batch: Images | None) -> GrowthPlan:
        """The widths of the next round."""
        stop = "replayed" if epochs == max(self.schedule) else None
        plan = GrowthPlan(self.round + 1, self.graph.widths, self.schedule[epochs], stop=stop)
        if self.rounds.init != "firefly" or not plan.changes:
            return plan
        assert batch is not None
        fresh = {name: width - plan.before[name] for name, width in plan.changes.items()}
        return self.started(plan, firefly_candidates(self.net, fresh, batch, keyed_seed(self.seed, plan.round)))

    def carry_out(self, plan: GrowthPlan, epochs: int, batch: Images | None) -> None:
        """Grow; new channels and the optimizer's state as the options of growth say."""
        optimizer = self.optimizer
        if self.rounds.state == "reset":
            optimizer.state.clear()
        if plan.changes:
            seed = keyed_seed(self.seed, plan.round)
            self.grow(plan, optimizer, seed, batch)
        self.end_round(plan, epochs)


def schedule_of_run(path: str) -> Schedule:
    """What another run grew through: `path` is the directory of a finished run that grew.

    Raises UsageError where there is none.
    """
    run = RunDirectory(path)
    if run.summary is None or not run.rounds or not run.grew:
        raise UsageError(f"method.schedule_from={path}: expected the directory of a finished run that grew")
    return {0: run.summary["seed_widths"], **{record["epoch"]: record["widths"] for record in run.rounds}}


def build(config: Mapping[str, Any], net: nn.Module, num_classes: int, ledger: TrainCostLedger) -> Replay:
    """The method for a resolved configuration; `net` is the full backbone, traced, and becomes the seed network.

    Raises UsageError for options out of range, a run that is not of this backbone or does not fit into the epochs, and
    a budget below what it came to.
    """
    if (source := config["method"].get("schedule_from")) is None:
        raise UsageError("method=replay repeats the growth of another run: state method.schedule_from=RUN_DIRECTORY")
    schedule = schedule_of_run(str(source))
    rounds = options(Rounds, "growth", config["growth"])
    finetune = options(FineTuning, "finetune", config["finetune"])
    graph = ChannelGraph.of(net)
    cost = CostModel(graph)
    final = schedule[max(schedule)]
    if any(widths.keys() != graph.widths.keys() for widths in schedule.values()):
        raise UsageError(f"method.schedule_from={source}: its width groups are not those of this backbone")
    grown = f"the {max(schedule)} growing epochs of method.schedule_from={source}"
    must_fit(config["epochs"], max(schedule) + finetune.epochs, grown, f"finetune.epochs={finetune.epochs}")
    budget = Budget(**config["budget"]).resolve({**cost.costs(), "train_cost": ledger.baseline_cost})
    edges = [*sorted(schedule), max(schedule) + finetune.epochs]
    flops = [cost.flops(schedule[epoch]) for epoch in sorted(schedule)]
    spent = sum(ledger.images_per_epoch * f * (b - a) for f, (a, b) in zip(flops, pairwise(edges), strict=True))
    costs = {**cost.costs(final), "train_cost": spent}
    for kind, most in budget.limits.items():
        if costs[kind] > most:
            raise UsageError(
                f"budget.{kind}={most:,} is below the {costs[kind]:,} of the run that is replayed: raise it"
            )
    reshape_fresh(net, schedule[0], config["seed"])
    optim = options(Optimization, "optim", config["optim"])
    return Replay(net, num_classes, ledger, budget, optim, rounds, finetune, schedule, config["seed"])
