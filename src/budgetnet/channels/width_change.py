"""Where each entry of a resized tensor comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from budgetnet.channels.graph import Graph, Layout, Segment, layout_size


class WidthChange:
    """One resize: for each changed group, the old channel that every new channel continues (-1: it is new).

    old_widths: all widths before. sources: group -> (new width,) indices. Only index arithmetic happens here; resize.py
    applies it to the tensors and initialise.py fills what is new.
    """

    def __init__(
        self, graph: Graph, old_widths: Mapping[str, int], sources: Mapping[str, Tensor], seed: int | None
    ) -> None:
        self.graph = graph
        self.old_widths = dict(old_widths)
        self.new_widths = {**old_widths, **{name: len(source) for name, source in sources.items()}}
        self.sources = dict(sources)
        self.seed = seed
        self.shares: dict[str, Tensor] = {}  # net2wider: the part of its original's outgoing weight a channel takes
        self._gather = self.sources
        self._copies: dict[tuple[Layout, int], Copies] = {}

    def tensors(self) -> list[str]:
        """Names of the parameters and buffers that have a changed group along one of their axes."""
        return [
            name
            for name, dims in self.graph.axes.items()
            if any(segment.group in self.sources for layout in dims.values() for segment in layout)
        ]

    def growing(self) -> list[str]:
        """The groups that get new channels."""
        return [name for name, source in self.sources.items() if bool((source < 0).any())]

    def generator(self, name: str) -> torch.Generator | None:
        """A CPU generator keyed by (seed, name); None (torch's global one) without a seed."""
        return tensor_generator(self.seed, name)

    def duplicate(self) -> None:
        """Let every new channel copy a random old one of its block (Net2WiderNet), and draw how the two share."""
        self._gather = {}
        for name, source in self.sources.items():
            generator, blocks = self.generator(name), self.graph.group(name).blocks
            filled = []
            for block in source.reshape(blocks, -1):
                old = block[block >= 0]
                copied = old[torch.randint(len(old), block.shape, generator=generator)]
                filled.append(torch.where(block >= 0, block, copied))
            full = torch.cat(filled)
            weight = 0.5 + torch.rand(len(full), generator=generator, dtype=torch.float64)  # unequal: breaks symmetry
            total = torch.zeros(self.old_widths[name], dtype=torch.float64).index_add_(0, full, weight)
            self._gather[name], self.shares[name] = full, weight / total[full]

    def origin(self, layout: Layout) -> Tensor:
        """(new size,) for an axis: the old position each new position continues, -1 where it is new."""
        return self._along(layout, self.sources)

    def labels(self, layout: Layout, name: str) -> Tensor:
        """(new size,) for an axis: which of the group's new channels, counted from 0, a position belongs to, or -1."""
        runs = []
        for segment in over_all_parts(layout):
            if segment.group == name:
                new = self.sources[name] < 0
                label = torch.where(new, torch.cumsum(new, 0) - 1, -1)
                runs.append(label[segment.channels(self.new_widths)])
            else:
                runs.append(torch.full((segment.size(self.new_widths),), -1))
        return torch.cat(runs)[: layout_size(layout, self.new_widths)]

    def is_new_along(self, layout: Layout, groups: Container[str | None]) -> Tensor:
        """Boolean (new size,) for an axis: whether a position belongs to a new channel of one of the groups."""
        runs = [
            (self.sources[str(segment.group)] < 0)[segment.channels(self.new_widths)]
            if segment.group in groups
            else torch.zeros(segment.size(self.new_widths), dtype=torch.bool)
            for segment in over_all_parts(layout)
        ]
        return torch.cat(runs)[: layout_size(layout, self.new_widths)]

    def outgoing_shares(self, layout: Layout) -> Tensor:
        """(new size over all parts,) for an input axis: the factor of each column under net2wider."""
        return torch.cat(
            [
                self.shares[segment.group][segment.channels(self.new_widths)]
                if segment.group in self.shares
                else torch.ones(segment.size(self.new_widths), dtype=torch.float64)
                for segment in over_all_parts(layout)
            ]
        )

    @torch.no_grad()
    def migrate(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor` (the parameter or buffer called `name`, or a state of its shape) at its new size, zero where new."""
        return self._apply(name, tensor, self._gather)

    def is_new(self, name: str, tensor: Tensor) -> Tensor:
        """Boolean mask of the resized `tensor`: True where an entry has no old value."""
        old_shape = list(tensor.shape)
        for dim, layout in self.graph.axes[name].items():
            old_shape[dim] = layout_size(layout, self.old_widths)
        return self._apply(name, tensor.new_ones(old_shape), self.sources) == 0

    def _apply(self, name: str, tensor: Tensor, sources: Mapping[str, Tensor]) -> Tensor:
        dims = self.graph.axes[name]
        parts = max((segment.parts for segment in dims.get(1, ())), default=1)
        if parts == 1:
            out = _take(tensor, {dim: self._copies_along(layout, sources) for dim, layout in dims.items()})
        else:  # grouped convolution: every part of the filters reads its own part of the input channels
            rows = self._along(dims[0], sources).chunk(parts)
            columns = self._along(over_all_parts(dims[1]), sources).chunk(parts)
            width = tensor.shape[1]
            own = [torch.where(column < 0, column, column - part * width) for part, column in enumerate(columns)]
            out = torch.cat([_take(tensor, {0: _copies(r), 1: _copies(c)}) for r, c in zip(rows, own, strict=True)])
        if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            return out.contiguous(memory_format=torch.channels_last)
        return out.contiguous()

    def _copies_along(self, layout: Layout, sources: Mapping[str, Tensor]) -> Copies:
        key = layout, id(sources)  # many tensors have the same layout
        if key not in self._copies:
            self._copies[key] = _copies(self._along(layout, sources))
        return self._copies[key]

    def _along(self, layout: Layout, sources: Mapping[str, Tensor]) -> Tensor:
        runs, offset = [], 0
        for segment in layout:
            size = segment.size(self.old_widths)
            if segment.group is not None and segment.group in sources:
                source = sources[segment.group]
                old, new = self.old_widths[segment.group] // segment.of, len(source) // segment.of
                chosen = segment.chosen or (0,)
                block = torch.tensor(chosen)
                index = source[torch.arange(new)[:, None] + block * new] - block * old  # (new, chosen), below 0: new
                units = (index * len(chosen) + torch.arange(len(chosen))) * segment.factor
                is_new = source[torch.arange(new)[:, None] + block * new] < 0
                places = units[:, :, None] + torch.arange(segment.factor) + offset
                runs.append(torch.where(is_new[:, :, None], -1, places).flatten())
            else:
                runs.append(torch.arange(size) + offset)
            offset += size
        return torch.cat(runs)


def over_all_parts(layout: Layout) -> Layout:
    """The whole input axis of a grouped convolution, of which each of its filters reads a part."""
    return tuple(Segment(s.group, s.factor, 1, s.chosen, s.of) for s in layout)


def tensor_generator(seed: int | None, name: str) -> torch.Generator | None:
    """A CPU generator keyed by (seed, name); None (torch's global one) without a seed."""
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Copies(NamedTuple):
    """Of an axis: its new size, the old positions that go on, and where they come to stand (None: at all of it)."""

    size: int
    old: Tensor
    new: Tensor | None


def _copies(source: Tensor) -> Copies:
    """From the old position of each new one, -1 where there is none."""
    kept = source >= 0
    return Copies(len(source), source[kept], None if bool(kept.all()) else kept.nonzero().flatten())


def _take(tensor: Tensor, along: Mapping[int, Copies]) -> Tensor:
    """Gather `tensor` along each dimension; what is new becomes 0."""
    for dim, (size, old, new) in along.items():
        picked = tensor.index_select(dim, old.to(tensor.device))
        if new is None:
            tensor = picked
            continue
        shape = list(tensor.shape)
        shape[dim] = size
        tensor = picked.new_zeros(shape).index_copy_(dim, new.to(tensor.device), picked)
    return tensor
