"""A sample of networks of others (experiments/zoo has all): each traces, is priced exactly and keeps its function."""

from __future__ import annotations

import copy

import pytest
import torch
from covering import covered
from torch.utils.flop_counter import FlopCounterMode

from budgetnet import ChannelGraph, CostModel
from experiments.zoo.networks import Network

SAMPLE = [
    ("preresnet", "preresnet20_cifar10", 32, 1.0),
    ("densenet", "densenet40_k12_bc_cifar10", 32, 1.0),
    ("seresnet", "seresnet20_cifar10", 32, 1.0),
    ("shakeshake", "shakeshakeresnet20_2x16d_cifar10", 32, 1.0),
    ("diaresnet", "diaresnet20_cifar10", 32, 0.9),
    ("nin", "nin_cifar10", 32, 0.99),
    ("squeezenext", "sqnxt23_w1", 64, 1.0),
    ("mobilenet v2", "mobilenetv2_wd4", 64, 1.0),
    ("mobilenet v3", "mobilenetv3_small_wd2", 64, 1.0),
    ("shufflenet v1", "shufflenet_g3_wd4", 64, 0.5),
    ("shufflenet v2", "shufflenetv2_wd2", 64, 0.5),
    ("igcv3", "igcv3_wd4", 64, 0.5),
]


QUICK = ("preresnet", "seresnet", "mobilenet v3", "shufflenet v2")
"""Norms before convolutions, attention, both with depthwise convolutions, and channels that are split and shuffled."""


@pytest.mark.parametrize(("family", "model", "pixels", "free"), covered(SAMPLE, QUICK))
def test_a_network_of_a_zoo_is_followed_priced_and_proven(family: str, model: str, pixels: int, free: float) -> None:
    network = Network(family, "cv", model, pixels)
    net = network.build()
    graph = ChannelGraph.trace(net, torch.empty(network.shape))
    cost = CostModel(graph)
    assert cost.params() == sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(net).to("meta").eval()(torch.empty(network.shape, device="meta"))
    assert cost.macs() == counter.get_total_flops() // 2
    assert graph.free_share >= free
    assert set(graph.verify().values()) == {"function kept"}
