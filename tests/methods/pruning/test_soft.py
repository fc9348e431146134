"""Soft pruning: which zeroed filters can come back, and why they are zeroed after epochs only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from budgetnet import ChannelGraph, backbones
from budgetnet.methods.pruning import channels_to_keep, coupled_channels, criteria


def gradients_of_zeroed(net: nn.Module, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Zero all filters but these, and take one backward pass: the largest gradient of a zeroed filter, by layer."""
    gone = {name: [i for i in range(graph.widths[name]) if i not in set(channels)] for name, channels in keep.items()}
    layers = {path: gone[name] for name in keep for path in graph.group(name).producers if gone[name]}
    with torch.no_grad():
        for path, channels in layers.items():
            net.get_parameter(f"{path}.weight")[channels] = 0
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(net(images), torch.arange(16) % 10).backward()
    found = {}
    for path, channels in layers.items():
        gradient = net.get_parameter(f"{path}.weight").grad
        assert gradient is not None
        found[path] = float(gradient[channels].abs().max())
    return found


def test_a_filter_zeroed_before_training_never_comes_back_and_one_zeroed_after_it_does() -> None:
    """The shift behind a fresh filter is 0, where a ReLU passes no gradient on: the authors' code begins with that."""
    torch.manual_seed(0)
    net = backbones.build("resnet20")
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    scores, own = criteria.l2(graph), coupled_channels(graph)
    keep = channels_to_keep(own, scores, [max(1, len(each) * 7 // 10) for each in own])
    assert set(gradients_of_zeroed(net, graph, keep).values()) == {0.0}

    net.zero_grad()
    with torch.no_grad():
        for norm in set(graph.norm_after.values()):
            net.get_parameter(f"{norm}.bias").fill_(0.1)  # as training moves it
    assert min(gradients_of_zeroed(net, graph, keep).values()) > 0
