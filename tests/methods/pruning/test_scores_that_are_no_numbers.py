"""Scores that are nan or infinite: an allocation is within the budget all the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from budgetnet import backbones
from budgetnet.channels import ChannelGraph
from budgetnet.costs import Budget, CostModel
from budgetnet.errors import RunError
from budgetnet.methods.growth.policy import CANDIDATES, GrowthRule, Limit, Planner
from budgetnet.methods.pruning import allocate
from budgetnet.methods.pruning.coupled import channels_to_keep, coupled_channels

NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e38, -1.0)
Allocation = Callable[..., list[int]]
ALLOCATIONS: tuple[Allocation, ...] = (allocate.uniform, allocate.ranked, allocate.by_error)


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("backbone", ["lenet5", "resnet20"])
def test_no_allocation_exceeds_its_budget_whatever_the_scores(backbone: str, allocation: Allocation) -> None:
    channels, size = (1, 28) if backbone == "lenet5" else (3, 32)
    net = backbones.build(backbone, num_classes=10, in_channels=channels)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, channels, size, size)))
    coupled = coupled_channels(cost.graph)
    for seed in range(8):
        draw = random.Random(seed)
        limits = {"flops": int(cost.flops() * draw.uniform(0.2, 0.9))}
        scores = {group.name: torch.rand(group.width) for group in cost.graph.groups}
        for name in draw.sample(sorted(scores), draw.randint(1, len(scores))):
            count = draw.randint(1, len(scores[name]))
            scores[name][:count] = draw.choice(NO_NUMBERS)
        within = allocate.fits(cost, limits)
        counts = allocation(coupled, scores, within)
        assert within(allocate.widths(coupled, counts))
        kept = channels_to_keep(coupled, scores, counts)
        assert within({name: len(channels) for name, channels in kept.items()})


@pytest.mark.parametrize("policy", CANDIDATES)
def test_no_growth_plan_exceeds_its_budget_whatever_the_saturation(policy: str) -> None:
    net = backbones.build("lenet5", num_classes=10, in_channels=1, seed_width=2)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 1, 28, 28)))
    widest = {group.name: 40 for group in cost.graph.groups}
    limit = Limit("flops", "flops", 3 * cost.flops())
    for number in NO_NUMBERS:
        for names in (list(widest)[:1], list(widest)):
            measured = {**dict.fromkeys(widest, 0.5), **dict.fromkeys(names, number)}
            planner = Planner(cost, GrowthRule(policy=policy), widest)
            plan = planner.plan(1, measured, [limit], measured, dict.fromkeys(widest, [number] * 8))
            assert cost.flops(plan.after) <= limit.most


def test_a_result_above_its_budget_is_none() -> None:
    budget = Budget(flops=100, train_cost=1000)
    budget.require_kept({"flops": 100, "params": 7, "train_cost": 1000}, "the network")
    budget.require_kept({"flops": 100}, "the network")
    for costs in ({"flops": 101, "train_cost": 1000}, {"flops": float("nan"), "train_cost": 0}):
        with pytest.raises(RunError, match=r"the network exceeds its budget.*flops are above budget.flops=100"):
            budget.require_kept(costs, "the network")
