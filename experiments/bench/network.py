"""Following a network, and what it costs."""

from __future__ import annotations

import warnings

import torch

from budgetnet import backbones
from budgetnet.channels import ChannelGraph
from budgetnet.costs import CostModel

from .timing import ratios, seconds


def tracing(repeats: int) -> list[float]:
    """Seconds of tracing a ResNet-50 at 3x224x224."""
    nets = [backbones.build("resnet50", num_classes=1000) for _ in range(repeats)]
    image = torch.empty(1, 3, 224, 224)
    return [seconds(lambda net=net: ChannelGraph.trace(net, image)) for net in nets]  # type: ignore[misc]


def pricing(pairs: int) -> list[float]:
    """How many times as fast as fvcore counts a ResNet-20, CostModel prices its widths.

    Raises RuntimeError if the two numbers differ.
    """
    from fvcore.nn import FlopCountAnalysis

    net = backbones.build("resnet20", num_classes=10).eval()
    image = torch.empty(1, 3, 32, 32)
    graph = ChannelGraph.trace(net, image)
    cost, widths, times = CostModel(graph), graph.widths, 1000

    def counted() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis = FlopCountAnalysis(net, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return int(analysis.total())

    def priced() -> None:
        for _ in range(times):
            cost.flops(widths)

    if counted() != cost.flops(widths):
        raise RuntimeError(f"fvcore counts {counted()} FLOPs, CostModel {cost.flops(widths)}")
    return [times * ratio for ratio in ratios(counted, priced, pairs)]
