"""How new channels start: he, zero_out, net2wider, gradmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from budgetnet.channels.gradmax import gradmax
from budgetnet.channels.width_change import WidthChange, over_all_parts

INITIALISATIONS = ("he", "zero_out", "net2wider", "gradmax")


def initialise(
    change: WidthChange, init: str, batch: tuple[Tensor, Tensor] | None, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Fill the entries of the resized tensors that have no old value (resize.py names the ways)."""
    with torch.no_grad():
        if init == "net2wider":
            _share_columns(change)
            return
        _draw_he(change)
        if init == "zero_out":
            _silence(change)
    if init == "gradmax":
        assert batch is not None
        gradmax(change, batch, loss)


def _normal(change: WidthChange) -> Callable[[str, Tensor, float], Tensor]:
    def draw(name: str, tensor: Tensor, deviation: float) -> Tensor:
        return torch.randn(tensor.shape, generator=change.generator(name), dtype=tensor.dtype) * deviation

    return draw


def _draw_he(change: WidthChange, draw: Callable[[str, Tensor, float], Tensor] | None = None) -> None:
    """Weights: normal, variance 2 / fan-in of the grown layer (He 2015). Norms: scale 1, shift 0, statistics 0/1.

    A tensor outside torch's layers whose entries were all equal when the network was traced keeps that value; a mask of
    zeros and ones lets what is new through; of any other the new entries are the mean of the old ones.
    """
    graph, draw = change.graph, draw or _normal(change)
    for name in change.tensors():
        path, _, leaf = name.rpartition(".")
        module, tensor = graph.model.get_submodule(path), _tensor(change, name)
        new = change.is_new(name, tensor)
        if draws(module, leaf):
            fan = tensor.numel() // tensor.shape[1 if graph.reads.get(name, 1) == 0 else 0]
            drawn = draw(name, tensor, math.sqrt(2 / fan))
            tensor.copy_(torch.where(new, drawn.to(tensor.device), tensor))
        elif name in graph.fills:
            tensor.masked_fill_(new, graph.fills[name])
        elif leaf.endswith("_mask") or not (
            type(module).__module__.startswith("torch.nn.modules") or isinstance(module, _NORMS)
        ):
            old = tensor[~new].double()
            mask = len(old) > 0 and bool(((old == 0) | (old == 1)).all())
            tensor.masked_fill_(new, 1 if mask else old.mean().item() if len(old) else 0)
        elif leaf in ("weight", "running_var"):
            tensor.masked_fill_(new, 1)


_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def draws(module: nn.Module, leaf: str) -> bool:
    """Whether a tensor of a module holds filters: those of a layer, or of a network's own that look like them."""
    tensor = module._parameters.get(leaf)
    if tensor is None or tensor.dim() < 2:
        return False
    return leaf.startswith("weight") if isinstance(module, _LAYERS) else tensor.dim() in (2, 4) and len(tensor) > 1


def fill_silently(change: WidthChange) -> None:
    """zero_out for a proof, whose filters need no normal numbers."""
    with torch.no_grad():
        _draw_he(change, lambda name, tensor, deviation: torch.full_like(tensor, deviation))
        _silence(change)


def _silence(change: WidthChange) -> None:
    """Keep the function: nothing reads the new channels yet (their outgoing columns are zero).

    A channel that a parameter-free shortcut carries on to channels that are already read cannot be hidden so: there
    the new channels themselves start at zero (the scale of the norm behind the producer, or its filters).
    """
    leaking, _ = leaks(change)
    for name, layout in change.graph.reading.items():
        silent = {s.group for s in layout if s.group in change.sources} - leaking
        if silent:
            weight, is_new = _tensor(change, name), change.is_new_along(over_all_parts(layout), silent)
            weight.masked_fill_(by_column(change, name, is_new).to(weight.device), 0)
    for group in leaking & change.sources.keys():
        new = change.sources[group] < 0
        for producer in change.graph.group(group).producers:
            module = change.graph.model.get_submodule(change.graph.norm_after.get(producer, producer))
            scale = module._parameters.get("weight")
            if scale is None:  # a norm without a scale: silence the filters in front of it
                scale = change.graph.model.get_parameter(f"{producer}.weight")
            scale.detach()[new.to(scale.device)] = 0


def by_column(change: WidthChange, name: str, values: Tensor) -> Tensor:
    """Values of a layer's inputs, (inputs,), as its weight can be multiplied with; a grouped one reads its part."""
    weight, dim = _tensor(change, name), change.graph.reads[name]
    parts = max(segment.parts for segment in change.graph.axes[name][dim])
    if parts == 1:
        return values.reshape([-1 if d == dim else 1 for d in range(weight.dim())])
    rows = values.reshape(parts, -1).repeat_interleave(weight.shape[0] // parts, 0)
    return rows.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def _tensor(change: WidthChange, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor = getattr(change.graph.model.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor)
    return tensor.detach()


def leaks(change: WidthChange) -> tuple[set[str], set[str]]:
    """Groups whose new channels a `match_channels` shortcut carries on to channels that are already read.

    Returns (leaking, reopened): a reopened group is wider now than a shortcut that it used to crop, and what flows in
    cannot be hidden because the group leaks.
    """
    leaking: set[str] = set()
    reopened: set[str] = set()
    for source_layout, target_layout in reversed(change.graph.joins):
        source, target = change.origin(source_layout), change.origin(target_layout)
        seen = min(len(source), len(target))
        read = target[:seen] >= 0
        read |= change.is_new_along(target_layout, leaking & change.sources.keys())[:seen]
        if bool(((source[:seen] < 0) & read).any()):
            leaking |= {s.group for s in source_layout if s.group in change.sources and s.group is not None}
        old_target = int((target >= 0).sum())
        flows_in = (source[:seen] >= old_target) & read
        if bool(flows_in.any()):
            reopened |= {s.group for s in target_layout if s.group in change.sources and s.group is not None}
    return leaking, reopened


def _share_columns(change: WidthChange) -> None:
    """Net2WiderNet (Chen 2016): copies and original divide the original's outgoing weights, in unequal parts."""
    for name, layout in change.graph.reading.items():
        if any(s.group in change.shares for s in layout):
            weight = _tensor(change, name)
            weight.mul_(by_column(change, name, change.outgoing_shares(layout).to(weight)))
