"""Which tensors of a network share a width.

A *width group* is one number in the network: the set of tensor axes that must change together. `ChannelGraph.trace`
finds the groups of any traceable module; `resize` (resize.py) is the only code that changes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from budgetnet.errors import UsageError, nearest


class GraphError(UsageError):
    """A model, or a plan for it, that the channel graph cannot follow."""


@dataclass(frozen=True)
class Segment:
    """A run of units along a tensor axis: `factor` units for each channel of `group` (None: `factor` fixed units).

    `factor` is above 1 where flattening multiplied channels by the spatial size, or a depthwise convolution by its
    multiplier. `parts` is above 1 on the input axis of a grouped convolution, which sees 1/parts of the group.
    """

    group: str | None
    factor: int
    parts: int = 1

    def size(self, widths: Mapping[str, int]) -> int:
        return self.factor if self.group is None else self.factor * widths[self.group] // self.parts


Layout = tuple[Segment, ...]
"""What lies along one axis: segments side by side (more than one after a concatenation)."""


def layout_size(layout: Layout, widths: Mapping[str, int]) -> int:
    return sum(segment.size(widths) for segment in layout)


def positions_of(layout: Layout, name: str, widths: Mapping[str, int]) -> torch.Tensor:
    """(width, units per channel) positions along an axis of each channel of a group.

    Flattening and depthwise multipliers give a channel several units, a concatenation of a group with itself too.
    """
    found, offset = [], 0
    for segment in layout:
        size = segment.size(widths)
        if segment.group == name:
            found.append(torch.arange(offset, offset + size).reshape(-1, segment.factor))
        offset += size
    return torch.cat(found, dim=1)


@dataclass(frozen=True)
class WidthGroup:
    """One width of the network.

    name: the module path of the first producer. width: channels now. blocks: the group is that many equal blocks and
    grows at the end of each (above 1 only for grouped convolutions and GroupNorm), so the width is a multiple of it.
    kind: "convolution" or "linear". producers: the modules whose output has this width; consumers: those that read it.
    """

    name: str
    width: int
    kind: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    blocks: int = 1

    def __repr__(self) -> str:
        blocks = f", in {self.blocks} blocks" if self.blocks > 1 else ""
        return (
            f"WidthGroup({self.name!r}, width={self.width}{blocks}, {self.kind}, "
            f"{', '.join(self.producers)} -> {', '.join(self.consumers)})"
        )


@dataclass(frozen=True)
class Term:
    """Multiply-accumulates `coefficient / divisor * |left| * |right|` of one operation, for one image.

    `matrix` marks convolutions and linear layers, whose sum is "macs"; FLOPs are the sum of all terms.
    """

    module: str
    matrix: bool
    coefficient: int
    left: Layout
    right: Layout | None = None
    divisor: int = 1


@dataclass
class ChannelGraph:
    """The width groups of a model, and every tensor axis that belongs to one. Made by `ChannelGraph.trace`.

    The graph stays bound to its model: `widths` and `groups` are read off the live tensors, so they are right after
    every resize. `axes` maps a parameter or buffer name to {dimension: layout}, `attributes` a module's integer
    attributes to layouts, `joins` are the (source, target) layouts of `match_channels` in order of execution. `frozen`
    is what `trace` was told to take as it is.
    """

    model: nn.Module = field(repr=False)
    input_shape: tuple[int, ...]
    axes: dict[str, dict[int, Layout]] = field(default_factory=dict, repr=False)
    attributes: dict[tuple[str, str], Layout] = field(default_factory=dict, repr=False)
    terms: list[Term] = field(default_factory=list, repr=False)
    joins: list[tuple[Layout, Layout]] = field(default_factory=list, repr=False)
    norm_after: dict[str, str] = field(default_factory=dict, repr=False)
    mixing: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    members: dict[str, WidthGroup] = field(default_factory=dict, repr=False)

    @classmethod
    def trace(cls, model: nn.Module, example_input: torch.Tensor, frozen: Collection[str] = ()) -> ChannelGraph:
        """Trace `model` into width groups, without running it on data or touching its state.

        example_input: (batch, channels, height, width) or (batch, features); only its shape is used.
        frozen: module paths, or names of single operations, that are taken as they are: the widths around them never
        change. Raises GraphError for an operation outside the closed table, naming it and how to freeze it.
        """
        from budgetnet.channels.tracing import build_graph

        graph = build_graph(model, tuple(example_input.shape), frozenset(frozen))
        graph.frozen = frozenset(frozen)
        model.__dict__["_channel_graph"] = graph  # not a submodule: the model's state and its copies stay plain
        return graph

    @staticmethod
    def of(model: nn.Module) -> ChannelGraph:
        """The graph that `trace` made for this model, or for the model it is a deep copy of."""
        graph: ChannelGraph | None = model.__dict__.get("_channel_graph")
        if graph is None:
            raise GraphError(
                f"{type(model).__name__} has no channel graph yet; call ChannelGraph.trace(model, example_input) first"
            )
        return graph

    @property
    def widths(self) -> dict[str, int]:
        """Channels of every group now, in order of execution."""
        return {name: producer_width(self.model, name) for name in self.members}

    @property
    def groups(self) -> tuple[WidthGroup, ...]:
        """The width groups in order of execution, with their widths now."""
        return tuple(replace(group, width=producer_width(self.model, name)) for name, group in self.members.items())

    def group(self, name: str) -> WidthGroup:
        """The group of this name. Raises GraphError with the nearest names."""
        if name not in self.members:
            raise GraphError(f"no width group is called {name!r}{nearest(name, self.members)}")
        return replace(self.members[name], width=producer_width(self.model, name))

    def verify(self) -> dict[str, str]:
        """Prove the graph on a float64 copy of the model: see verify.py. Raises GraphError where it is wrong."""
        from budgetnet.channels.verify import verify

        return verify(self)

    def __str__(self) -> str:
        return "\n".join(repr(group) for group in self.groups)


def producer_width(model: nn.Module, name: str) -> int:
    """Filters of the convolution, or units of the linear layer, at this module path."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]
