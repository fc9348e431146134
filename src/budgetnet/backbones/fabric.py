"""Networks whose edges can be left out: the graph, which is data, and the plain module that runs it.

Nodes add up what their edges bring and apply a ReLU; edges are modules, from the stem's node to the head's (Veniat and
Denoyer, CVPR 2018: l_i = Σ_k h_ki f_ki(l_k)).
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
    """A sum of feature maps. shape: (channels, height, width). at: (x, y) in a drawing, y downwards."""

    name: str
    shape: tuple[int, int, int]
    at: tuple[float, float]


@dataclass(frozen=True)
class Edge:
    """A module from one node to another. steps: sequential operations that it takes; 0 for an identity."""

    name: str
    source: str
    target: str
    steps: int = 1


@dataclass(frozen=True, repr=False)
class EdgeGraph:
    """Nodes in an order in which they can be computed, from the stem's (the first) to the head's (the last), and edges.

    A choice of edges is a bool (..., edges) in the order of `edges`, which is by target, in the order of `nodes`.
    Raises ValueError for edges that lead backwards or to no node.
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
        return self.nodes[0].name

    @property
    def last(self) -> str:
        return self.nodes[-1].name

    @cached_property
    def into(self) -> Mapping[str, tuple[int, ...]]:
        """Numbers of the edges into every node."""
        found: dict[str, list[int]] = {node.name: [] for node in self.nodes}
        for number, edge in enumerate(self.edges):
            found[edge.target].append(number)
        return {name: tuple(numbers) for name, numbers in found.items()}

    @cached_property
    def last_readers(self) -> Mapping[str, tuple[str, ...]]:
        """By node, the nodes whose values nobody reads any more once it has been computed."""
        reader = {edge.source: edge.target for edge in self.edges}  # the last one wins
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for source, target in reader.items():
            found[target].append(source)
        return {name: tuple(sources) for name, sources in found.items()}

    def alive(self, on: Tensor) -> Tensor:
        """Which of the edges that are `on`, bool (..., edges), lie on a path of such edges from first to last."""
        reached = {self.first: torch.ones_like(on[..., 0])}
        wanted = {self.last: torch.ones_like(on[..., 0])}
        never = torch.zeros_like(on[..., 0])
        forwards, backwards = [], []
        for number, edge in enumerate(self.edges):
            here = on[..., number] & reached.get(edge.source, never)
            reached[edge.target] = reached.get(edge.target, never) | here
            forwards.append(here)
        for number in range(len(self.edges) - 1, -1, -1):
            edge = self.edges[number]
            here = on[..., number] & wanted.get(edge.target, never)
            wanted[edge.source] = wanted.get(edge.source, never) | here
            backwards.append(here)
        if not self.edges:
            return on.clone()
        return torch.stack(forwards, -1) & torch.stack(backwards[::-1], -1)

    def path(self, weights: Sequence[float], among: Tensor | None = None, through: int | None = None) -> Tensor | None:
        """bool (edges,): the path from first to last whose weights, one for each edge, add up to least.

        among: the edges that it may take. through: the number of one that it must. None: there is no such path.
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
        chosen = torch.zeros(len(self.edges), dtype=torch.bool)
        chosen[list(found[1])] = True
        return chosen

    def choice(self, names: Iterable[str]) -> Tensor:
        """bool (edges,): those of these names. Raises KeyError for a name that no edge has."""
        place = {edge.name: number for number, edge in enumerate(self.edges)}
        chosen = torch.zeros(len(self.edges), dtype=torch.bool)
        chosen[[place[name] for name in names]] = True
        return chosen

    def names(self, choice: Tensor) -> tuple[str, ...]:
        """The names of the chosen edges."""
        return tuple(edge.name for edge, here in zip(self.edges, choice.tolist(), strict=True) if here)

    def kept(self, choice: Tensor) -> EdgeGraph:
        """The graph of the chosen edges alone, and of the nodes that they touch, first and last among them."""
        edges = tuple(edge for edge, here in zip(self.edges, choice.tolist(), strict=True) if here)
        touched = {self.first, self.last, *(e.source for e in edges), *(e.target for e in edges)}
        return EdgeGraph(tuple(node for node in self.nodes if node.name in touched), edges)

    def __repr__(self) -> str:
        return f"EdgeGraph({len(self.nodes)} nodes, {len(self.edges)} edges)"

    def __str__(self) -> str:
        """A line for each node, with what leads to it."""
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
    """Take an edge from `start` to `end` if the best path to `end` gets shorter by it."""
    if allowed[number] and start in best:
        weight = best[start][0] + weights[number]
        if end not in best or weight < best[end][0]:
            best[end] = (weight, (*best[start][1], number))


def scaled(width: int, multiplier: float | None) -> int:
    """A width times `multiplier`, rounded, at least 1. Raises UsageError for what is no multiplier."""
    if multiplier is not None and not (type(multiplier) in (int, float) and 0 < multiplier <= MOST_TIMES):
        raise UsageError(f"backbone.multiplier={multiplier!r}: expected a number above 0, {MOST_TIMES} at most")
    return max(1, int(width * (1 if multiplier is None else multiplier) + 0.5))


class Fabric(nn.Module):
    """Images (batch, in_channels, height, width) to logits, through the edges of `layout` that are there.

    edges: by name, a module from the source's shape to the target's. stem: from images to the first node's shape; head:
    from the last node's shape to logits.
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
        """Logits of the networks that `alive` leaves, bool (1 or batch, edges): one for all images, or one for each.

        An edge that is off everywhere is not computed. Give what `EdgeGraph.alive` returns: an edge that is on without
        a path to it would bring the shift of its batch norm.
        """
        layout = self.layout
        some, every = alive.any(0).tolist(), alive.all(0).tolist()
        masks = alive.to(images)[:, :, None, None, None]
        values = {layout.first: self.stem(images)}
        for node in layout.nodes[1:]:
            parts = [
                self._along(i, values) if every[i] else self._along(i, values) * masks[:, i]
                for i in layout.into[node.name]
                if some[i]
            ]
            self._compute(node, values, parts)
        last = values.get(layout.last)
        if last is None:
            last = images.new_zeros(len(images), *layout.nodes[-1].shape)
        logits: Tensor = self.head(last)
        return logits

    def _along(self, number: int, values: Mapping[str, Tensor]) -> Tensor:
        edge = self.layout.edges[number]
        carried: Tensor = self.edges[edge.name](values[edge.source])
        return carried

    def _compute(self, node: Node, values: dict[str, Tensor], parts: Sequence[Tensor]) -> None:
        """Add up what leads to a node, and forget what nobody reads any more."""
        if parts:
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            values[node.name] = F.relu(total)
        for source in self.layout.last_readers[node.name]:
            values.pop(source, None)

    def keep(self, names: Collection[str]) -> None:
        """Remove every edge but these, and the nodes that no edge touches any more."""
        self.layout = self.layout.kept(self.layout.choice(names))
        for name in self.edges.keys() - set(names):
            del self.edges[name]
