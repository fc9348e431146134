"""Provable filter pruning (Liebenwein, Baykal, Lang, Feldman and Rus, ICLR 2020): sensitivities measured on images."""

from __future__ import annotations

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.methods.pruning.consumers import Consumer, measurable_groups, observe, rows, units, windows
from budgetnet.methods.pruning.coupled import Scores

_ENTRIES = 2**20
_POSITIONS = 512
"""Approximate limits on the largest tensor, which should stay in a processor's cache."""


def pfp(graph: ChannelGraph, images: Tensor) -> Scores:
    """Sensitivity of every channel, in 0..1: the largest fraction that it contributes to any output of its consumers.

    s_j = max ⟨w_j, a_j⟩ / Σ_k ⟨w_k, a_k⟩ over images, output positions, output filters, consumers and signs. Positive
    and negative weights w are each combined with positive and negative activations a of the window, so that every term
    of the sum is at least 0. As in the paper, a channel's contribution is the sum over its kernel; the released code
    takes the largest single entry of the kernel instead.

    images: (N, C, height, width) on the model's device. Only a few windows are in memory at a time. On a CPU this
    takes as long as about 6 (ResNet-20) to 25 (VGG-16) forward passes. The model does not change.
    Raises UsageError as `measurable_groups` does.
    """
    groups = measurable_groups(graph, images)
    found = {group.name: images.new_zeros(group.width) for group in groups}
    read: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        for path in group.consumers:
            read.setdefault(path, {})[group.name] = units(graph, path, group.name).to(images.device)

    def see(path: str, layer: Consumer, inputs: Tensor, _: int) -> None:
        for name, sensitivity in _sensitivities(layer, inputs, read[path]).items():
            found[name] = torch.maximum(found[name], sensitivity.to(found[name]))

    observe(graph, read, images, see)
    return {name: sensitivity.cpu().double() for name, sensitivity in found.items()}


def _sensitivities(layer: Consumer, inputs: Tensor, read: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sensitivities, (width,) by group. read: the positions of the channels among the inputs, (width, units)."""
    view = windows(layer, inputs)
    found = {name: inputs.new_zeros(len(position)) for name, position in read.items()}
    widest = max(len(position) for position in read.values())
    every_filter = torch.arange(layer.weight.shape[0], device=inputs.device)
    for some in torch.split(view, max(1, _ENTRIES // view[0].numel())):
        by_position = some.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(1, 2)
        for patches in torch.split(by_position, _POSITIONS, dim=2):
            signs = [patches] if bool((patches >= 0).all()) else [patches.clamp_min(0), -patches.clamp_max(0)]
            for filters in torch.split(every_filter, max(1, _ENTRIES // (widest * patches.shape[2]))):
                weights = rows(layer, filters)
                for weight in (weights.clamp_min(0), -weights.clamp_max(0)):
                    for sign in signs:
                        _raise(found, read, weight, sign)
    return found


def _raise(found: dict[str, Tensor], read: dict[str, Tensor], weights: Tensor, patches: Tensor) -> None:
    """Raise the sensitivities to those of one combination of signs.

    weights: (filters, units, entries), at least 0. patches: (units, entries, positions), at least 0.
    """
    whole = weights.flatten(1) @ patches.flatten(0, 1)
    scale = whole.clamp_min(torch.finfo(whole.dtype).eps).reciprocal()  # contributions to an output of 0 are 0
    for name, position in read.items():
        own = weights[:, position].flatten(2).transpose(0, 1)  # (width, filters, units · entries)
        contributions = own @ patches[position].flatten(1, 2)
        found[name] = torch.maximum(found[name], contributions.mul_(scale).amax((1, 2)).clamp_max(1))
