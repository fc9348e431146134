"""What is kept is within the budget, on paths, and leaves out no likely edge that fits."""

from __future__ import annotations

import pytest
import torch
from covering import covered
from torch import nn

from budgetnet.backbones import cnf, resnet_fabric
from budgetnet.backbones.fabric import Edge, EdgeGraph, Fabric, Node
from budgetnet.channels import ChannelGraph
from budgetnet.costs.edges import EdgeCosts
from budgetnet.methods.edges import choose, reestimate
from budgetnet.methods.edges.selection import USED, filled


def traced(net: Fabric, size: int) -> Fabric:
    ChannelGraph.trace(net, torch.empty(1, 3, size, size))
    return net


@pytest.fixture(scope="module")
def fabrics() -> dict[str, EdgeCosts]:
    return {
        "resnet_fabric": EdgeCosts(traced(resnet_fabric.build(10, 3, (8, 8), multiplier=0.25), 8), machines=2),
        "cnf": EdgeCosts(traced(cnf.build(10, 3, (8, 8), columns=3, channels=4), 8), machines=2),
    }


@pytest.mark.parametrize("name", ["resnet_fabric", "cnf"])
@pytest.mark.parametrize("kind", ["flops", "params", "sequential_ops"])
@pytest.mark.parametrize("part", covered((0.0, 0.1, 0.4, 0.8, 1.0), (0.0, 0.4)))
def test_a_budget_is_kept_and_no_likely_edge_that_fits_is_left_out(
    fabrics: dict[str, EdgeCosts], name: str, kind: str, part: float
) -> None:
    costs = fabrics[name]
    graph, path = costs.layout, costs.cheapest_path(kind)
    least, most = costs.price(path)[kind], costs.full()[kind]
    limit = int(least + part * (most - least))
    for seed in range(3):
        gamma = torch.rand(len(graph.edges), generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1
        kept = choose(costs, {kind: limit}, gamma, path)
        assert costs.price(kept)[kind] <= limit
        assert kept.any() and torch.equal(graph.alive(kept), kept)
        for edge in ((gamma > 0.5) & ~kept).nonzero().flatten().tolist():
            weights = [
                0.0 if here else share for here, share in zip(kept.tolist(), costs.budget_fractions({kind: limit}))
            ]
            again = graph.path(weights, kept | (gamma > 0.5), through=edge)
            assert again is None or costs.price(kept | again)[kind] > limit


def test_without_a_budget_the_likely_edges_stay_and_no_others(fabrics: dict[str, EdgeCosts]) -> None:
    costs = fabrics["cnf"]
    gamma = torch.full((len(costs.names),), 0.9)
    gamma[[3, 7, 9]] = 0.4
    kept = choose(costs, {}, gamma, costs.cheapest_path("flops"))
    assert torch.equal(kept, costs.layout.alive(gamma > 0.5))


def test_where_no_likely_path_is_left_the_likeliest_edges_make_one(fabrics: dict[str, EdgeCosts]) -> None:
    costs = fabrics["cnf"]
    gamma = torch.linspace(0.1, 0.4, len(costs.names))
    kept = choose(costs, {}, gamma, costs.cheapest_path("flops"))
    assert kept.any() and torch.equal(costs.layout.alive(kept), kept)


@pytest.mark.parametrize("name", ["resnet_fabric", "cnf"])
def test_the_cheapest_path_is_a_path_that_no_likelier_choice_undercuts(
    fabrics: dict[str, EdgeCosts], name: str
) -> None:
    costs = fabrics[name]
    graph = costs.layout
    choices = graph.alive(torch.rand(300, len(graph.edges), generator=torch.Generator().manual_seed(0)) < 0.75)
    for kind in ("flops", "params", "sequential_ops"):
        path = costs.cheapest_path(kind)
        assert torch.equal(graph.alive(path), path)
        assert all(len([i for i in graph.into[node.name] if path[i]]) <= 1 for node in graph.nodes)
        least = costs.price(path)[kind]
        assert int(costs.of(choices[choices.any(1)], (kind,))[kind].min()) >= least


def test_statistics_are_the_mean_over_batches_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    net = cnf.build(10, 3, (4, 4), columns=1, channels=4)
    weights = {name: value.clone() for name, value in net.named_parameters()}
    batches = torch.randn(3, 16, 3, 4, 4)
    reestimate(net.eval(), batches)
    with torch.no_grad():
        first = torch.stack([net.stem[0](images).mean((0, 2, 3)) for images in batches]).mean(0)
    torch.testing.assert_close(net.stem[1].running_mean, first)
    assert not net.training and net.stem[1].momentum == 0.1
    assert all(torch.equal(value, weights[name]) for name, value in net.named_parameters())


def test_what_comes_back_may_be_several_edges_of_one_path() -> None:
    """Random choices of a lattice lose whole branches on the way to the budget, or end at the fallback; they use it."""
    costs = EdgeCosts(traced(cnf.build(10, 3, (16, 16), columns=2, channels=24), 16))
    limit = costs.full()["flops"] // 2
    used = []
    for seed in range(20):
        draws = torch.rand(len(costs.names), generator=torch.Generator().manual_seed(seed))
        path = costs.cheapest_path("flops")
        kept = choose(costs, {"flops": limit}, draws, path, threshold=-1.0)
        used.append(costs.price(kept)["flops"] / limit)
    assert max(used) <= 1 and min(used) > 0.8


@pytest.mark.parametrize("name", ["resnet_fabric", "cnf"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.4, 0.8, 1.0])
def test_a_filled_budget_is_kept_and_leaves_no_room_for_any_edge(
    fabrics: dict[str, EdgeCosts], name: str, part: float
) -> None:
    costs = fabrics[name]
    graph, path = costs.layout, costs.cheapest_path("flops")
    least, most = costs.price(path)["flops"], costs.full()["flops"]
    limits = {"flops": int(least + part * (most - least))}
    weights = costs.budget_fractions(limits)
    for seed in range(3):
        gamma = torch.rand(len(graph.edges), generator=torch.Generator().manual_seed(seed))
        likely = choose(costs, limits, gamma, path)
        kept = filled(costs, limits, gamma, likely)
        used = costs.price(kept)["flops"]
        assert costs.price(likely)["flops"] <= used <= limits["flops"] and torch.equal(graph.alive(kept), kept)
        if used < 0.97 * limits["flops"]:
            for edge in (~kept).nonzero().flatten().tolist():
                free = [0.0 if here else weight for here, weight in zip(kept.tolist(), weights)]
                again = graph.path(free, through=edge)
                assert again is None or costs.price(kept | again)["flops"] > limits["flops"]


def test_one_edge_is_exchanged_where_that_fills_the_budget() -> None:
    """Of edges of 1, 3 and 4 units side by side, 1 and 3 are likely: 4 + 1 fill a budget of 5, which 3 + 1 do not."""
    nodes = (Node("first", (1, 1, 1), (0, 0)), Node("last", (1, 1, 1), (0, 1)))
    edges = {name: nn.Conv2d(1, 1, 1) for name in ("one", "three", "four")}
    graph = EdgeGraph(nodes, tuple(Edge(name, "first", "last") for name in edges))
    costs = EdgeCosts(traced(Fabric(graph, nn.Conv2d(3, 1, 1), edges, nn.Sequential(nn.Flatten(), nn.Linear(1, 2))), 1))
    gamma = torch.tensor([0.9, 0.8, 0.1])
    outside = costs.price(torch.tensor([False, False, False]))["params"]
    prices = torch.tensor([1, 3, 4])
    costs.price = lambda mask: {"params": outside + int((prices * mask).sum())}  # type: ignore[method-assign]
    costs.weights = lambda kind: prices.tolist()  # type: ignore[method-assign]
    limits = {"params": outside + 5}
    likely = choose(costs, limits, gamma, torch.tensor([True, False, False]))
    assert likely.tolist() == [True, True, False]
    assert filled(costs, limits, gamma, likely).tolist() == [True, False, True]
    assert torch.equal(filled(costs, {}, gamma, likely), likely)


@pytest.mark.parametrize("kinds", [("flops",), ("params", "flops")])
def test_of_all_masks_that_use_up_what_likely_edges_leave_the_likeliest_is_taken(kinds: tuple[str, ...]) -> None:
    costs = EdgeCosts(traced(cnf.build(10, 3, (8, 8), columns=2, channels=24), 8))
    graph, count, full, path = costs.layout, len(costs.names), costs.full(), costs.cheapest_path("flops")
    every = (torch.arange(2**count)[:, None] >> torch.arange(count)) % 2 == 1
    every = every[(graph.alive(every) == every).all(1) & every.any(1)]
    prices, taken = costs.of(every, kinds), 0
    for seed in range(12):
        limits = {kind: int((0.45 + 0.03 * seed) * full[kind]) for kind in kinds}
        gamma = 0.9 + 0.09 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gamma[[edge.target == "c1s0" for edge in graph.edges]] = 0.02  # what costs most
        likely = choose(costs, limits, gamma, path)
        kept = filled(costs, limits, gamma, likely)
        parts = torch.stack([prices[kind] / limits[kind] for kind in kinds]).amax(0)
        enough = (parts >= USED) & (parts <= 1)
        use = max(costs.price(kept)[kind] / limits[kind] for kind in kinds)
        assert (USED if enough.any() else 0) <= use <= 1
        if enough.any() and not bool((kept & likely).equal(likely)):  # for which likely edges had to go
            best = float((every[enough].double() @ gamma.logit()).max())
            assert float(gamma.logit()[kept].sum()) == pytest.approx(best, abs=1e-9)
            taken += 1
    assert taken >= 3
