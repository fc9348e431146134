from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph, GraphError
from budgetnet.costs import CostModel
from budgetnet.methods.growth import GrowthRule, Limit, Planner, growth_gradients

BATCH = (torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4)


def net_of(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*layers)
    ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    return net


def plain() -> nn.Module:
    return net_of(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 64, 4),
    )  # fmt: skip


def test_the_gradient_of_a_group_is_that_of_its_new_channel_under_gradmax_and_the_network_stays_as_it_is() -> None:
    net = plain()
    before = copy.deepcopy(net.state_dict())
    found = growth_gradients(net, ["0", "2"], BATCH, seed=3)
    assert found.keys() == {"0", "2"} and all(value > 0 for value in found.values())
    assert found == growth_gradients(net, ["0", "2"], BATCH, seed=3)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_behind_a_norm_it_is_the_gradient_of_the_filter_at_zero_too() -> None:
    without = plain()
    with_norm = net_of(*[copy.deepcopy(layer) for layer in without[:1]], nn.BatchNorm2d(4, eps=0.0), *without[1:])
    expected = growth_gradients(without, ["0"], BATCH, seed=3)["0"]  # in eval mode a fresh norm changes nothing
    assert growth_gradients(with_norm, ["0"], BATCH, seed=3)["0"] == pytest.approx(expected, rel=1e-3)


def test_a_group_in_front_of_a_dead_layer_has_no_gradient() -> None:
    net = plain()
    with torch.no_grad():  # nothing passes the second convolution, whatever comes in
        net.get_parameter("2.bias").fill_(-100.0)
    assert growth_gradients(net, ["0"], BATCH)["0"] == 0


def test_a_group_behind_which_gradmax_does_not_reach_is_named() -> None:
    net = net_of(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(256, 4))
    with pytest.raises(GraphError, match="grouped convolution"):
        growth_gradients(net, ["0"], BATCH)


def test_the_policy_takes_as_many_groups_as_saturation_would_those_with_the_largest_gradients() -> None:
    net = backbones.build("lenet5", num_classes=10, in_channels=1)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 1, 28, 28)))
    planner = Planner(cost, GrowthRule(policy="gradient", threshold=0.5), {"conv1": 99, "conv2": 99})
    limits = [Limit("flops", "flops", 10 * cost.flops())]
    for gradients, chosen in (({"conv1": 1.0, "conv2": 2.0}, "conv2"), ({"conv1": 3.0, "conv2": 2.0}, "conv1")):
        plan = planner.plan(1, {"conv1": 0.9, "conv2": 0.1}, limits, gradients)
        assert plan.candidates == (chosen,) and list(plan.changes) == [chosen]
