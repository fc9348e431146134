from __future__ import annotations

import math

import pytest
import torch

from budgetnet import LBI, ChannelGraph, backbones
from budgetnet.growth import initial_norms, saturation, selection_threshold, sparse_sets


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
