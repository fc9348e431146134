from __future__ import annotations

import copy

import pytest
import torch
from nets import Odd
from torch import nn

from budgetnet import ChannelGraph, backbones
from budgetnet.costs import CostModel
from budgetnet.methods.pruning import allocate, channels_to_keep, coupled_channels
from budgetnet.methods.pruning import pfp as module
from budgetnet.methods.pruning.consumers import observe
from budgetnet.methods.pruning.pfp import pfp


def listed(activations: list[float], weights: list[list[float]]) -> torch.Tensor:
    """Sensitivities in a network whose channels have these activations on an image of ones, and this next layer."""
    net = nn.Sequential(nn.Conv2d(1, len(activations), 1, bias=False), nn.Conv2d(len(activations), len(weights), 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(activations).reshape(-1, 1, 1, 1))
        net[1].weight.copy_(torch.tensor(weights)[:, :, None, None])
    return pfp(ChannelGraph.trace(net, torch.empty(1, 1, 1, 1)), torch.ones(1, 1, 1, 1))["0"]


def test_the_largest_part_in_any_output_filter() -> None:
    # (1, 2, 2) of 5 in the first filter, (3, 2, 0.5) of 5.5 in the second
    found = listed([1, 2, 1], [[1, 1, 2], [3, 1, 0.5]])
    assert found.tolist() == pytest.approx([3 / 5.5, 2 / 5, 2 / 5])


def test_positive_and_negative_weights_are_compared_among_themselves() -> None:
    # 1 and 2 of 3; 5 of 20 and 15 of 20
    found = listed([1, 1, 5, 5], [[1, 2, -1, -3]])
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 1 / 4, 3 / 4])


def test_positive_and_negative_activations_are_compared_among_themselves() -> None:
    found = listed([1, 3, -1, -1], [[1, 1, 4, 1]])
    assert found.tolist() == pytest.approx([1 / 4, 3 / 4, 4 / 5, 1 / 5])


def test_a_dead_channel_has_no_sensitivity_and_a_channel_alone_has_all() -> None:
    assert listed([0, 1, 2], [[5, 1, -1]]).tolist() == [0, 1, 1]
    assert listed([0, 0], [[1, 2]]).tolist() == [0, 0]


def test_equal_channels_have_equal_sensitivity_and_share_it() -> None:
    assert listed([2, 2, 2, 2], [[1, 1, 1, 1]]).tolist() == pytest.approx([0.25] * 4)


def by_definition(graph: ChannelGraph, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every channel's part, from each consumer run on its own channels alone, one at a time."""
    model = copy.deepcopy(graph.model).eval()
    seen: dict[str, torch.Tensor] = {}
    paths = {path for group in graph.groups for path in group.consumers}
    observe(ChannelGraph.of(model), paths, images, lambda path, _, inputs, _count: seen.update({path: inputs}))
    found = {}
    for group in graph.groups:
        if group.kind != "convolution":
            continue
        largest = torch.zeros(group.width, dtype=images.dtype)
        for path in group.consumers:
            layer = copy.deepcopy(model.get_submodule(path))
            layer.bias = None
            original, inputs = layer.weight.detach().clone(), seen[path]
            units = POSITIONS[path, group.name]
            for weight in (original.clamp_min(0), (-original).clamp_min(0)):
                layer.weight = nn.Parameter(weight)
                for sign in (inputs.clamp_min(0), (-inputs).clamp_min(0)):
                    whole = layer(sign)
                    for channel in range(group.width):
                        only = torch.zeros_like(sign)
                        own = [units[0] + channel * units[1] + i for i in range(units[1])]
                        only[:, own] = sign[:, own]
                        part = torch.where(whole > 1e-12, layer(only) / whole, 0)
                        largest[channel] = max(largest[channel], part.max())
        found[group.name] = largest.detach()
    return found


POSITIONS = {  # first unit and units per channel, of a group among the inputs of a layer
    **{(path, "stem"): (0, 1) for path in ("attention.reduce", "pointwise", "left", "right")},
    ("attention.expand", "attention.reduce"): (0, 1),
    ("mix", "left"): (0, 1),
    ("mix", "right"): (5, 1),
    ("grouped", "mix"): (0, 1),
    ("hidden", "grouped"): (0, 32),
}


def odd() -> ChannelGraph:
    """Depthwise, squeeze-excite, strided, concatenated, grouped and flattened; activations of both signs."""
    torch.manual_seed(0)
    return ChannelGraph.trace(Odd().double(), torch.empty(1, 3, 8, 8))


def test_it_is_the_definition_in_a_network_that_no_backbone_resembles() -> None:
    graph, images = odd(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    found, wanted = pfp(graph, images), by_definition(graph, images)
    assert found.keys() == wanted.keys() == {"stem", "attention.reduce", "left", "right", "mix", "grouped"}
    for name, sensitivity in wanted.items():
        assert torch.allclose(found[name], sensitivity, rtol=1e-9), name


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, images = odd(), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    whole = pfp(graph, images)
    monkeypatch.setattr(module, "_ENTRIES", 100)
    monkeypatch.setattr(module, "_POSITIONS", 7)
    for name, sensitivity in pfp(graph, images).items():
        assert torch.allclose(sensitivity, whole[name], rtol=1e-12)


def test_of_several_images_the_maximum() -> None:
    graph, images = odd(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    both, first, rest = pfp(graph, images), pfp(graph, images[:2]), pfp(graph, images[2:])
    for name, sensitivity in both.items():
        assert torch.allclose(sensitivity, torch.maximum(first[name], rest[name]), rtol=1e-12)


def test_sensitivities_give_layer_rates_that_meet_a_budget_on_a_residual_network() -> None:
    torch.manual_seed(0)
    net = backbones.build("resnet20")
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    scores = pfp(graph, torch.randn(4, 3, 32, 32))
    assert scores.keys() == graph.widths.keys()
    assert all(bool(((score >= 0) & (score <= 1)).all()) for score in scores.values())
    cost, found = CostModel(graph), coupled_channels(graph)
    limit = cost.flops() // 2
    counts = allocate.by_error(found, scores, allocate.fits(cost, {"flops": limit}))
    widths = {name: len(channels) for name, channels in channels_to_keep(found, scores, counts).items()}
    assert 0.99 * limit <= cost.flops(widths) <= limit
    assert len({round(len(each) / count, 1) for each, count in zip(found, counts)}) > 3  # every layer its own rate


def test_the_same_on_other_memory_layouts() -> None:
    torch.manual_seed(0)
    net = backbones.build("resnet20", seed_width=4).double()
    graph, images = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32)), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    wanted = pfp(graph, images)
    net.to(memory_format=torch.channels_last)
    for name, sensitivity in pfp(graph, images.contiguous(memory_format=torch.channels_last)).items():
        assert torch.allclose(sensitivity, wanted[name], rtol=1e-9)
