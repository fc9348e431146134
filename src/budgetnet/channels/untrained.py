"""Freshly initialised networks of chosen widths, made from any traced model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from budgetnet.channels.graph import Graph, layout_size
from budgetnet.channels.initialise import draws
from budgetnet.channels.resize import resize
from budgetnet.errors import UsageError

SHAPES = ("proportional", "equal")
UNBOUNDED = 2**16


def resize_untrained(model: nn.Module, widths: Mapping[str, int], seed: int = 0) -> Graph:
    """Turn an untrained, traced model into an untrained one of these widths, in place.

    Weights that stay are scaled by the root of old over new fan-in, so that every layer has the variance it would have
    been initialised with at the new width.
    """
    graph = Graph.of(model)
    now = graph.widths
    changes = {name: width for name, width in widths.items() if graph.group(name) and now[name] != width}
    if not changes:
        return graph
    new = {**now, **changes}
    with torch.no_grad():
        for name, layout in graph.reading.items():
            path, _, leaf = name.rpartition(".")
            module = graph.model.get_submodule(path)
            if draws(module, leaf):
                ratio = layout_size(layout, now) / layout_size(layout, new)
                module._parameters[leaf].mul_(math.sqrt(ratio))  # type: ignore[union-attr]
    resize(model, changes, init="he", seed=seed)
    return graph


def seed_widths(graph: Graph, width: int, shape: str = "proportional", grow_linear: bool = False) -> dict[str, int]:
    """Widths of the seed network of a traced full backbone.

    shape "equal": every growing layer has `width` channels (the paper); "proportional": the narrowest has `width`, the
    others keep the full backbone's proportions. No layer gets wider than the full one; layers that do not grow (hidden
    linear layers, unless `grow_linear`) keep their full width. Raises UsageError for an impossible width or shape.
    """
    if shape not in SHAPES:
        raise UsageError(f"growth.seed_shape={shape!r}: expected one of {', '.join(SHAPES)}")
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise UsageError(f"growth.seed_width={width!r}: expected a number of channels, 1 or more")
    growing = growing_groups(graph, grow_linear)
    full = graph.widths
    narrowest = min((full[name] for name in growing), default=1)
    seed = dict(full)
    for name in growing:
        blocks = graph.group(name).blocks
        wanted = width if shape == "equal" else full[name] * width / narrowest
        seed[name] = min(full[name], max(1, round(wanted / blocks)) * blocks)
    return seed


def growing_groups(graph: Graph, grow_linear: bool = False) -> list[str]:
    """Names of the groups that growth may widen: convolution filters, and hidden linear layers on request."""
    kinds = ("convolution", "linear") if grow_linear else ("convolution",)
    return [group.name for group in graph.groups if group.kind in kinds]


def max_widths(graph: Graph, most: int | str | None, grow_linear: bool = False) -> dict[str, int]:
    """How wide each group of a traced full backbone may become.

    most: channels (64), a multiple of the full width ("8x"), or None for no bound. Groups that do not grow keep their
    full width. Raises UsageError for anything else.
    """
    growing, full = set(growing_groups(graph, grow_linear)), graph.widths
    try:
        if most is None:
            bound = dict.fromkeys(full, UNBOUNDED)
        elif isinstance(most, str) and most.endswith("x"):
            bound = {name: int(width * float(most[:-1])) for name, width in full.items()}
        else:
            bound = dict.fromkeys(full, int(str(most)))
    except (ValueError, OverflowError):
        bound = {}
    if not all(1 <= bound.get(name, 0) <= UNBOUNDED for name in full):
        raise UsageError(
            f"growth.max_width={most}: expected a number of channels up to {UNBOUNDED}, a multiple such as 8x, or null"
        )
    return {name: bound[name] if name in growing else width for name, width in full.items()}
