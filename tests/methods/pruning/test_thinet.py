from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from nets import Odd
from torch import nn

from budgetnet import ChannelGraph, backbones, resize
from budgetnet.methods.pruning import channels_to_keep, coupled_channels
from budgetnet.methods.pruning.thinet import removal_order, rescale, thinet


def calibrated() -> tuple[nn.Module, torch.Tensor]:
    """A ResNet-20 in eval mode with the statistics of the images that it comes with: hardly a channel is silent."""
    torch.manual_seed(0)
    net, images = backbones.build("resnet20"), torch.randn(64, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, of which there is one
    with torch.no_grad():
        net(images)
    ChannelGraph.trace(net, images)
    return net.eval(), images


def chain(outgoing: list[float]) -> ChannelGraph:
    """1 -> n -> 1 channels; every channel carries the image on, and contributes its outgoing weight to the output."""
    net = nn.Sequential(nn.Conv2d(1, len(outgoing), 1, bias=False), nn.Conv2d(len(outgoing), 1, 1))
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[1].weight.copy_(torch.tensor(outgoing).reshape(1, -1, 1, 1))
    return ChannelGraph.trace(net, torch.empty(1, 1, 4, 4))


def test_the_order_of_contributions_that_can_be_listed() -> None:
    # 1 first; then -2, which leaves -1, where 1.5 would leave 2.5; then 1.5 (0.5), not 3 (2)
    scores = thinet(chain([3.0, -2.0, 1.5, 1.0]), torch.randn(5, 1, 4, 4))
    assert scores["0"].tolist() == [3 / 4, 1 / 4, 2 / 4, 0]


def test_small_filters_go_last_if_the_next_layer_needs_them() -> None:
    graph = chain([3.0, 0.1, 1.0])
    with torch.no_grad():
        graph.model[0].weight.mul_(torch.tensor([0.01, 1.0, 2.0]).reshape(-1, 1, 1, 1))
        graph.model[1].weight.mul_(torch.tensor([100.0, 1.0, 0.5]).reshape(1, -1, 1, 1))
    assert thinet(graph, torch.randn(5, 1, 4, 4))["0"].tolist() == pytest.approx([2 / 3, 0, 1 / 3])


def test_the_first_choice_is_the_optimum_and_every_other_the_best_next_one() -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = removal_order(x.T @ x).argsort().tolist()

    def error(removed: tuple[int, ...]) -> float:
        return x[:, list(removed)].sum(1).square().sum().item()

    for size in range(1, 9):
        chosen = tuple(order[:size])
        optimum = min(map(error, combinations(range(8), size)))
        best_next = min(error((*order[: size - 1], other)) for other in order[size - 1 :])
        assert error(chosen) == pytest.approx(best_next)
        assert error(chosen) >= optimum - 1e-9
    assert error((order[0],)) == min(error((j,)) for j in range(8))


def test_a_dead_channel_goes_first_in_every_group_of_a_residual_network() -> None:
    net, images = calibrated()
    graph = ChannelGraph.of(net)
    dead = {group.name: 1 + number % 7 for number, group in enumerate(graph.groups)}
    with torch.no_grad():
        for group in graph.groups:
            for consumer in group.consumers:
                net.get_parameter(f"{consumer}.weight")[:, dead[group.name]] = 0
    scores = thinet(graph, images)
    assert {name: int(score.argmin()) for name, score in scores.items()} == dead
    for name, score in scores.items():
        width = graph.widths[name]
        assert sorted(score.tolist()) == [place / width for place in range(width)]


def test_all_consumers_count() -> None:
    graph = ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8))
    needed = ("attention.reduce", "pointwise", "left", "right")
    assert graph.group("stem").consumers == needed
    for channel, consumer in enumerate(needed):
        net = copy.deepcopy(graph.model)
        with torch.no_grad():
            for path in needed:  # each channel is read by one layer at most, the last four by none
                weight = net.get_parameter(f"{path}.weight")
                weight[:, [c for c in range(8) if c != channel or path != consumer]] = 0
        score = thinet(ChannelGraph.of(net), torch.randn(8, 3, 8, 8))["stem"]
        assert int(score.argmax()) == channel


def test_the_order_is_a_function_of_the_seed_alone() -> None:
    graph = ChannelGraph.trace(backbones.build("resnet20"), torch.empty(1, 3, 32, 32))
    images = torch.randn(8, 3, 32, 32)
    first = thinet(graph, images, seed=1)
    torch.rand(3)
    again, other = thinet(graph, images, seed=1), thinet(graph, images, seed=2)
    assert all(torch.equal(score, again[name]) for name, score in first.items())
    assert any(not torch.equal(score, other[name]) for name, score in first.items())


class Copied(nn.Module):
    """Two channels of `first` are equal, and their outgoing weights in all consumers are in the proportion 1 to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=2, stride=2)
        self.pointwise = nn.Conv2d(6, 5, 1)
        self.hidden, self.classifier = nn.Linear(12 * 16, 7), nn.Linear(8 * 4 + 5 * 16 + 7, 2)
        with torch.no_grad():
            for layer in (self.first, self.depthwise):
                twice = layer.weight.shape[0] // 6
                layer.weight[:twice] = layer.weight[twice : 2 * twice]
                layer.bias[:twice] = layer.bias[twice : 2 * twice]
            self.grouped.weight[:, :2] = 2 * self.grouped.weight[:, 2:4]
            self.pointwise.weight[:, 0] = 2 * self.pointwise.weight[:, 1]
            self.hidden.weight[:, :32] = 2 * self.hidden.weight[:, 32:64]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        deep = torch.relu(self.depthwise(x))
        last = torch.cat([self.grouped(deep).flatten(1), self.pointwise(x).flatten(1)], dim=1)
        return self.classifier(torch.cat([last, self.hidden(deep.flatten(1))], dim=1))


def test_least_squares_recovers_the_output_when_the_removed_channel_is_a_copy_of_a_kept_one() -> None:
    torch.manual_seed(0)
    net = Copied().double()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 4, 4))
    group = graph.group("first")
    assert (group.consumers, group.blocks) == (("grouped", "pointwise", "hidden"), 2)
    images = torch.randn(32, 3, 4, 4, dtype=torch.float64)
    keep = [1, 2, 3, 4]  # the copy 0 goes, and, since the blocks lose equally many, 5, which is made dead below
    with torch.no_grad():
        net.grouped.weight[4:, 4:] = 0
        net.pointwise.weight[:, 5] = 0
        net.hidden.weight[:, 160:] = 0
        before, weights = net(images), copy.deepcopy(net.state_dict())
    rescale(graph, {"first": keep}, images)
    factors = net.pointwise.weight / weights["pointwise.weight"]
    assert torch.allclose(factors[:, 1:5], torch.tensor([3.0, 1, 1, 1]).double().reshape(1, 4, 1, 1), atol=1e-6)
    resize(net, {"first": keep})
    assert torch.allclose(net(images), before, atol=1e-6)


def test_factors_are_the_least_squares_solution_over_all_outputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Tanh(), nn.Conv2d(5, 1, 1)).double()
    graph = ChannelGraph.trace(net, torch.empty(1, 2, 1, 1))
    images = torch.randn(2, 2, 1, 1, dtype=torch.float64).repeat(30, 1, 1, 1)  # two outputs, three columns: exact
    images = torch.cat([images, images[:1]])
    hidden = torch.tanh(net[0](images)).flatten(1)
    x = (hidden * net[2].weight.flatten()).detach()
    rescale(graph, {"0": [0, 2, 4]}, images)
    y = hidden[:, [0, 2, 4]] @ net[2].weight.flatten()[[0, 2, 4]]
    assert torch.allclose(y, x.sum(1), atol=1e-6)
    shift = torch.linalg.lstsq(x[:2][:, [0, 2, 4]], x[:2][:, [1, 3]].sum(1), driver="gelsd").solution
    found = (net[2].weight.flatten()[[0, 2, 4]] * hidden[0, [0, 2, 4]]).detach()
    assert torch.allclose(found, x[0, [0, 2, 4]] * (1 + shift), atol=1e-6)  # the solution nearest to 1


def test_rescaling_brings_a_pruned_residual_network_nearer_to_the_full_one() -> None:
    net, images = calibrated()
    graph = ChannelGraph.of(net)
    before = net(images).detach()
    found = coupled_channels(graph)
    plan = channels_to_keep(found, thinet(graph, images), [len(each) * 3 // 4 for each in found])
    plain = copy.deepcopy(net)
    rescale(graph, plan, images)
    errors = []
    for model in (net, plain):
        resize(model, plan)
        with torch.no_grad():
            errors.append((model(images) - before).square().mean().item())
    assert errors[0] < 0.7 * errors[1]


def test_what_is_kept_whole_is_not_touched() -> None:
    net = Odd()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    before = copy.deepcopy(net.state_dict())
    rescale(graph, {"left": list(range(5)), "grouped": [0, 1, 3, 4, 6, 7]}, torch.randn(8, 3, 8, 8))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"hidden.weight"}


def test_units_of_a_linear_layer_can_be_stood_in_for_too() -> None:
    torch.manual_seed(0)
    net = backbones.build("vgg11", seed_width=4).eval()
    ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    with torch.no_grad():
        net.fc1.weight[7], net.fc1.bias[7] = net.fc1.weight[3], net.fc1.bias[3]
        net.fc2.weight[:, 3] = 0.5 * net.fc2.weight[:, 7]
    images = torch.randn(8, 3, 32, 32)
    before, keep = net(images), [unit for unit in range(512) if unit != 7]
    rescale(ChannelGraph.of(net), {"fc1": keep}, images)
    resize(net, {"fc1": keep})
    assert torch.allclose(net(images), before, atol=1e-5)


def test_a_layer_that_runs_twice_is_looked_at_both_times() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = (
                nn.Conv2d(1, 2, 1, bias=False),
                nn.Conv2d(2, 2, 1, bias=False),
                nn.Conv2d(2, 1, 1),
            )
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))  # channel 1 is silent at first
                self.again.weight.copy_(torch.tensor([[0.1, 0.0], [9.0, 0.5]])[:, :, None, None])
                self.last.weight.fill_(0.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.again(self.again(self.first(x))))

    graph = ChannelGraph.trace(Twice(), torch.empty(1, 1, 2, 2))
    assert thinet(graph, torch.ones(4, 1, 2, 2))["first"].tolist() == [0.5, 0]
    with torch.no_grad():
        graph.model.get_parameter("again.weight")[1, 1] = 5  # 5 · 9 in the second run against 9 in the first
    assert thinet(graph, torch.ones(4, 1, 2, 2))["first"].tolist() == [0, 0.5]
