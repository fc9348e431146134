"""Costs of edge masks of a fabric."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.channels.graph import layout_size
from budgetnet.costs.sequential import SequentialOperations

ADDITIVE = ("params", "macs", "flops")


class EdgeCosts:
    """Prices edge masks of a traced fabric without building the networks.

    Params, macs and flops of a mask are the whole numbers that CostModel gives for the network with these edges alone:
    the costs of the stem and the head, and a sum over edges.

    machines: the number of parallel machines for sequential operations.
    latency: measured microseconds, int64 (samples, 1 + edges), of the stem and head together and of every edge.
    """

    def __init__(self, net: Fabric, machines: int = 1, latency: Tensor | None = None) -> None:
        self.layout = net.layout
        self.names = tuple(edge.name for edge in net.layout.edges)
        self.fixed, self.edges = _additive_costs(net)
        self.sequential = SequentialOperations(net.layout, machines)
        self.latency = latency

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cost that are known."""
        return (*ADDITIVE, "sequential_ops", *(() if self.latency is None else ("latency",)))

    def of(self, masks: Tensor, kinds: Collection[str], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The costs, int64 (masks,) by kind, of each mask, bool (masks, edges), if all of its edges are computed.

        "sequential_ops" counts only edges on a path from input to output. "latency" is a sum of one measurement of each
        edge, drawn with `generator`, or of their medians without a generator.
        """
        costs = {kind: self.fixed[kind] + masks.long() @ self.edges[kind] for kind in ADDITIVE if kind in kinds}
        if "sequential_ops" in kinds:
            costs["sequential_ops"] = torch.tensor(self.sequential(self.layout.alive(masks)))
        if "latency" in kinds:
            costs["latency"] = self._latency(masks, generator)
        return costs

    def price(self, mask: Tensor) -> dict[str, int]:
        """The costs, by kind, of the network of one mask, bool (edges,), without edges that lie on no complete path."""
        return {kind: int(cost[0]) for kind, cost in self.of(self.layout.alive(mask[None]), self.kinds).items()}

    def full(self) -> dict[str, int]:
        """The costs, by kind, of the network with all edges."""
        return self.price(torch.ones(len(self.names), dtype=torch.bool))

    def weights(self, kind: str) -> list[int]:
        """The cost of one kind that each edge adds to a path."""
        if kind == "sequential_ops":
            return [edge.steps + 1 for edge in self.layout.edges]  # 1 for the sum at the end of the edge
        if kind == "latency":
            assert self.latency is not None
            return _medians(self.latency)[1:].tolist()
        return self.edges[kind].tolist()

    def budget_fractions(self, limits: Mapping[str, int]) -> list[float]:
        """For each edge the sum over limits of the fraction that it uses; 0 without a limit."""
        fractions = [[weight / most for weight in self.weights(kind)] for kind, most in limits.items()]
        return [sum(of_edge) for of_edge in zip(*fractions, strict=True)] or [0.0] * len(self.names)

    def cheapest_path(self, kind: str) -> Tensor:
        """The path from input to output with the lowest cost of one kind, bool (edges,)."""
        path = self.layout.path(self.weights(kind))
        assert path is not None
        return path

    def _latency(self, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        assert self.latency is not None
        samples = len(self.latency)
        columns = torch.arange(self.latency.shape[1])
        rows = []
        for mask in masks:
            if generator is None:
                times = _medians(self.latency)
            else:
                times = self.latency[torch.randint(samples, columns.shape, generator=generator), columns]
            rows.append(times[0] + (times[1:] * mask).sum())
        return torch.stack(rows)


def _medians(latency: Tensor) -> Tensor:
    return latency.median(0).values


def _additive_costs(net: Fabric) -> tuple[Mapping[str, int], Mapping[str, Tensor]]:
    """Params, macs and flops, by kind, of the stem and head together, and of every edge, int64 (edges,)."""
    graph = ChannelGraph.of(net)
    widths = graph.widths
    place = {edge.name: number for number, edge in enumerate(net.layout.edges)}
    fixed = dict.fromkeys(ADDITIVE, 0)
    edges: dict[str, Any] = {kind: np.zeros(len(place), np.int64) for kind in ADDITIVE}

    def add(kind: str, module: str, cost: int) -> None:
        child, name, *_ = [*module.split("."), ""]
        if child == "edges":
            edges[kind][place[name]] += cost
        else:
            fixed[kind] += cost

    for term in graph.terms:
        right = 1 if term.right is None else layout_size(term.right, widths)
        cost = term.coefficient * layout_size(term.left, widths) * right // term.divisor
        add("flops", term.module, cost)
        if term.matrix:
            add("macs", term.module, cost)
    for name, parameter in net.named_parameters():
        add("params", name, parameter.numel())
    return fixed, {kind: torch.from_numpy(costs) for kind, costs in edges.items()}
