"""The estimator's expectation is the exact gradient: by enumeration of a network with few edges."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from budgetnet.backbones.fabric import Edge, EdgeGraph, Fabric, Node
from budgetnet.channels import ChannelGraph
from budgetnet.costs.edges import EdgeCosts
from budgetnet.methods.edges import advantages, drawn, penalties, score_gradient

LIMITS = {"flops": 500, "sequential_ops": 6}
LOGITS = torch.tensor([0.7, -0.4, 1.2, 0.1, -0.9], dtype=torch.float64)
CHOICES = torch.tensor(list(itertools.product((False, True), repeat=5)))


def network() -> Fabric:
    torch.manual_seed(0)
    names, shape = ("a", "b", "c", "d"), (2, 3, 3)
    graph = EdgeGraph(
        tuple(Node(name, shape, (0, 0)) for name in names),
        tuple(Edge(f"{s}{t}", s, t) for s, t in (("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("c", "d"))),
    )
    edges = {edge.name: nn.Conv2d(2, 2, 3, padding=1) for edge in graph.edges}
    net = Fabric(graph, nn.Conv2d(1, 2, 1), edges, nn.Sequential(nn.Flatten(), nn.Linear(18, 3))).double()
    with torch.no_grad():
        net.head[1].weight *= 10
    ChannelGraph.trace(net, torch.empty(1, 1, 3, 3))
    return net


def spent() -> Tensor:
    """D(h), cross-entropy of a batch and penalty, of every choice (32,)."""
    net, generator = network(), torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 3, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        logits = [net.masked(images, net.layout.alive(choice[None])) for choice in CHOICES]
    losses = torch.stack([nn.functional.cross_entropy(each, labels) for each in logits])
    over = penalties(EdgeCosts(net).of(CHOICES, LIMITS), LIMITS)
    assert 0 < (over > 0).sum() < len(over) and losses.std() > 0.01
    return losses + over


def probability(logits: Tensor) -> Tensor:
    """P(h) of every choice (32,)."""
    gamma = torch.sigmoid(logits)
    return torch.where(CHOICES, gamma, 1 - gamma).prod(1)


def exact(costs: Tensor) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (probability(logits) * costs).sum().backward()
    assert logits.grad is not None and logits.grad.abs().min() > 1e-3
    return logits.grad


def test_against_the_mean_of_the_others_it_is_unbiased_and_against_the_mean_of_all_too_short() -> None:
    """Over all pairs of choices that a step may draw."""
    costs, weight = spent(), probability(LOGITS)
    pairs = list(itertools.product(range(len(CHOICES)), repeat=2))
    mean, of_all = torch.zeros(2, 5, dtype=torch.float64)
    for i, j in pairs:
        chosen, here = CHOICES[[i, j]], costs[[i, j]]
        mean += weight[i] * weight[j] * score_gradient(LOGITS, chosen, advantages(here))
        of_all += weight[i] * weight[j] * score_gradient(LOGITS, chosen, here - here.mean())
    torch.testing.assert_close(mean, exact(costs), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(of_all, exact(costs) / 2, rtol=1e-10, atol=1e-12)


def test_it_is_unbiased_against_any_fixed_baseline() -> None:
    costs, weight = spent(), probability(LOGITS)
    for baseline in (0.0, 1.7):
        mean = sum(
            p * score_gradient(LOGITS, choice[None], advantages(cost[None], baseline))
            for p, choice, cost in zip(weight, CHOICES, costs)
        )
        torch.testing.assert_close(mean, exact(costs), rtol=1e-10, atol=1e-12)


def test_edges_are_drawn_with_their_probabilities() -> None:
    draws = torch.rand(40_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(drawn(LOGITS, draws).double().mean(0), torch.sigmoid(LOGITS), rtol=0, atol=4 * 0.5 / 200)


def test_one_budget_over_the_budget_costs_one_and_nothing_is_gained_below_it() -> None:
    costs = {"flops": torch.tensor([50, 100, 150, 200]), "params": torch.tensor([5, 10, 10, 30])}
    assert penalties(costs, {"flops": 100}).tolist() == [0, 0, 0.5, 1]
    assert penalties(costs, {"flops": 100, "params": 10}).tolist() == [0, 0, 0.5, 3]
