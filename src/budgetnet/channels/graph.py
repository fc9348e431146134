"""Which tensors of a network share a width.

A *width group* is one number in the network: the set of tensor axes that must change together. `ChannelGraph.trace`
finds the groups of any traceable module; `resize` (resize.py) is the only code that changes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

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
    chosen: of a group in `of` blocks, those that lie here, channel by channel in turn (a shuffle has several, a split
    has one); () means the whole group in its order.
    """

    group: str | None
    factor: int
    parts: int = 1
    chosen: tuple[int, ...] = ()
    of: int = 1

    def size(self, widths: Mapping[str, int]) -> int:
        if self.group is None:
            return self.factor // self.parts
        return self.factor * len(self.chosen or (0,)) * widths[self.group] // (self.of * self.parts)

    def channels(self, widths: Mapping[str, int]) -> torch.Tensor:
        """(units,) the channel of the group that each unit belongs to, over all parts."""
        assert self.group is not None
        each = widths[self.group] // self.of
        block = torch.tensor(self.chosen or (0,))
        return (torch.arange(each)[:, None] + block * each).flatten().repeat_interleave(self.factor)


Layout = tuple[Segment, ...]
"""What lies along one axis: segments side by side (more than one after a concatenation)."""


def layout_size(layout: Layout, widths: Mapping[str, int]) -> int:
    parts = max(segment.parts for segment in layout)
    return sum(Segment(s.group, s.factor, 1, s.chosen, s.of).size(widths) for s in layout) // parts


def positions_of(layout: Layout, name: str, widths: Mapping[str, int]) -> torch.Tensor:
    """(width, units per channel) positions along an axis of each channel of a group.

    Flattening and depthwise multipliers give a channel several units, a concatenation of a group with itself too. The
    axis holds every channel equally often: so does every axis of a group of convolutions or linear layers.
    """
    places, channels, offset = [], [], 0
    for segment in layout:
        size = segment.size(widths)
        if segment.group == name:
            places.append(torch.arange(offset, offset + size))
            channels.append(Segment(name, segment.factor, 1, segment.chosen, segment.of).channels(widths)[:size])
        offset += size
    ordered = torch.cat(places)[torch.cat(channels).argsort(stable=True)]
    whole = len(ordered) % widths[name] == 0  # else one part of a grouped convolution's inputs
    return ordered.reshape(widths[name], -1) if whole else ordered[:, None]


@dataclass(frozen=True)
class WidthGroup:
    """One width of the network.

    name: the module path of the first producer. width: channels now. blocks: the group is that many equal blocks and
    grows at the end of each (above 1 for grouped convolutions, GroupNorm, shuffles and splits), so the width is a
    multiple of it. kind: "convolution" or "linear"; "other" where no module's weight has just this width as its filters
    (channels that are split, summed in parts or made by a parameter of the user's own), or where an axis holds only a
    part of it. producers: the modules whose filters are this width; consumers: the layers that read it.
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


class Anchor(NamedTuple):
    """An axis that tells a width: its size less that of `rest` is units / denominator for each channel."""

    tensor: str
    dim: int
    rest: Layout
    units: int
    denominator: int


@dataclass
class Graph:
    """The width groups of a model, and every tensor axis that belongs to one. Made by `ChannelGraph.trace`.

    The graph stays bound to its model: `widths` and `groups` are read off the live tensors, so they are right after
    every resize. `axes` maps a parameter or buffer name to {dimension: layout}, `attributes` a module's integer
    attributes to layouts, `joins` are the (source, target) layouts of `match_channels` in order of execution, and
    `residual` is whether features are added to others of their shape. `reads` names the dimension along which each
    weight reads; `fills` is what new entries of a tensor outside torch's layers become. `frozen` is what
    `trace` was told to take as it is, `fixed` says what else stays, and why.
    """

    model: nn.Module = field(repr=False)
    input_shape: tuple[int, ...]
    axes: dict[str, dict[int, Layout]] = field(default_factory=dict, repr=False)
    attributes: dict[tuple[str, str], Layout] = field(default_factory=dict, repr=False)
    terms: list[Term] = field(default_factory=list, repr=False)
    joins: list[tuple[Layout, Layout]] = field(default_factory=list, repr=False)
    residual: bool = False
    reads: dict[str, int] = field(default_factory=dict, repr=False)
    fills: dict[str, float] = field(default_factory=dict, repr=False)
    fixed: tuple[str, ...] = field(default=(), repr=False)
    norm_after: dict[str, str] = field(default_factory=dict, repr=False)
    mixing: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    members: dict[str, WidthGroup] = field(default_factory=dict, repr=False)
    _found_anchors: dict[str, Anchor] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(model: nn.Module) -> Graph:
        """The graph that `trace` made for this model, or for the model it is a deep copy of.

        Raises GraphError if there is none.
        """
        graph: Graph | None = model.__dict__.get("_channel_graph")
        if graph is None:
            raise GraphError(
                f"{type(model).__name__} has no channel graph yet; call ChannelGraph.trace(model, example_input) first"
            )
        return graph

    @property
    def widths(self) -> dict[str, int]:
        """Channels of every group now, in order of execution."""
        return {name: self._width(name) for name in self.members}

    def _width(self, name: str) -> int:
        anchor = self._anchors()[name]
        path, _, leaf = anchor.tensor.rpartition(".")
        size: int = getattr(self.model.get_submodule(path), leaf).shape[anchor.dim]
        if anchor.rest:
            size -= layout_size(
                anchor.rest, {s.group: self._width(s.group) for s in anchor.rest if s.group is not None}
            )
        return size * anchor.denominator // anchor.units

    @property
    def groups(self) -> tuple[WidthGroup, ...]:
        """The width groups in order of execution, with their widths now."""
        return tuple(replace(group, width=self._width(name)) for name, group in self.members.items())

    @property
    def reading(self) -> dict[str, Layout]:
        """What lies along the axis of each tensor that reads channels: the inputs of its layer."""
        return {name: self.axes[name][dim] for name, dim in self.reads.items() if dim in self.axes.get(name, {})}

    def group(self, name: str) -> WidthGroup:
        """The group of this name. Raises GraphError with the nearest names."""
        if name not in self.members:
            raise GraphError(f"no width group is called {name!r}{nearest(name, self.members)}")
        return replace(self.members[name], width=self._width(name))

    @property
    def free_share(self) -> float:
        """What part of the FLOPs, 0 to 1, depends on a width that can change."""
        return self.share_of(self.members)

    def share_of(self, names: Collection[str]) -> float:
        """What part of the FLOPs, 0 to 1, depends on the width of one of these groups."""
        widths = self.widths
        free = total = 0
        for term in self.terms:
            sides = [side for side in (term.left, term.right) if side is not None]
            cost = term.coefficient * math.prod(layout_size(side, widths) for side in sides) // term.divisor
            total += cost
            free += cost if any(segment.group in names for side in sides for segment in side) else 0
        return free / total if total else 1.0

    @property
    def warning(self) -> str | None:
        """A line for the start of a run where more than half of the FLOPs are of layers that cannot change."""
        if all(group.kind == "other" for group in self.groups):
            return "no layer's filters alone make up a width that can change: nothing can be grown or pruned"
        if self.free_share >= 0.5:
            return None
        why = f": {'; '.join(self.fixed[:3])}" if self.fixed else ""
        return f"{1 - self.free_share:.0%} of the FLOPs are of layers whose widths stay as they are{why}"

    def _anchors(self) -> dict[str, Anchor]:
        """For each group an axis that tells its width, in an order in which each needs only those before it."""
        if not self._found_anchors:
            axes = [(tensor, dim, layout) for tensor, dims in self.axes.items() for dim, layout in dims.items()]
            usable = [axis for axis in axes if axis[2][0].parts == 1]
            found: dict[str, Anchor] = {}
            while len(found) < len(self.members):
                known = len(found)
                for tensor, dim, layout in usable:
                    new = {s.group for s in layout} - found.keys() - {None}
                    if len(new) == 1:
                        (name,) = new
                        units = sum(Fraction(s.factor * len(s.chosen or (0,)), s.of) for s in layout if s.group == name)
                        rest = tuple(segment for segment in layout if segment.group != name)
                        found[str(name)] = Anchor(tensor, dim, rest, units.numerator, units.denominator)
                assert len(found) > known, self.members.keys() - found.keys()
            self._found_anchors.update(found)
        return self._found_anchors

    def __str__(self) -> str:
        return "\n".join(repr(group) for group in self.groups)
