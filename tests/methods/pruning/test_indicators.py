from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nets import Odd
from torch import nn
from torch.func import functional_call

from budgetnet import ChannelGraph, backbones, resize
from budgetnet.costs import CostModel
from budgetnet.methods.pruning import allocate, coupled_channels
from budgetnet.methods.pruning.indicators import (
    Indicators,
    active_of,
    by_channel,
    columns,
    distance,
    kept_by,
    masked,
    pull,
    sample,
    sizes,
    temperature,
)


def traced(name: str) -> ChannelGraph:
    torch.manual_seed(0)
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    return ChannelGraph.trace(backbones.build(name, seed_width=4), torch.empty(1, *shape))


GRAPHS: dict[str, Callable[[], ChannelGraph]] = {
    **{name: lambda name=name: traced(name) for name in ("lenet5", "vgg16", "resnet20", "resnet50")},
    "odd": lambda: ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8)),
}


def some(count: int, share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_temperature_rises_from_1_to_the_highest_by_equal_factors_of_active_epochs() -> None:
    found = temperature(torch.tensor([0, 1, 2, 4]), epochs=4, highest=81.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 9.0, 81.0]))


def test_an_indicator_begins_with_the_probability_it_is_given() -> None:
    indicators = Indicators(coupled_channels(traced("resnet20")), start=0.3, epochs=5, highest=100.0)
    torch.testing.assert_close(indicators.masks(), torch.full_like(indicators.scores, 0.3))


def test_the_pull_is_the_gradient_of_the_weighted_sum_of_all_masks() -> None:
    indicators = Indicators(coupled_channels(traced("resnet20")), start=0.3, epochs=5, highest=5.0)
    torch.nn.init.normal_(indicators.scores)
    indicators.activity.random_(0, 5)
    weights = -0.7 / indicators.temperatures().square()
    (weights * indicators.masks()).sum().backward()
    assert indicators.scores.grad is not None and (indicators.scores.grad < 0).all()  # below the budget: all grow
    torch.testing.assert_close(pull(indicators, -0.7), indicators.scores.grad)


def test_a_step_of_the_pull_moves_equally_likely_filters_equally_far_however_hard_they_are() -> None:
    indicators = Indicators(coupled_channels(traced("resnet20")), start=0.3, epochs=5, highest=100.0)
    indicators.activity.random_(0, 5)
    with torch.no_grad():
        indicators.scores /= indicators.temperatures()
        indicators.scores -= pull(indicators, -0.7)
    expected = indicators.logits().new_tensor(0.3).logit() + 0.7 * 0.3 * 0.7
    torch.testing.assert_close(indicators.logits(), expected.expand_as(indicators.scores))


@pytest.mark.parametrize("name", GRAPHS)
def test_active_indicators_and_kept_channels_are_the_same(name: str) -> None:
    found = coupled_channels(GRAPHS[name]())
    active = some(sum(sizes(found)), 0.5)
    assert torch.equal(active_of(found, kept_by(found, active)), active)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_sampled_network_is_within_the_budget_and_has_a_channel_of_every_set(name: str, share: float) -> None:
    graph = GRAPHS[name]()
    found, cost = coupled_channels(graph), CostModel(graph)
    least = cost.costs(allocate.widths(found, [each.blocks for each in found]))
    limits = {kind: int(least[kind] + share * (cost.costs()[kind] - least[kind])) for kind in ("flops", "params")}
    count = sum(sizes(found))
    for seed in range(5):
        logits = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
        active = sample(found, logits, draws(count, seed), allocate.fits(cost, limits))
        assert all(own.any() for own in active.split(sizes(found)))
        model = copy.deepcopy(graph.model)
        resize(model, kept_by(found, active))
        costs = CostModel(ChannelGraph.of(model)).costs()
        assert all(costs[kind] <= most for kind, most in limits.items())


def test_with_room_for_all_exactly_those_are_active_whose_draw_is_below_their_probability() -> None:
    found = coupled_channels(traced("vgg16"))
    count = sum(sizes(found))
    logits = torch.linspace(-3, 3, count, dtype=torch.float64)
    active = sample(found, logits, draws(count), lambda widths: True)
    expected = draws(count) < logits.sigmoid()
    empty = [not own.any() for own in expected.split(sizes(found))]
    assert torch.equal(active & expected, expected)
    assert int(active.sum() - expected.sum()) == sum(empty) > 0  # one each of the sets that had none


def test_without_room_for_all_the_least_likely_of_those_drawn_are_left_out() -> None:
    found = coupled_channels(traced("vgg16"))
    count = sum(sizes(found))
    logits = torch.randn(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    most = 18
    active = sample(found, logits, draws(count), lambda widths: sum(widths.values()) <= most)
    left_out = (draws(count) < logits.sigmoid()) & ~active
    only = torch.cat([own.sum().expand(len(own)) == 1 for own in active.split(sizes(found))])
    assert int(active.sum()) == most
    assert left_out.any() and logits[left_out].max() < logits[active & ~only].min()


def test_equally_likely_channels_are_left_out_by_chance() -> None:
    found = coupled_channels(traced("vgg16"))
    count = sum(sizes(found))
    logits = torch.full((count,), 3.0, dtype=torch.float64)
    first, second = (sample(found, logits, draws(count, seed), lambda w: sum(w.values()) <= 26) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, sample(found, logits, draws(count, 0), lambda w: sum(w.values()) <= 26))


def test_the_distance_is_that_of_the_expected_network_from_the_scarcest_budget() -> None:
    graph = traced("resnet20")
    found, cost = coupled_channels(graph), CostModel(graph)
    half = cost.costs({name: width // 2 for name, width in graph.widths.items()})
    masks = torch.full((sum(sizes(found)),), 0.5)
    assert distance(found, 2 * masks, cost, {"flops": cost.flops()}) == 0
    assert distance(found, masks, cost, {"flops": cost.flops()}) == half["flops"] / cost.flops() - 1 < 0
    limits = {"flops": half["flops"], "params": half["params"] // 2}
    assert distance(found, masks, cost, limits) == half["params"] / limits["params"] - 1 > 0


@pytest.mark.parametrize("name", GRAPHS)
def test_channels_masked_by_0_are_as_good_as_gone(name: str) -> None:
    graph = GRAPHS[name]()
    net = graph.model.double().eval()
    found = coupled_channels(graph)
    numbers = by_channel(found, torch.arange(sum(sizes(found))))
    active = some(sum(sizes(found)), 0.6)
    for own in active.split(sizes(found)):
        own[0] = True
    images = torch.randn(2, *graph.input_shape[1:], dtype=torch.float64)
    weights = masked(net, columns(graph, numbers, sum(sizes(found))), active.double())
    expected = functional_call(net, weights, (images,))
    resize(net, kept_by(found, active))
    torch.testing.assert_close(net(images), expected, rtol=1e-10, atol=1e-12)
    assert len({len(channels) for channels in kept_by(found, active).values()}) > 1


def test_a_mask_scales_what_a_filter_puts_out() -> None:
    """In VGG, to halve a channel is to halve the scale and the shift of the batch norm behind its filter."""
    graph = traced("vgg16")
    net = graph.model.double().eval()
    found = coupled_channels(graph)
    masks = torch.rand(sum(sizes(found)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = by_channel(found, torch.arange(len(masks)))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found_logits = functional_call(net, masked(net, columns(graph, numbers, len(masks)), masks), (images,))
    for name, own in by_channel(found, masks).items():
        norm = net.get_submodule(graph.norm_after[name])
        norm.weight.data *= own
        norm.bias.data *= own
    torch.testing.assert_close(found_logits, net(images), rtol=1e-10, atol=1e-12)


def test_every_indicator_gets_a_gradient_from_the_masked_network() -> None:
    graph = traced("resnet20")
    found = coupled_channels(graph)
    indicators = Indicators(found, start=0.5, epochs=2, highest=10.0)
    numbers = by_channel(found, torch.arange(len(indicators.scores)))
    weights = masked(graph.model, columns(graph, numbers, len(indicators.scores)), indicators.masks())
    functional_call(graph.model, weights, (torch.randn(4, 3, 32, 32),)).square().sum().backward()
    assert indicators.scores.grad is not None and (indicators.scores.grad != 0).all()


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv3d])
def test_a_mask_scales_what_any_convolution_reads(convolution: type[nn.Conv1d] | type[nn.Conv3d]) -> None:
    net = nn.Sequential(convolution(3, 4, 1), convolution(4, 6, 1, groups=2), convolution(6, 2, 1))
    shape = (1, 3, *(4,) * (net[0].weight.dim() - 2))
    graph = ChannelGraph.trace(net, torch.empty(shape))
    found = coupled_channels(graph)
    numbers = by_channel(found, torch.arange(sum(sizes(found))))
    masks = torch.rand(sum(sizes(found)))
    images, own = torch.randn(shape), by_channel(found, masks)
    given = functional_call(net, masked(net, columns(graph, numbers, len(masks)), masks), (images,))
    for name, values in own.items():
        layer = net.get_submodule(name)
        layer.weight.data *= values.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layer.bias.data *= values
    torch.testing.assert_close(given, net(images))
