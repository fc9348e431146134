"""Provable filter pruning (Liebenwein, Baykal, Lang, Feldman and Rus, ICLR 2020): sensitivities measured on images."""

from __future__ import annotations

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.methods.pruning.consumers import Consumer, measurable_groups, observe, rows, units, windows
from budgetnet.methods.pruning.coupled import Scores

_ENTRIES = 2**20
_POSITIONS = 512
"""Of the largest tensor, about: small enough to stay in a processor's cache."""


def pfp(graph: ChannelGraph, images: Tensor) -> Scores:
    """Sensitivity of every channel, in 0..1: its largest part in any output of the layers that read it.

    s_j = max ⟨w_j, a_j⟩ / Σ_k ⟨w_k, a_k⟩ over images, output positions, output filters and sign parts: the positive
    and the negative weights w, each with the positive and the negative activations a of the position's patch, so that
    every term of the sum is at least 0. Of several consumers the maximum. The released code takes the single entry
    of the kernel with the largest part instead of the channel's sum over the kernel, which is the paper's.

    images: (N, C, height, width) on the model's device, a few of whose windows are in memory at a time; on a CPU this
    takes some 6 (ResNet-20) to 25 (VGG-16) forward passes. The model stays as it is.
    Raises UsageError without images, and for a group that no layer reads.
    """
    groups = measurable_groups(graph, images)
    found = {group.name: images.new_zeros(group.width) for group in groups}
    read: dict[str, dict[str, Tensor]] = {}
    for group in groups:
        for path in group.consumers:
            read.setdefault(path, {})[group.name] = units(graph, path, group.name).to(images.device)

    def see(path: str, layer: Consumer, inputs: Tensor) -> None:
        for name, sensitivity in _sensitivities(layer, inputs, read[path]).items():
            found[name] = torch.maximum(found[name], sensitivity.to(found[name]))

    observe(graph, read, images, see)
    return {name: sensitivity.cpu().double() for name, sensitivity in found.items()}


def _sensitivities(layer: Consumer, inputs: Tensor, read: dict[str, Tensor]) -> dict[str, Tensor]:
    """By group, (width,); read: (width, units per channel) positions of the group's channels among the inputs."""
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
    """Take into account one sign part: weights (filters, units, entries), patches (units, entries, positions)."""
    whole = weights.flatten(1) @ patches.flatten(0, 1)
    scale = whole.clamp_min(torch.finfo(whole.dtype).eps).reciprocal()  # of outputs that are 0 no channel has a part
    for name, position in read.items():
        own = weights[:, position].flatten(2).transpose(0, 1)  # (width, filters, units · entries)
        parts = own @ patches[position].flatten(1, 2)
        found[name] = torch.maximum(found[name], parts.mul_(scale).amax((1, 2)).clamp_max(1))
