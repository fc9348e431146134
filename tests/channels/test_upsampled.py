"""Pixel shuffles and transposed convolutions make channels that can be cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from budgetnet.backbones.denoising import unet
from budgetnet.backbones.super_resolution import edsr, srresnet
from budgetnet.channels import ChannelGraph, resize
from budgetnet.channels.upsampled import upsampled
from budgetnet.methods.hypernet.latents import Latents
from budgetnet.methods.hypernet.shrinking import fed_to_classifier, widened
from budgetnet.methods.train import scaled_widths

NETS = {
    "edsr": (lambda: edsr(3, 4, blocks=1, width=4), (3, 8, 8), ["upsampling.0.conv1", "upsampling.1.conv1"]),
    "srresnet": (lambda: srresnet(3, 3, blocks=1, width=4), (3, 8, 8), ["upsampling.0.conv1"]),
    "unet": (lambda: unet(1, levels=3, width=4), (1, 8, 8), ["grow.0", "grow.1"]),
    "none": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (3, 8, 8), []),
}


@pytest.mark.parametrize("name", NETS)
def test_what_upsamples_is_widened_narrowed_and_has_latents_like_any_filters(name: str) -> None:
    make, shape, expected = NETS[name]
    net = make()
    graph = ChannelGraph.trace(net, torch.empty(1, *shape), frozen=["subtract_mean", "add_mean"] * (name == "edsr"))
    assert upsampled(graph) == {name: (name,) for name in expected}
    before = graph.widths
    assert set(expected) <= Latents.of(graph).groups.keys()
    assert all(scaled_widths(graph, 0.5)[group] == before[group] // 2 for group in expected)
    assert not {"conv1", "down.0.conv1"} & fed_to_classifier(graph)
    resize(net, widened(graph, 2))
    graph = ChannelGraph.of(net)
    assert all(graph.widths[group] == 2 * before[group] for group in expected)
    resize(net, {group: [0, 2, 3] for group in expected})
    graph.verify()
    assert net(torch.zeros(1, *shape)).isfinite().all()
