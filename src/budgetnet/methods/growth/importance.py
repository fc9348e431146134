"""What layers lack as the loss has it: the first-order importance of their channels (growth.readout=importance)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from budgetnet.channels import ChannelGraph
from budgetnet.channels.shadow import copy_of
from budgetnet.methods.growth.gradients import Loss

IMAGES = 1024
"""Number of training images from which importances are computed."""
BATCH = 128
"""Images of a batch, over which a gradient is the mean."""


def channel_importance(
    net: nn.Module,
    groups: Collection[str],
    images: tuple[Tensor, Tensor],
    loss: Loss = functional.cross_entropy,
    batch: int = BATCH,
) -> dict[str, Tensor]:
    """The first-order importance of every channel of each group, float64 (width,).

    It is the mean over batches of (γ ∂L/∂γ + β ∂L/∂β)² at the norm behind a filter: the square of what the loss L would
    change by without the channel, to first order (Molchanov et al., "Importance Estimation for Neural Network
    Pruning", CVPR 2019). A layer that no norm with a scale follows has Σ w ∂L/∂w + b ∂L/∂b of a filter and its bias in
    place of it. If several layers produce a channel, their terms are summed before they are squared.

    images: (inputs, targets), divided into batches of `batch` images, in eval mode. loss: maps (outputs, targets) to a
    scalar. The traced `net` does not change.
    """
    trial = copy_of(net).eval().requires_grad_()
    graph = ChannelGraph.of(trial)
    tensors = {name: [t for path in graph.group(name).producers for t in _scaling(graph, path)] for name in groups}
    batches = list(zip(*(torch.split(each, batch) for each in images), strict=True))
    totals: dict[str, Tensor] = {}
    for inputs, targets in batches:
        value = loss(trial(inputs), targets)
        slopes = iter(torch.autograd.grad(value, [t for own in tensors.values() for t in own], materialize_grads=True))
        for name, own in tensors.items():
            changes = [(t.detach() * next(slopes)).double().reshape(len(t), -1).sum(1) for t in own]
            totals[name] = totals.get(name, 0) + torch.stack(changes).sum(0).square()
    return {name: total / len(batches) for name, total in totals.items()}


def _scaling(graph: ChannelGraph, producer: str) -> list[Tensor]:
    """The tensors with which the output of a layer scales: scale and shift of the norm behind it, or else its own."""
    norm = graph.model.get_submodule(graph.norm_after.get(producer, producer))
    layer = norm if norm._parameters.get("weight") is not None else graph.model.get_submodule(producer)
    return [tensor for leaf in ("weight", "bias") if (tensor := layer._parameters.get(leaf)) is not None]


def saturation_of_gains(gains: Mapping[str, float], widths: Mapping[str, int]) -> dict[str, float]:
    """The saturation, 0..1, of every group with which the policy cost_aware expects these gains of one more channel.

    What a layer of w channels lacks is s/w there, so that one more is worth s/w²: s is the gain times w², relative to
    the largest of all groups. gains: what the loss is expected to fall by, in any unit, at least 0.
    """
    lacking = {name: gain * widths[name] ** 2 for name, gain in gains.items()}
    most = max(lacking.values(), default=0.0)
    return {name: value / most if most > 0 else 0.0 for name, value in lacking.items()}
