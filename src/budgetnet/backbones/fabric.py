"""Networks whose edges can be removed: the graph as data, and the module that computes it.

A node is the ReLU of the sum of its incoming edges, and an edge is a module between two nodes (Veniat and Denoyer, CVPR
2018: l_i = Σ_k h_ki f_ki(l_k)). The first node is computed by the stem, and the last one is read by the head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.errors import UsageError

MOST_TIMES = 64


@dataclass(frozen=True)
class Node:
    """A sum of feature maps of `shape` (channels, height, width). at: (x, y) in a drawing, with y downwards."""

    name: str
    shape: tuple[int, int, int]
    at: tuple[float, float]


@dataclass(frozen=True)
class Edge:
    """A module from one node to another. steps: the number of its sequential operations, 0 for an identity."""

    name: str
    source: str
    target: str
    steps: int = 1


@dataclass(frozen=True, repr=False)
class EdgeGraph:
    """Nodes in an order of computation, from that of the stem to that of the head, and edges between them.

    A mask of edges is bool (..., edges) in the order of `edges`, which are sorted by target in the order of `nodes`.
    Raises ValueError for edges that lead backwards or to no node, or are not sorted.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        place = {node.name: number for number, node in enumerate(self.nodes)}
        for edge in self.edges:
            if not place.get(edge.source, len(place)) < place.get(edge.target, -1):
                raise ValueError(f"{edge} does not lead forwards from node to node")
        if [place[edge.target] for edge in self.edges] != sorted(place[edge.target] for edge in self.edges):
            raise ValueError("edges are not in the order of their targets")

    @property
    def first(self) -> str:
        """The name of the node that the stem computes."""
        return self.nodes[0].name

    @property
    def last(self) -> str:
        """The name of the node that the head reads."""
        return self.nodes[-1].name

    @cached_property
    def into(self) -> Mapping[str, tuple[int, ...]]:
        """The indices of the edges into every node."""
        found: dict[str, list[int]] = {node.name: [] for node in self.nodes}
        for number, edge in enumerate(self.edges):
            found[edge.target].append(number)
        return {name: tuple(numbers) for name, numbers in found.items()}

    @cached_property
    def last_readers(self) -> Mapping[str, tuple[str, ...]]:
        """For each node the nodes whose values are no longer needed after it has been computed."""
        reader = {edge.source: edge.target for edge in self.edges}  # the last reader of each node
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for source, target in reader.items():
            found[target].append(source)
        return {name: tuple(sources) for name, sources in found.items()}

    def alive(self, on: Tensor) -> Tensor:
        """Which of the edges that are `on`, bool (..., edges), lie on a path of such edges from first to last node."""
        if on.numel() == len(self.edges):
            return torch.tensor(self._alive_of_one(on.flatten().tolist()), dtype=torch.bool, device=on.device).view_as(
                on
            )
        reached = {self.first: torch.ones_like(on[..., 0])}
        wanted = {self.last: torch.ones_like(on[..., 0])}
        never = torch.zeros_like(on[..., 0])
        forwards, backwards = [], []
        for number, edge in enumerate(self.edges):
            usable = on[..., number] & reached.get(edge.source, never)
            reached[edge.target] = reached.get(edge.target, never) | usable
            forwards.append(usable)
        for number in range(len(self.edges) - 1, -1, -1):
            edge = self.edges[number]
            usable = on[..., number] & wanted.get(edge.target, never)
            wanted[edge.source] = wanted.get(edge.source, never) | usable
            backwards.append(usable)
        if not self.edges:
            return on.clone()
        return torch.stack(forwards, -1) & torch.stack(backwards[::-1], -1)

    def _alive_of_one(self, on: list[bool]) -> list[bool]:
        """The same of one mask, without tensors: a search asks for thousands, one after the other."""
        usable, reached, wanted = list(on), {self.first}, {self.last}
        for number, edge in enumerate(self.edges):
            usable[number] = on[number] and edge.source in reached
            if usable[number]:
                reached.add(edge.target)
        for number in range(len(self.edges) - 1, -1, -1):
            edge = self.edges[number]
            usable[number] = usable[number] and edge.target in wanted
            if usable[number]:
                wanted.add(edge.source)
        return usable

    def path(self, weights: Sequence[float], among: Tensor | None = None, through: int | None = None) -> Tensor | None:
        """The path from the first to the last node with the smallest sum of edge weights, bool (edges,).

        among: the edges that it may use, bool (edges,). through: the index of an edge that it must use.
        The result is None if there is no such path.
        """
        allowed = [True] * len(self.edges) if among is None else among.tolist()
        ahead: dict[str, tuple[float, tuple[int, ...]]] = {self.first: (0, ())}
        behind: dict[str, tuple[float, tuple[int, ...]]] = {self.last: (0, ())}
        for number in range(len(self.edges)):
            _extend(ahead, self.edges[number].source, self.edges[number].target, number, weights, allowed)
        if through is None:
            found = ahead.get(self.last)
        else:
            for number in reversed(range(len(self.edges))):
                _extend(behind, self.edges[number].target, self.edges[number].source, number, weights, allowed)
            before, after = ahead.get(self.edges[through].source), behind.get(self.edges[through].target)
            found = None if before is None or after is None else (0, (*before[1], through, *after[1]))
        if found is None:
            return None
        mask = torch.zeros(len(self.edges), dtype=torch.bool)
        mask[list(found[1])] = True
        return mask

    def mask(self, names: Iterable[str]) -> Tensor:
        """The mask of the edges with these names, bool (edges,). Raises KeyError for a name that no edge has."""
        place = {edge.name: number for number, edge in enumerate(self.edges)}
        mask = torch.zeros(len(self.edges), dtype=torch.bool)
        mask[[place[name] for name in names]] = True
        return mask

    def names(self, mask: Tensor) -> tuple[str, ...]:
        """The names of the edges in a mask, bool (edges,)."""
        return tuple(edge.name for edge, on in zip(self.edges, mask.tolist(), strict=True) if on)

    def subgraph(self, mask: Tensor) -> EdgeGraph:
        """The graph of the edges in a mask, bool (edges,), with their nodes and the first and last node.

        It never raises ValueError, since it keeps the order of a valid graph.
        """
        edges = tuple(edge for edge, on in zip(self.edges, mask.tolist(), strict=True) if on)
        touched = {self.first, self.last, *(e.source for e in edges), *(e.target for e in edges)}
        return EdgeGraph(tuple(node for node in self.nodes if node.name in touched), edges)

    def __repr__(self) -> str:
        return f"EdgeGraph({len(self.nodes)} nodes, {len(self.edges)} edges)"

    def __str__(self) -> str:
        """A line for each node, with the edges that lead to it."""
        lines = []
        for node in self.nodes:
            sources = ", ".join(f"{self.edges[i].source} by {self.edges[i].name}" for i in self.into[node.name])
            lines.append(f"{node.name} {'x'.join(map(str, node.shape))} <- {sources or 'images, by the stem'}")
        return "\n".join([*lines, f"head <- {self.last}"])


def _extend(
    best: dict[str, tuple[float, tuple[int, ...]]],
    start: str,
    end: str,
    number: int,
    weights: Sequence[float],
    allowed: Sequence[bool],
) -> None:
    """Extend the best path to `start` by an edge to `end` if that is shorter than the best path to `end`."""
    if allowed[number] and start in best:
        weight = best[start][0] + weights[number]
        if end not in best or weight < best[end][0]:
            best[end] = (weight, (*best[start][1], number))


def scaled(width: int, multiplier: float | None) -> int:
    """A width times `multiplier`, rounded, at least 1. Raises UsageError for a multiplier out of range."""
    if multiplier is not None and not (type(multiplier) in (int, float) and 0 < multiplier <= MOST_TIMES):
        raise UsageError(f"backbone.multiplier={multiplier!r}: expected a number above 0, {MOST_TIMES} at most")
    return max(1, int(width * (1 if multiplier is None else multiplier) + 0.5))


class Fabric(nn.Module):
    """Maps images (batch, in_channels, height, width) to logits through the edges of `layout`.

    stem: maps images to the shape of the first node.
    edges: for each edge by name, a module that maps the shape of its source to that of its target.
    head: maps the shape of the last node to logits.
    """

    def __init__(self, layout: EdgeGraph, stem: nn.Module, edges: Mapping[str, nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.layout = layout
        self.stem = stem
        self.edges = nn.ModuleDict({edge.name: edges[edge.name] for edge in layout.edges})
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits with every edge on."""
        values = {self.layout.first: self.stem(images)}
        for node in self.layout.nodes[1:]:
            self._compute(node, values, [self._along(i, values) for i in self.layout.into[node.name]])
        logits: Tensor = self.head(values[self.layout.last])
        return logits

    def masked(self, images: Tensor, alive: Tensor) -> Tensor:
        """Logits with the edges in `alive`, bool (1 or batch, edges): one mask for all images, or one for each.

        An edge that is off for all images is not computed. The mask must come from `EdgeGraph.alive`, since an edge
        without a path from the first node would add the shift of its batch norm.
        """
        layout = self.layout
        some, every = alive.any(0).tolist(), alive.all(0).tolist()
        masks = alive.to(images)[:, :, None, None, None]
        values = {layout.first: self.stem(images)}
        for node in layout.nodes[1:]:
            incoming = [
                self._along(i, values) if every[i] else self._along(i, values) * masks[:, i]
                for i in layout.into[node.name]
                if some[i]
            ]
            self._compute(node, values, incoming)
        last = values.get(layout.last)
        if last is None:
            last = images.new_zeros(len(images), *layout.nodes[-1].shape)
        logits: Tensor = self.head(last)
        return logits

    def _along(self, number: int, values: Mapping[str, Tensor]) -> Tensor:
        edge = self.layout.edges[number]
        output: Tensor = self.edges[edge.name](values[edge.source])
        return output

    def _compute(self, node: Node, values: dict[str, Tensor], incoming: Sequence[Tensor]) -> None:
        """Add up the outputs of the edges into a node, and drop values that are no longer needed."""
        if incoming:
            total = incoming[0]
            for output in incoming[1:]:
                total = total + output
            values[node.name] = F.relu(total)
        for source in self.layout.last_readers[node.name]:
            values.pop(source, None)

    def keep(self, names: Collection[str]) -> None:
        """Remove all edges but those with these names, and nodes without edges.

        Raises KeyError for a name that no edge has.
        """
        self.layout = self.layout.subgraph(self.layout.mask(names))
        for name in self.edges.keys() - set(names):
            del self.edges[name]
