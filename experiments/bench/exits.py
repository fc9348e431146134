"""Leaving a network early, and what its FLOPs promise."""

from __future__ import annotations

import torch

from budgetnet.backbones import msdnet
from budgetnet.costs.exits import ExitCosts
from budgetnet.methods.exits.allocation import confidences
from budgetnet.methods.exits.budgeted import early_exit, evaluate, thresholds

from .timing import ratios

BATCH, Q = 256, 0.75


def of_what_flops_promise(pairs: int) -> list[float]:
    """The speed-up of leaving early over the whole network, divided by that of the FLOPs.

    MSDNet with five exits for CIFAR-100, one batch of random images; a part ∝ q^k of them leaves at exit k.
    """
    torch.manual_seed(0)
    network = msdnet.build(100, 3, (32, 32))
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        network(images)  # running statistics
        confidence = confidences(network.eval()(images))
        limits = thresholds(confidence, Q, network.exits)
        flops = torch.tensor(ExitCosts(network, (3, 32, 32)).lazy["flops"], dtype=torch.float64)
        _, mean = evaluate(confidence, torch.ones_like(confidence, dtype=torch.bool), limits, flops)
        found = ratios(lambda: network(images), lambda: early_exit(network, images, limits), pairs)
    return [ratio / float(flops[-1] / mean) for ratio in found]
