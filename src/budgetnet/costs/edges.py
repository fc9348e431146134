"""What choices of a fabric's edges cost."""

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
    """Prices choices of edges of a traced fabric, without building what is left of it.

    Params, macs and flops of a choice are those that CostModel gives for the network of these edges alone, in whole
    numbers: what the stem and the head cost, and a sum over edges. sequential: their steps on so many machines.
    latency: microseconds, int64 (samples, 1 + edges), of the stem and head together and of every edge, where measured.
    """

    def __init__(self, net: Fabric, machines: int = 1, latency: Tensor | None = None) -> None:
        self.layout = net.layout
        self.names = tuple(edge.name for edge in net.layout.edges)
        self.fixed, self.edges = _shares(net)
        self.sequential = SequentialOperations(net.layout, machines)
        self.latency = latency

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is known of a choice."""
        return (*ADDITIVE, "sequential_ops", *(() if self.latency is None else ("latency",)))

    def of(self, choice: Tensor, kinds: Collection[str], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """By kind, what each choice, bool (choices, edges), costs, int64 (choices,), were all of it computed.

        "sequential_ops" is of what lies on a path. generator: "latency" is a sum of one measurement of each edge, drawn
        by it, or, without one, of their medians.
        """
        costs = {kind: self.fixed[kind] + choice.long() @ self.edges[kind] for kind in ADDITIVE if kind in kinds}
        if "sequential_ops" in kinds:
            costs["sequential_ops"] = torch.tensor(self.sequential(self.layout.alive(choice)))
        if "latency" in kinds:
            costs["latency"] = self._latency(choice, generator)
        return costs

    def price(self, choice: Tensor) -> dict[str, int]:
        """By kind, what the network of one choice of edges costs: of what lies on a path from end to end."""
        return {kind: int(cost[0]) for kind, cost in self.of(self.layout.alive(choice[None]), self.kinds).items()}

    def full(self) -> dict[str, int]:
        """By kind, what the network with all its edges costs."""
        return self.price(torch.ones(len(self.names), dtype=torch.bool))

    def weights(self, kind: str) -> list[int]:
        """By edge, what each adds to the cost of a path, of one kind."""
        if kind == "sequential_ops":
            return [edge.steps + 1 for edge in self.layout.edges]  # and the sum at its end
        if kind == "latency":
            assert self.latency is not None
            return _medians(self.latency)[1:].tolist()
        return self.edges[kind].tolist()

    def budget_fractions(self, limits: Mapping[str, int]) -> list[float]:
        """By edge, what parts of the limits it takes, added up; 0 without a limit."""
        parts = [[weight / most for weight in self.weights(kind)] for kind, most in limits.items()]
        return [sum(part) for part in zip(*parts, strict=True)] or [0.0] * len(self.names)

    def cheapest_path(self, kind: str) -> Tensor:
        """bool (edges,): the path from end to end that costs least of one kind."""
        path = self.layout.path(self.weights(kind))
        assert path is not None
        return path

    def _latency(self, choice: Tensor, generator: torch.Generator | None) -> Tensor:
        assert self.latency is not None
        samples = len(self.latency)
        columns = torch.arange(self.latency.shape[1])
        rows = []
        for here in choice:
            if generator is None:
                measured = _medians(self.latency)
            else:
                measured = self.latency[torch.randint(samples, columns.shape, generator=generator), columns]
            rows.append(measured[0] + (measured[1:] * here).sum())
        return torch.stack(rows)


def _medians(latency: Tensor) -> Tensor:
    return latency.median(0).values


def _shares(net: Fabric) -> tuple[Mapping[str, int], Mapping[str, Tensor]]:
    """Params, macs and flops of the stem and head together, and of every edge, int64 (edges,)."""
    graph = ChannelGraph.of(net)
    widths = graph.widths
    place = {edge.name: number for number, edge in enumerate(net.layout.edges)}
    fixed = dict.fromkeys(ADDITIVE, 0)
    edges: dict[str, Any] = {kind: np.zeros(len(place), np.int64) for kind in ADDITIVE}

    def add(kind: str, module: str, cost: int) -> None:
        part, name, *_ = [*module.split("."), ""]
        if part == "edges":
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
