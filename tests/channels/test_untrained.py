from __future__ import annotations

import math

import pytest
import torch
from nets import Odd

from budgetnet import ChannelGraph, UsageError, backbones
from budgetnet.channels.untrained import max_widths, resize_untrained, seed_widths


def graph_of(name: str) -> ChannelGraph:
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    return ChannelGraph.trace(backbones.build(name), torch.empty(1, *shape))


def test_an_equal_seed_has_one_width_and_keeps_hidden_linear_layers() -> None:
    assert seed_widths(graph_of("lenet5"), 4, "equal") == {"conv1": 4, "conv2": 4, "fc1": 120, "fc2": 84}
    assert seed_widths(graph_of("lenet5"), 4, "equal", grow_linear=True) == dict.fromkeys(
        ("conv1", "conv2", "fc1", "fc2"), 4
    )


def test_a_proportional_seed_keeps_the_proportions_of_the_full_backbone() -> None:
    assert set(seed_widths(graph_of("resnet20"), 4).values()) == {4, 8, 16}
    vgg = seed_widths(graph_of("vgg16"), 4)
    assert (vgg["conv1"], vgg["conv13"], vgg["fc1"]) == (4, 32, 512)


def test_a_seed_is_never_wider_than_the_full_backbone() -> None:
    assert seed_widths(graph_of("lenet5"), 8, "equal")["conv1"] == 6


def test_a_fresh_network_of_other_widths_has_the_variance_of_its_own_fan() -> None:
    net = backbones.build("vgg11")
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    resize_untrained(net, dict.fromkeys(graph.widths, 96), seed=3)
    for name in ("conv2", "conv4", "conv8"):
        weight = net.get_parameter(f"{name}.weight")
        assert weight.shape[:2] == (96, 96)
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.02)


def test_it_works_on_a_network_that_no_backbone_resembles() -> None:
    net = Odd()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    seed = seed_widths(graph, 3, "equal")
    assert seed == {"stem": 3, "attention.reduce": 3, "left": 3, "right": 3, "mix": 3, "grouped": 3, "hidden": 14}
    resize_untrained(net, seed)
    assert graph.widths == seed
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("most", "expected"), [(64, 64), ("64", 64), ("2x", 32), ("0.5x", 8), (None, 2**16)])
def test_the_largest_width_is_a_number_or_a_multiple(most: int | str | None, expected: int) -> None:
    assert max_widths(graph_of("resnet20"), most)["conv1"] == expected


@pytest.mark.parametrize("most", [0, "x", "-1x", "wide", "nanx"])
def test_an_impossible_largest_width_is_refused(most: int | str) -> None:
    with pytest.raises(UsageError, match=r"growth\.max_width"):
        max_widths(graph_of("resnet20"), most)


@pytest.mark.parametrize(("width", "shape"), [(0, "equal"), (-1, "proportional"), (1.5, "equal"), (4, "even")])
def test_an_impossible_seed_is_refused(width: int, shape: str) -> None:
    with pytest.raises(UsageError, match=r"growth\.seed_"):
        seed_widths(graph_of("lenet5"), width, shape)
