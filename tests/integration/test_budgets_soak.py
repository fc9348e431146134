"""`make soak`: 2,000 plans on random networks, none of which exceeds its budget, and which leave no room for a step."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.nn import functional as F

from budgetnet.backbones import cnf, resnet_fabric
from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import CostModel
from budgetnet.costs.edges import EdgeCosts
from budgetnet.methods.edges.selection import choose, filled, within
from budgetnet.methods.growth.policy import GrowthRule, Limit, Planner
from budgetnet.methods.hypernet.shrinking import narrow
from budgetnet.methods.pruning import allocate
from budgetnet.methods.pruning.coupled import channels_to_keep, coupled_channels

PLANS = {"growth": 500, "pruning": 700, "sub-networks": 400, "edges": 400}
KINDS = ("flops", "params")
ONE = 0.01
"""Where a single step costs less than this part of the budget, the budget is used to 99 %."""


class Part(nn.Module):
    """A depthwise, grouped, concatenated, residual or plain part of a network."""

    def __init__(self, kind: str, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.kind = kind
        groups = {"depthwise": before, "grouped": 2}.get(kind, 1)
        middle = before if kind == "depthwise" else width
        self.first = nn.Conv2d(before, middle, 3, stride, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(middle)
        self.second = nn.Conv2d(middle, width, 1, bias=False)
        self.other = nn.Conv2d(before, width, 1, stride, bias=kind == "concatenated")

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.norm(self.first(x))))
        if self.kind == "residual":
            return F.relu(y + self.other(x))
        return torch.cat([y, self.other(x)], 1) if self.kind == "concatenated" else F.relu(y)


class RandomNet(nn.Module):
    """A network of two to five random parts, which are drawn from `draw` alone. scale: of all widths."""

    def __init__(self, draw: random.Random, scale: float = 1.0) -> None:
        super().__init__()

        def width() -> int:
            return max(2, 4 * round(scale * draw.randint(2, 10) / 2))

        self.stem = nn.Conv2d(3, before := width(), 3, padding=1)
        self.kinds = [draw.choice(["depthwise", "grouped", "concatenated", "residual", "plain"]) for _ in range(4)]
        self.parts = nn.ModuleList()
        for kind in self.kinds[: draw.randint(2, 4)]:
            part = Part(kind, before, after := width(), draw.choice([1, 2]))
            self.parts.append(part)
            before = 2 * after if kind == "concatenated" else after
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for part in self.parts:
            x = part(x)
        return self.head(x.mean((2, 3)))


def random_net(draw: random.Random, scale: float = 1.0) -> tuple[RandomNet, CostModel]:
    net = RandomNet(draw, scale)
    return net, CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 12, 12)))


def random_limits(draw: random.Random, least: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int]:
    """Limits on FLOPs, parameters or both, somewhere between two costs."""
    kinds = draw.choice([["flops"], ["params"], ["flops", "params"]])
    return {kind: int(least[kind] + draw.uniform(0.02, 0.98) * (most[kind] - least[kind])) for kind in kinds}


Outcome = tuple[str, float, float]
"""What was found, the largest used part of a limit, and the smallest step that is left, as a part of the limits."""


def judged(costs: Mapping[str, int], steps: Sequence[Mapping[str, int]], limits: Mapping[str, int]) -> Outcome:
    """steps: the costs of the network with one step more of each kind that it could take."""
    used = max(costs[kind] / limit for kind, limit in limits.items())
    if any(costs[kind] > limit for kind, limit in limits.items()):
        return "above", used, 0.0
    rises = [max((step[kind] - costs[kind]) / limit for kind, limit in limits.items()) for step in steps]
    fitting = [r for r, step in zip(rises, steps) if all(step[kind] <= limit for kind, limit in limits.items())]
    if fitting and used < 1 - ONE:
        return "room left", used, min(fitting)
    return "within", used, min(rises, default=1.0)


def grown(draw: random.Random) -> Outcome:
    net, cost = random_net(draw, 0.3)
    graph = cost.graph
    widest = {group.name: group.width * draw.randint(2, 8) for group in graph.groups if group.kind == "convolution"}
    limits = random_limits(draw, cost.costs(), cost.costs({**graph.widths, **widest}))
    rule = GrowthRule(policy=draw.choice(["cost_aware", "balanced", "uniform", "random", "saturation"]))
    for round in range(1, 60):
        planner = Planner(CostModel(ChannelGraph.of(net)), rule, widest, seed=round)
        saturation = {name: draw.random() for name in widest}
        plan = planner.plan(round, saturation, [Limit(kind, kind, most) for kind, most in limits.items()])
        price = planner.cost.costs(plan.after)
        if any(price[kind] > limit for kind, limit in limits.items()):
            return "above", 1.1, 0.0
        if plan.changes:
            resize(net, plan.changes, seed=round)
        if plan.stop not in (None, "saturation"):
            break
    cost = CostModel(ChannelGraph.of(net))
    check_count(draw, net, cost)
    widths, steps = cost.graph.widths, []
    for name, most in widest.items():
        if (wider := widths[name] + planner.step[name]) <= most:
            steps.append(cost.costs({**widths, name: wider}))
    return judged(cost.costs(), steps, limits)


def pruned(draw: random.Random) -> Outcome:
    net, cost = random_net(draw)
    coupled = coupled_channels(cost.graph)
    full, least = cost.costs(), cost.costs(allocate.widths(coupled, [each.blocks for each in coupled]))
    limits = random_limits(draw, least, full)
    scores = random_scores(draw, cost.graph)
    allocation = draw.choice([allocate.uniform, allocate.ranked, allocate.by_error])
    counts = allocation(coupled, scores, allocate.fits(cost, limits))
    resize(net, channels_to_keep(coupled, scores, counts))
    left = CostModel(ChannelGraph.of(net))
    check_count(draw, net, left)
    steps = []
    for number, each in enumerate(coupled):
        if counts[number] + each.blocks <= len(each):
            more = [count + each.blocks * (place == number) for place, count in enumerate(counts)]
            steps.append(cost.costs({**cost.graph.widths, **allocate.widths(coupled, more)}))
    return judged(left.costs(), steps, limits)


def narrowed(draw: random.Random) -> Outcome:
    net, cost = random_net(draw)
    graph = cost.graph
    floors = {group.name: 1 for group in graph.groups}
    coupled = coupled_channels(graph)
    least = cost.costs({**graph.widths, **allocate.widths(coupled, [each.blocks for each in coupled])})
    limits = random_limits(draw, least, cost.costs())
    _, plan = narrow(graph, random_scores(draw, graph), floors, limits)
    full = graph.widths
    resize(net, plan)
    left = CostModel(ChannelGraph.of(net))
    check_count(draw, net, left)
    widths, steps = left.graph.widths, []
    for each in coupled:
        wider = {name: widths[name] + each.blocks for name in each.groups}
        if all(wider[name] <= full[name] == len(each) for name in each.groups):  # sets of whole groups
            steps.append(left.costs({**widths, **wider}))
    return judged(left.costs(), steps, limits)


@cache
def fabric(columns: int) -> EdgeCosts:
    """The costs of a CNF of so many columns, or of a ResNet Fabric for 0."""
    net: Fabric
    if columns:
        net, pixels = cnf.build(10, 3, (8, 8), columns=columns, channels=4), 8
    else:
        net, pixels = resnet_fabric.build(10, 3, (12, 12), multiplier=0.25), 12
    ChannelGraph.trace(net, torch.empty(1, 3, pixels, pixels))
    return EdgeCosts(net)


def chosen(draw: random.Random) -> Outcome:
    costs = fabric(draw.choice([0, 0, 0, 1, 2, 3]))
    layout, every = costs.layout, torch.ones(len(costs.layout.edges), dtype=torch.bool)
    shortest = costs.cheapest_path("flops")
    full, least = costs.price(every), costs.price(shortest)
    limits = {"flops": int(least["flops"] + draw.uniform(0.02, 0.98) * (full["flops"] - least["flops"]))}
    numbers = torch.tensor([draw.random() for _ in layout.edges])
    mask = choose(costs, limits, numbers, shortest)
    if not within(costs, limits)(mask):
        return "above", 1.1, 0.0
    mask, steps = filled(costs, limits, numbers, mask), list[Mapping[str, int]]()
    fractions = costs.budget_fractions(limits)
    for edge in (~mask).nonzero().flatten().tolist():
        weights = [0.0 if free else cost for free, cost in zip(mask.tolist(), fractions, strict=True)]
        path = layout.path(weights, every, through=edge)
        assert path is not None
        steps.append(costs.price(mask | path))
    return judged(costs.price(mask), steps, limits)


def random_scores(draw: random.Random, graph: ChannelGraph) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    return {group.name: torch.rand(group.width, generator=generator) for group in graph.groups}


def check_count(draw: random.Random, net: nn.Module, cost: CostModel) -> None:
    """Of one in ten networks fvcore counts what is left."""
    if draw.random() < 0.1:
        counted = FlopCountAnalysis(net.eval(), torch.zeros(1, 3, 12, 12)).unsupported_ops_warnings(False)
        assert counted.uncalled_modules_warnings(False).total() == cost.flops()
        assert sum(parameter.numel() for parameter in net.parameters()) == cost.costs()["params"]


FAMILIES: dict[str, Callable[[random.Random], Outcome]] = {
    "growth": grown, "pruning": pruned, "sub-networks": narrowed, "edges": chosen,
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
def test_no_plan_exceeds_its_budget_and_none_leaves_room_for_a_step(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, outcomes = time.process_time(), []
    for seed in range(PLANS[family]):
        outcomes.append(FAMILIES[family](random.Random(f"{family} {seed}")))
    found = Counter(outcome for outcome, _, _ in outcomes)
    small = [used for _, used, step in outcomes if step < ONE]
    with capsys.disabled():
        print(
            f"\n{family}: {len(outcomes)} plans, {found['above']} above their budget, {found['room left']} with room "
            f"for a step; used where a step is below 1 %: at least {100 * min(small, default=1):.2f} % ({len(small)} "
            f"plans); {time.process_time() - begin:.0f} s of a processor"
        )
    assert found.keys() == {"within"}
    assert all(used >= 1 - ONE for used in small)
