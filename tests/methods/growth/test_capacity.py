from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from budgetnet import LBI, ChannelGraph, backbones
from budgetnet.methods.growth import (
    best_scored,
    initial_norms,
    path_norms,
    saturation,
    selected_fractions,
    selection_threshold,
    sparse_sets,
)


def lenet() -> ChannelGraph:
    torch.manual_seed(0)
    return ChannelGraph.trace(backbones.build("lenet5"), torch.empty(1, 1, 28, 28))


def test_filters_and_hidden_linear_layers_are_sparse_and_the_classifier_is_not() -> None:
    graph = lenet()
    names = {p: name for name, p in graph.model.named_parameters()}
    assert {names[p]: kind for p, kind in sparse_sets(graph).items()} == {
        "conv1.weight": "filter", "conv2.weight": "filter", "fc1.weight": "entry", "fc2.weight": "entry",
    }  # fmt: skip
    assert set(sparse_sets(graph, grow_linear=True).values()) == {"filter"}
    sound = ChannelGraph.trace(nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 2, 3)), torch.empty(1, 1, 8))
    assert list(sparse_sets(sound).values()) == ["filter"]


def test_the_initial_filter_norm_of_a_he_network_is_root_two() -> None:
    net = backbones.build("resnet20", multiplier=4)
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    assert initial_norms(sparse_sets(graph))["filter"] == pytest.approx(math.sqrt(2), rel=0.01)


@pytest.mark.parametrize(("lr", "nu", "steps"), [(0.05, 100.0, 40), (0.1, 20.0, 100), (0.5, 1000.0, 7)])
def test_the_clock_selects_exactly_the_filters_above_the_bar(lr: float, nu: float, steps: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(50, 3, 3, 3, dtype=torch.float64))
    with torch.no_grad():  # filters of norm 0.02, 0.04, ... 1.00
        weight[:, 0, 0, 0] = torch.arange(1, 51, dtype=torch.float64) / 50
    threshold = selection_threshold(0.905, 0.5, lr, nu, steps)
    optimizer = LBI([{"params": [weight], "sparse": "filter"}], lr=lr, nu=nu, threshold=threshold, momentum=0.0)
    frozen = weight.detach().clone()
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        weight.data.copy_(frozen)
    assert optimizer.support(weight).sum() == sum(norm / 50 > 0.905 * 0.5 for norm in range(1, 51))


def test_saturation_is_the_share_of_selected_filters_and_joins_tied_layers() -> None:
    net = backbones.build("resnet18", num_classes=5, seed_width=4)
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    kinds = sparse_sets(graph)
    optimizer = LBI([{"params": list(kinds), "sparse": "filter"}], lr=0.1)
    for weight in kinds:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    tied = graph.group("layer2.0.conv2")
    assert tied.producers == ("layer2.0.conv2", "layer2.0.downsample.0")
    for path, selected in zip(tied.producers, (1, 3)):
        optimizer.state[net.get_parameter(f"{path}.weight")]["z"][:selected] = 1
    assert saturation(graph, optimizer, "max")["layer2.0.conv2"] == 0.75
    assert saturation(graph, optimizer, "mean")["layer2.0.conv2"] == 0.5
    assert saturation(graph, optimizer)["conv1"] == 0


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.8])
def test_relative_saturation_selects_that_part_of_all_filters_the_best_scored_first(quantile: float) -> None:
    scores = {"low": [torch.arange(40.0)], "high": [torch.arange(20.0, 60.0), torch.arange(20.0, 60.0)]}
    by_mean = selected_fractions(best_scored(scores, quantile), "mean")
    assert (40 * by_mean["low"] + 80 * by_mean["high"]) / 120 == pytest.approx(quantile, abs=0.02)
    assert by_mean["high"] > by_mean["low"]
    threshold = sorted([*range(40), *range(20, 60), *range(20, 60)])[round(120 * (1 - quantile)) - 1]
    assert by_mean["low"] == pytest.approx(sum(x > threshold for x in range(40)) / 40, abs=0.03)


def test_nothing_is_relatively_saturated_before_the_first_step() -> None:
    graph = lenet()
    optimizer = LBI([{"params": list(sparse_sets(graph)), "sparse": "filter"}], lr=0.1)
    norms = path_norms(graph, ["conv1", "conv2"], optimizer)
    assert selected_fractions(best_scored(norms, 0.5)) == {"conv1": 0.0, "conv2": 0.0}


def test_the_order_of_the_path_is_the_order_in_which_filters_are_selected() -> None:
    weight = torch.nn.Parameter(torch.randn(30, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 30, 3), torch.nn.Conv2d(30, 2, 1))
    net[0].weight = weight
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    optimizer = LBI([{"params": [weight], "sparse": "filter"}], lr=0.1, nu=10.0, threshold=1e9, momentum=0.0)
    for _ in range(10):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    (norms,) = path_norms(graph, ["0"], optimizer)["0"]
    for count in (1, 7, 29):
        optimizer.param_groups[0]["threshold"] = norms.sort(descending=True).values[count - 1].item() * (1 - 1e-6)
        assert optimizer.support(weight).sum() == count
        assert set(optimizer.support(weight).nonzero().flatten().tolist()) == set(norms.topk(count).indices.tolist())
