"""What a trace has found so far: layouts, groups and costs, while groups may still be tied."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from budgetnet.channels.graph import ChannelGraph, GraphError, Layout, Segment, Term, WidthGroup


class Group:
    """A width while it is being found; tied groups point to one root (union-find)."""

    def __init__(self, size: int, producer: str | None = None, kind: str = "", frozen: bool = False) -> None:
        self.parent: Group | None = None
        self.size = size
        self.blocks = 1
        self.frozen = frozen
        self.mixed = False
        self.kind = kind
        self.producers = [producer] if producer else []
        self.consumers: list[str] = []

    @property
    def root(self) -> Group:
        return self if self.parent is None else self.parent.root


Draft = list[tuple[Group, int, int]]
"""A layout whose groups may still be tied: (group, factor, parts) segments."""


def draft_size(draft: Draft) -> int:
    return sum(group.root.size * factor // parts for group, factor, parts in draft)


class Builder:
    """Collects the graph of `model` while tracing.py runs it node by node; operations.py says what each node does.

    values: what every node gave on the meta device. layouts: what lies along dimension 1 of every tensor.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.model, self.input_shape = model, input_shape
        self.node: fx.Node  # the one being run
        self.values: dict[fx.Node, Any] = {}
        self.layouts: dict[fx.Node, Draft] = {}
        self.groups: list[Group] = []
        self.axes: dict[str, dict[int, Draft]] = {}
        self.attributes: dict[tuple[str, str], Draft] = {}
        self.terms: list[tuple[str, bool, int, Draft, Draft | None, int]] = []
        self.joins: list[tuple[Draft, Draft]] = []
        self.norm_after: dict[str, str] = {}

    def sources(self) -> list[fx.Node]:
        """The tensors that the operation reads."""
        return [source for source in self.node.all_input_nodes if source in self.layouts]

    def layout(self) -> Draft:
        """The layout of the first tensor that the operation reads."""
        return self.layouts[self.sources()[0]]

    def shape(self) -> torch.Size:
        """The shape of the first tensor that the operation reads."""
        return self.value(self.sources()[0]).shape

    def value(self, node: fx.Node) -> torch.Tensor:
        value: torch.Tensor = self.values[node]
        return value

    def new(
        self, size: int, producer: str | None = None, kind: str = "", frozen: bool = False
    ) -> tuple[Group, int, int]:
        """A new group, as a segment."""
        group = Group(size, producer, kind, frozen)
        self.groups.append(group)
        return (group, 1, 1)

    def produce(self, path: str, size: int, kind: str) -> Draft:
        """The output of a layer; one that is used twice has one width."""
        known = self.axes.get(f"{path}.weight", {}).get(0)
        return known if known is not None else [self.new(size, path, kind)]

    def consume(self, path: str, layout: Draft) -> None:
        for group, _, _ in layout:
            group.root.consumers.append(path)

    def axis(self, tensor: str, dim: int, layout: Draft) -> None:
        """`layout` lies along a dimension of a parameter or buffer; a layer that is used twice ties its layouts."""
        self.tie(self.axes.setdefault(tensor, {}).setdefault(dim, layout), layout)

    def term(
        self, path: str, matrix: bool, coefficient: int, left: Draft, right: Draft | None = None, divisor: int = 1
    ) -> None:
        """A cost; see graph.Term."""
        self.terms.append((path, matrix, coefficient, left, right, divisor))

    def tie(self, left: Draft, right: Draft) -> None:
        """Two layouts must change together from now on."""
        sizes = [[(group.root.size * factor, factor) for group, factor, _ in side] for side in (left, right)]
        if sizes[0] != sizes[1]:
            raise self.error(f"joins channels laid out differently, {sizes[0]} and {sizes[1]} (units, factor)")
        for (a, _, _), (b, _, _) in zip(left, right, strict=True):
            one, other = a.root, b.root
            if one is other:
                continue
            if self.groups.index(other) < self.groups.index(one):
                one, other = other, one
            other.parent = one
            one.blocks = math.lcm(one.blocks, other.blocks)
            one.frozen |= other.frozen
            one.mixed |= other.mixed
            one.producers += other.producers
            one.consumers += other.consumers
            one.kind = "convolution" if "convolution" in (one.kind, other.kind) else one.kind or other.kind

    def freeze(self, layout: Draft) -> None:
        for group, _, _ in layout:
            group.root.frozen = True

    def freeze_inputs(self) -> None:
        for source in self.sources():
            self.freeze(self.layouts[source])

    def error(self, what: str) -> GraphError:
        """An error that names the operation, where it stands, and how to freeze the widths around it."""
        stack = self.node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()), ("", None))[0] if stack else ""
        where = f"in module {path!r}" if path else f"in {type(self.model).__name__}.forward"
        return GraphError(
            f"operation {self.node.name!r} ({function_name(self.node.target)}) {where} {what}; to keep the widths "
            f"around it fixed, trace with frozen=({path or self.node.name!r},)"
        )

    # -- result -----------------------------------------------------------------------------------------------------

    def finish(self) -> ChannelGraph:
        """The graph, once the whole model has run."""
        members = {}
        names: dict[int, str] = {}
        for group in self.groups:
            if group.root is group and group.producers and not group.frozen:
                names[id(group)] = name = group.producers[0]
                unique = tuple(dict.fromkeys(group.consumers))
                members[name] = WidthGroup(name, group.size, group.kind, tuple(group.producers), unique, group.blocks)

        def settle(draft: Draft) -> Layout:
            return tuple(
                Segment(names[id(group.root)], factor, parts)
                if id(group.root) in names
                else Segment(None, group.root.size * factor // parts)
                for group, factor, parts in draft
            )

        return ChannelGraph(
            model=self.model,
            input_shape=self.input_shape,
            axes={tensor: {dim: settle(d) for dim, d in dims.items()} for tensor, dims in self.axes.items()},
            attributes={key: settle(draft) for key, draft in self.attributes.items()},
            terms=[
                Term(path, matrix, coefficient, settle(left), settle(right) if right is not None else None, divisor)
                for path, matrix, coefficient, left, right, divisor in self.terms
            ],
            joins=[(settle(source), settle(target)) for source, target in self.joins],
            norm_after=self.norm_after,
            mixing=frozenset(names[id(g)] for g in self.groups if id(g) in names and g.mixed),
            members=members,
        )


def function_name(target: Any) -> str:
    """The common name of a function, method or builtin operator: F.relu, torch.relu and Tensor.relu are all 'relu'."""
    return str(target if isinstance(target, str) else getattr(target, "__name__", target))
