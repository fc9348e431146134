"""How new channels start: he, zero_out, net2wider, gradmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from budgetnet.channels.gradmax import gradmax
from budgetnet.channels.surgery import Surgery

INITIALISATIONS = ("he", "zero_out", "net2wider", "gradmax")


def initialise(
    surgery: Surgery, init: str, batch: tuple[Tensor, Tensor] | None, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Fill the entries of the resized tensors that have no old value (resize.py names the ways)."""
    with torch.no_grad():
        if init == "net2wider":
            _share_columns(surgery)
            return
        _draw_he(surgery)
        if init == "zero_out":
            _silence(surgery)
    if init == "gradmax":
        assert batch is not None
        gradmax(surgery, batch, loss)


def _draw_he(surgery: Surgery) -> None:
    """Weights: normal, variance 2 / fan-in of the grown layer (He 2015). Norms: scale 1, shift 0, statistics 0/1."""
    for name in surgery.tensors():
        path, _, leaf = name.rpartition(".")
        module = surgery.graph.model.get_submodule(path)
        tensor = getattr(module, leaf).detach()
        new = surgery.is_new(name, tensor)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and leaf == "weight":
            deviation = math.sqrt(2 / math.prod(tensor.shape[1:]))
            draw = torch.randn(tensor.shape, generator=surgery.generator(name), dtype=tensor.dtype) * deviation
            tensor.copy_(torch.where(new, draw.to(tensor.device), tensor))
        elif leaf in ("weight", "running_var"):
            tensor.masked_fill_(new, 1)


def _silence(surgery: Surgery) -> None:
    """Keep the function: nothing reads the new channels yet (their outgoing columns are zero).

    A channel that a parameter-free shortcut carries on to channels that are already read cannot be hidden so: there
    the new channels themselves start at zero (the scale of the norm behind the producer, or its filters).
    """
    leaking, _ = leaks(surgery)
    for name, dims in surgery.graph.axes.items():
        silent = [s.group for s in dims.get(1, ()) if s.group in surgery.sources and s.group not in leaking]
        if silent:
            weight = surgery.graph.model.get_parameter(name).detach()
            fresh = weight.new_zeros(weight.shape, dtype=torch.bool)
            parts = dims[1][0].parts
            for group in silent:
                column = surgery.labels(dims[1], group) >= 0 if parts == 1 else _grouped_columns(surgery, name, group)
                fresh |= column.to(weight.device).reshape(1, -1, *[1] * (weight.dim() - 2))
            weight.masked_fill_(fresh, 0)
    for group in leaking & surgery.sources.keys():
        new = surgery.sources[group] < 0
        for producer in surgery.graph.group(group).producers:
            module = surgery.graph.model.get_submodule(surgery.graph.norm_after.get(producer, producer))
            scale = module._parameters.get("weight")
            if scale is None:  # a norm without a scale: silence the filters in front of it
                scale = surgery.graph.model.get_parameter(f"{producer}.weight")
            scale.detach()[new.to(scale.device)] = 0


def _grouped_columns(surgery: Surgery, name: str, group: str) -> Tensor:
    """Columns of a grouped convolution that belong to new channels; the same in every part, since blocks grow alike."""
    segment = surgery.graph.axes[name][1][0]
    new = (surgery.sources[group] < 0).repeat_interleave(segment.factor)
    return new.chunk(segment.parts)[0]


def leaks(surgery: Surgery) -> tuple[set[str], set[str]]:
    """Groups whose new channels a `match_channels` shortcut carries on to channels that are already read.

    Returns (leaking, reopened): a reopened group is wider now than a shortcut that it used to crop, and what flows in
    cannot be hidden because the group leaks.
    """
    leaking: set[str] = set()
    reopened: set[str] = set()
    for source_layout, target_layout in reversed(surgery.graph.joins):
        source, target = surgery.origin(source_layout), surgery.origin(target_layout)
        seen = min(len(source), len(target))
        read = target[:seen] >= 0
        for group in leaking & {s.group for s in target_layout if s.group in surgery.sources}:
            read |= surgery.labels(target_layout, str(group))[:seen] >= 0
        if bool(((source[:seen] < 0) & read).any()):
            leaking |= {s.group for s in source_layout if s.group in surgery.sources and s.group is not None}
        old_target = int((target >= 0).sum())
        flows_in = (source[:seen] >= old_target) & read
        if bool(flows_in.any()):
            reopened |= {s.group for s in target_layout if s.group in surgery.sources and s.group is not None}
    return leaking, reopened


def _share_columns(surgery: Surgery) -> None:
    """Net2WiderNet (Chen 2016): copies and original divide the original's outgoing weights, in unequal parts."""
    for name, dims in surgery.graph.axes.items():
        if any(s.group in surgery.shares for s in dims.get(1, ())):
            weight = surgery.graph.model.get_parameter(name).detach()
            parts = dims[1][0].parts
            shares = surgery.outgoing_shares(dims[1]).to(weight).chunk(parts)
            for rows, share in zip(weight.chunk(parts), shares, strict=True):
                rows.mul_(share.reshape(1, -1, *[1] * (weight.dim() - 2)))
