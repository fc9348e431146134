from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from short_run import Fit
from torch import Tensor, nn
from torch.nn import functional

from budgetnet.channels import ChannelGraph
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.growth import GrowthRule, Limit, Planner, channel_importance, saturation_of_gains
from budgetnet.methods.growth.adenel import AdeNeL
from budgetnet.methods.growth.options import Growth

IMAGES = (torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4)


class Gated(nn.Module):
    """Two convolutions, the first before a batch norm, added to a third: every output may be multiplied by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.beside, self.fc = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1), nn.Linear(6, 4)
        self.gates: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)) * self.gates.get("first", 1))
        x = (self.second(x) + self.beside(x)) * self.gates.get("second", 1)
        return self.fc(functional.relu(x).mean((2, 3)))


def gated() -> Gated:
    torch.manual_seed(0)
    net = Gated()
    ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    with torch.no_grad():
        for tensor in (*net.norm.parameters(), net.second.bias, net.norm.running_mean, net.norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return net


def test_importance_is_the_mean_over_batches_of_the_squared_slope_at_a_gate_on_the_channel() -> None:
    net = gated()
    found = channel_importance(net, ["first", "second"], IMAGES, batch=8)
    for name, width in (("first", 4), ("second", 6)):
        squares = []
        for images, targets in zip(*(each.split(8) for each in IMAGES), strict=True):
            gate = torch.ones(width, 1, 1, requires_grad=True)
            net.gates = {name: gate}
            loss = functional.cross_entropy(net.eval()(images), targets)
            squares.append(torch.autograd.grad(loss, gate)[0].flatten().double() ** 2)
        assert torch.allclose(found[name], torch.stack(squares).mean(0), rtol=1e-4)


def test_it_leaves_the_network_as_it_is_and_repeats_to_the_bit() -> None:
    net = gated()
    before = copy.deepcopy(net.state_dict())
    first, second = (channel_importance(net, ["first", "second"], IMAGES) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_it_depends_on_the_function_alone_not_on_how_long_filters_are() -> None:
    net, longer = gated(), gated()
    with torch.no_grad():
        longer.first.weight.mul_(3)
        longer.first.bias.mul_(3)
        longer.norm.running_mean.mul_(3)
        longer.norm.running_var.mul_(9)
    one, other = (channel_importance(each, ["first"], IMAGES)["first"] for each in (net, longer))
    assert torch.allclose(one, other, rtol=1e-3)
    doubled = channel_importance(net, ["first"], IMAGES, lambda out, y: 2 * functional.cross_entropy(out, y))["first"]
    assert torch.allclose(doubled, 4 * one)


def test_a_channel_that_nothing_reads_has_none() -> None:
    net = gated()
    with torch.no_grad():
        net.second.weight[:, 1] = 0
        net.beside.weight[:, 1] = 0
    found = channel_importance(net, ["first"], IMAGES)["first"]
    assert found[1] == 0 and bool((found[[0, 2, 3]] > 0).all())


def test_the_rule_expects_of_a_channel_what_the_gains_say_in_any_unit() -> None:
    widths = {"first": 4, "second": 6}
    assert saturation_of_gains({"first": 9.0, "second": 1.0}, widths) == {"first": 1.0, "second": 0.25}
    assert saturation_of_gains({"first": 9e-9, "second": 1e-9}, widths) == pytest.approx({"first": 1.0, "second": 0.25})
    assert saturation_of_gains({"first": 0.0, "second": 0.0}, widths) == {"first": 0.0, "second": 0.0}


def test_channels_go_where_more_of_them_are_worth_more() -> None:
    net = gated()
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 8, 8)))
    planner = Planner(cost, GrowthRule(policy="cost_aware"), {"first": 99, "second": 99})
    limits = [Limit("flops", "flops", 2 * cost.flops())]
    grown = [
        planner.plan(1, saturation_of_gains(gains, cost.graph.widths), limits).after
        for gains in ({"first": 5.0, "second": 1.0}, {"first": 1.0, "second": 5.0})
    ]
    assert grown[0]["first"] > grown[1]["first"] and grown[0]["second"] < grown[1]["second"]


@pytest.mark.parametrize("readout", ["importance", "gradient", "firefly"])
def test_a_run_grows_by_what_the_loss_says_with_and_without_a_batch_norm(fit: Fit, readout: str) -> None:
    parts = fit(
        "backbone=own", "backbone._target_=nets.Small", "growth.seed_width=3", "budget.flops=30%",
        "dataset.limit_train=60", "growth.policy=cost_aware", "growth.cost_ratio=1", f"growth.readout={readout}",
        "finetune.epochs=1",
    )  # fmt: skip
    directory = Path(parts.trainer.default_root_dir)
    rounds = [json.loads(line) for line in (directory / "growth.jsonl").read_text().splitlines()]
    assert not (directory / "saturation.csv").exists() and rounds[-1]["stop"] == "flops"
    for record in rounds:
        assert max(record["saturation"].values()) == 1 and min(record["saturation"].values()) > 0
    method = parts.learner.method
    assert isinstance(method, AdeNeL)
    if readout == "gradient":
        assert method.gains(IMAGES, {"first": 3.0, "second": 0.5}, None) == {"first": 9.0, "second": 0.25}
    if readout == "firefly":  # where the rule adds a channel to each
        assert method.gains(IMAGES, None, {"first": [1.0, 3.0, 2.0], "second": [-1.0]}) == {"first": 3.0, "second": 0.0}


def test_a_policy_that_does_not_weigh_what_a_channel_is_worth_is_refused() -> None:
    with pytest.raises(UsageError, match=r"growth\.policy=balanced does not weigh"):
        Growth(policy="balanced", readout="importance")
