"""Sequential operations: how many steps a network of edges takes on several machines that work side by side.

The distributed computation cost of Budgeted Super Networks (Veniat and Denoyer, CVPR 2018): every edge's module, every
node's sum, the stem and the head are one operation each, an identity is none, and each machine does one a step.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from budgetnet.backbones.fabric import EdgeGraph

_MOST_REMEMBERED = 100_000


class SequentialOperations:
    """Prices choices of edges of one graph on `machines` machines.

    A step takes operations that are ready, nothing that they wait for being left, until it has as many as machines;
    of those that are ready the first have the most operations behind them, on the longest path of the network that is
    left, and then come in the graph's order. Operations that cost nothing take no step.
    """

    def __init__(self, graph: EdgeGraph, machines: int = 1) -> None:
        self.graph, self.machines = graph, machines
        edges, nodes = graph.edges, graph.nodes
        place = {node.name: len(edges) + number for number, node in enumerate(nodes)}  # the first node's is the stem
        self._source = [place[edge.source] for edge in edges]
        self._target = [place[edge.target] for edge in edges]
        self._steps = [edge.steps for edge in edges] + [1] * len(nodes) + [1]  # the last is the head
        self._known: dict[bytes, int] = {}

    def __call__(self, alive: Tensor) -> list[int]:
        """Steps of each of the networks that `alive`, bool (networks, edges), leaves (see EdgeGraph.alive)."""
        return [self._of(row) for row in alive.cpu()]

    def full(self) -> int:
        """Steps of the whole graph."""
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
        """On one machine: all of them, and the sums."""
        return 2 + sum(self._steps[i] for i in edges) + len({self._target[i] for i in edges})

    def _scheduled(self, edges: list[int]) -> int:
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
