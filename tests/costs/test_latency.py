"""Measured time of edges."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from budgetnet.backbones.fabric import Edge, EdgeGraph, Fabric, Node
from budgetnet.channels import ChannelGraph
from budgetnet.costs import Budget, latency
from budgetnet.costs.edges import EdgeCosts
from budgetnet.costs.latency import edge_latencies, latency_of, timed
from budgetnet.errors import UsageError


class Clock:
    """Moves only where a test moves it."""

    now = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.now


CLOCK = Clock()


class Slow(nn.Conv2d):
    """A convolution that takes 20 ms."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        CLOCK.now += 0.02
        return super().forward(input)


def slow_and_fast() -> Fabric:
    nodes = tuple(Node(name, (2, 4, 4), (0, 0)) for name in ("first", "last"))
    graph = EdgeGraph(nodes, (Edge("slow", "first", "last"), Edge("fast", "first", "last")))
    edges = {"slow": nn.Conv2d(2, 2, 1), "fast": nn.Conv2d(2, 2, 1)}
    net = Fabric(graph, nn.Conv2d(1, 2, 1), edges, nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    ChannelGraph.trace(net, torch.empty(1, 1, 4, 4))
    net.edges["slow"].__class__ = Slow
    return net


def test_the_clock_is_the_machines() -> None:
    assert min(timed(lambda: time.sleep(0.001), torch.device("cpu"), samples=2)) >= 1000


def test_a_slow_edge_is_found_and_its_absence_is_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_now", CLOCK)
    net = slow_and_fast()
    table = edge_latencies(net, (1, 4, 4))
    assert edge_latencies(net.to(torch.bfloat16), (1, 4, 4)).shape == table.shape and net.float().training
    ends, slow, fast = table.median(0).values.tolist()
    assert table.shape == (9, 3) and (ends, slow, fast) == (1, 20_000, 1)  # 1: no time at all
    costs = EdgeCosts(net, latency=table)
    both, one = torch.tensor([True, True]), torch.tensor([False, True])
    assert costs.price(both)["latency"] == ends + slow + fast and costs.price(one)["latency"] == ends + fast
    assert latency_of(net, both, (1, 4, 4)) == 20_000 and latency_of(net, one, (1, 4, 4)) == 1
    assert torch.equal(costs.cheapest_path("latency"), one)
    assert net.training


def test_a_sampled_latency_is_a_sum_of_measurements() -> None:
    table = torch.tensor([[1, 10, 100], [2, 20, 200]])
    costs = EdgeCosts(slow_and_fast(), latency=table)
    choices = torch.tensor([[True, True], [False, True], [False, False]]).repeat(50, 1)
    drawn = costs.of(choices, ("latency",), torch.Generator().manual_seed(0))["latency"].view(50, 3)
    assert set(drawn[:, 0].tolist()) == {a + b + c for a in (1, 2) for b in (10, 20) for c in (100, 200)}
    assert set(drawn[:, 1].tolist()) == {101, 102, 201, 202} and set(drawn[:, 2].tolist()) == {1, 2}


@pytest.mark.parametrize(("text", "microseconds"), [("2.5ms", 2500), ("800us", 800), ("0.1 s", 100_000), ("3µs", 3)])
def test_a_budget_of_latency_has_a_unit(text: str, microseconds: int) -> None:
    assert Budget(latency=text).limits == {"latency": microseconds}


@pytest.mark.parametrize("value", ["2.5", 2.5, "50%", "-1ms", "1h", "0ms"])
def test_another_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"budget\.latency"):
        Budget(latency=value)  # type: ignore[arg-type]
