"""Sequential operations: the number of steps that a network of edges takes on several parallel machines.

This is the distributed computation cost of Budgeted Super Networks (Veniat and Denoyer, CVPR 2018). The module of every
edge, the sum of every node, the stem and the head are one operation each, an identity is none, and every machine
computes one operation in each step.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from budgetnet.backbones.fabric import EdgeGraph

_MOST_REMEMBERED = 100_000


class SequentialOperations:
    """Counts the steps of edge masks of one graph on `machines` machines, by list scheduling.

    In each step, every machine takes an operation whose inputs are ready. Operations with the longest path to the
    output come first, and those with equal paths in the order of the graph. Operations that cost nothing take no step.
    """

    def __init__(self, graph: EdgeGraph, machines: int = 1) -> None:
        self.graph, self.machines = graph, machines
        edges, nodes = graph.edges, graph.nodes
        place = {node.name: len(edges) + number for number, node in enumerate(nodes)}  # the first is the stem
        self._source = [place[edge.source] for edge in edges]
        self._target = [place[edge.target] for edge in edges]
        self._steps = [edge.steps for edge in edges] + [1] * len(nodes) + [1]  # the last is the head
        self._known: dict[bytes, int] = {}

    def __call__(self, alive: Tensor) -> list[int]:
        """The number of steps for each mask in `alive`, bool (masks, edges), as EdgeGraph.alive returns them."""
        return [self._of(row) for row in alive.cpu()]

    def full(self) -> int:
        """The number of steps of the whole graph."""
        return self(torch.ones(1, len(self.graph.edges), dtype=torch.bool))[0]

    def _of(self, row: Tensor) -> int:
        key = row.numpy().tobytes()
        if key not in self._known:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            chosen = row.nonzero().flatten().tolist()
            self._known[key] = self._alone(chosen) if self.machines == 1 else self._scheduled(chosen)
        return self._known[key]

    def _alone(self, edges: list[int]) -> int:
        """The number of steps on one machine: all operations, including the sums of nodes."""
        return 2 + sum(self._steps[i] for i in edges) + len({self._target[i] for i in edges})

    def _scheduled(self, edges: list[int]) -> int:
        """The number of steps on several machines."""
        stem, head = len(self.graph.edges), len(self._steps) - 1
        last = head - 1
        waits = {head: 1 if edges or last == stem else 0, stem: 0}
        after: dict[int, list[int]] = {last: [head]}
        for i in edges:
            source, target = self._source[i], self._target[i]
            waits[i] = 1
            after.setdefault(source, []).append(i)
            after.setdefault(i, []).append(target)
            waits[target] = waits.get(target, 0) + 1
        behind = {head: 1, last: 2}
        for i in reversed(edges):
            source, target = self._source[i], self._target[i]
            behind[i] = self._steps[i] + behind[target]
            behind[source] = max(behind.get(source, 0), 1 + behind[i])
        ready = [(-behind.get(operation, 0), operation) for operation, count in waits.items() if not count]
        heapq.heapify(ready)
        steps = 0
        while ready:
            done, load = [], 0
            while ready and load < self.machines:
                _, operation = heapq.heappop(ready)
                load += self._steps[operation]
                done.append(operation)
            steps += load > 0
            for operation in done:
                for follower in after.get(operation, ()):
                    waits[follower] -= 1
                    if not waits[follower]:
                        heapq.heappush(ready, (-behind[follower], follower))
        return steps
