"""Selection of edges by their probabilities, never above the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetnet.backbones.fabric import EdgeGraph, Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.costs.edges import EdgeCosts
from budgetnet.methods.plan import WidthPlan

USED = 0.97
"""The part of a limit to which a budget is used up, if edges allow."""
Fits = Callable[[Tensor], bool]
"""Whether the network of an edge mask, bool (edges,), is within the budget."""


def within(costs: EdgeCosts, limits: Mapping[str, int]) -> Fits:
    """A function that tells whether a mask meets all limits, counting edges on a path from input to output alone."""

    def fits(mask: Tensor) -> bool:
        price = costs.price(mask)
        return all(price[kind] <= limit for kind, limit in limits.items())

    return fits


def choose(
    costs: EdgeCosts, limits: Mapping[str, int], probabilities: Tensor, fallback: Tensor, threshold: float = 0.5
) -> Tensor:
    """The selected edges within the limits, bool (edges,), all of which lie on a path from input to output.

    probabilities: (edges,), or any other scores that are higher for likelier edges.
    fallback: a path within the limits, bool (edges,).

    1. Turn on all edges above `threshold`, and then the likeliest others until there is a path.
    2. Remove the least likely edges, as long as a path remains, until the rest fits. If no such rest fits, take
       `fallback` instead.
    3. Of the edges from step 1 that are missing, add back the likeliest that fit, each with the cheapest path through
       it.
    """
    graph, fits = costs.layout, within(costs, limits)
    likeliest_first = probabilities.argsort(descending=True, stable=True).tolist()
    on = probabilities > threshold
    for edge in likeliest_first:
        if graph.alive(on).any():
            break
        on[edge] = True
    selected = _reduced(graph.alive(on), likeliest_first, graph, fits)
    if not fits(selected):
        selected = fallback.clone()
    return _with_likeliest(costs, limits, probabilities, selected, among=on)


def filled(costs: EdgeCosts, limits: Mapping[str, int], probabilities: Tensor, selected: Tensor) -> Tensor:
    """The selected edges and those that use up the budget beside them, bool (edges,).

    probabilities: (edges,), in 0..1. selected: a mask within the limits, all edges on a path from input to output.

    The likeliest edges that fit are added, each with the cheapest path through it, until none fits. If the limit that
    is used most is then used to less than `USED`, the likeliest of all masks that use that much of one is taken
    instead, if there is any, and filled again. Without limits nothing is added.
    """
    if not limits:
        return selected
    full = _with_all_that_fit(costs, limits, probabilities, selected)
    if _use(costs, limits, full) >= USED:
        return full
    logits = torch.logit(probabilities.double(), eps=1e-12)
    found = [likeliest(costs, limits, logits, kind) for kind in limits if kind != "sequential_ops"]
    best = max((mask for mask in found if mask is not None), key=lambda mask: float(logits[mask].sum()), default=full)
    return _with_all_that_fit(costs, limits, probabilities, best)


def likeliest(costs: EdgeCosts, limits: Mapping[str, int], logits: Tensor, kind: str) -> Tensor | None:
    """The mask with the largest sum of logits within the limits that uses `USED` of the limit on one kind of cost.

    It solves an integer program, in which an edge needs one that leads to it and one that leads on. None if there is no
    such mask, or if its sequential operations, which are no sum over edges, are too many.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # which most budgets are used up without

    graph, numbers = costs.layout, range(len(logits))
    path = costs.cheapest_path(kind)
    price, rows = costs.price(path), list[tuple[list[float], float, float]]()
    for each, most in limits.items():
        if each != "sequential_ops":
            weights = torch.tensor(costs.weights(each), dtype=torch.float64) / most
            fixed = price[each] / most - float(weights[path].sum())
            rows.append((weights.tolist(), USED - fixed if each == kind else 0.0, 1 - fixed))
    for number, edge in enumerate(graph.edges):
        for end, node, side in ((graph.first, edge.source, "target"), (graph.last, edge.target, "source")):
            if node != end:
                row = [float(getattr(other, side) == node) for other in graph.edges]
                rows.append(([value - (place == number) for place, value in zip(numbers, row)], 0.0, math.inf))
    rows.append(([float(edge.target == graph.last) for edge in graph.edges], 1.0, math.inf))
    matrix, least, most_of = zip(*rows, strict=True)
    done = milp(-logits.numpy(), integrality=np.ones(len(logits)), bounds=Bounds(0, 1),
                constraints=LinearConstraint(np.array(matrix), least, most_of))  # fmt: skip
    mask = None if done.x is None else torch.from_numpy(done.x > 0.5)
    return mask if mask is not None and within(costs, limits)(mask) else None


def _use(costs: EdgeCosts, limits: Mapping[str, int], mask: Tensor) -> float:
    """The largest fraction of a limit that a mask costs."""
    price = costs.price(mask)
    return max(price[kind] / limit for kind, limit in limits.items())


def _with_all_that_fit(costs: EdgeCosts, limits: Mapping[str, int], probabilities: Tensor, selected: Tensor) -> Tensor:
    """The mask to which no edge can be added: what was added makes the paths of others cheaper."""
    while True:
        more = _with_likeliest(costs, limits, probabilities, selected, among=torch.ones_like(selected))
        if torch.equal(more, selected):
            return selected
        selected = more


def _with_likeliest(
    costs: EdgeCosts, limits: Mapping[str, int], probabilities: Tensor, selected: Tensor, among: Tensor
) -> Tensor:
    """The mask with the likeliest edges of `among` that fit, each with the cheapest path through it."""
    fits, fractions = within(costs, limits), costs.budget_fractions(limits)
    for edge in probabilities.argsort(descending=True, stable=True).tolist():
        if among[edge] and not selected[edge]:
            weights = [0.0 if free else cost for free, cost in zip(selected.tolist(), fractions, strict=True)]
            path = costs.layout.path(weights, selected | among, through=edge)
            if path is not None and fits(selected | path):
                selected = selected | path
    return selected


def _reduced(selected: Tensor, likeliest_first: Sequence[int], graph: EdgeGraph, fits: Fits) -> Tensor:
    """The mask without the least likely edges, as long as a path remains, until it fits."""
    for edge in reversed(likeliest_first):
        if fits(selected):
            break
        if not selected[edge]:
            continue
        without = selected.clone()
        without[edge] = False
        if (alive := graph.alive(without)).any():
            selected = alive
    return selected


def keep_edges(net: Fabric, names: Collection[str]) -> ChannelGraph:
    """Remove all edges but `names` from a live, traced fabric, and trace it again with the same groups frozen."""
    graph = ChannelGraph.of(net)
    gone = tuple(f"edges.{name}" for name in net.edges.keys() - set(names))
    net.keep(names)
    frozen = [name for name in graph.frozen if not f"{name}.".startswith(tuple(f"{path}." for path in gone))]
    return ChannelGraph.trace(net, torch.empty(graph.input_shape), frozen)


@dataclass(frozen=True)
class EdgePlan(WidthPlan):
    """The end of the search.

    edges: the names of the selected edges. latency: the measured time of their network in microseconds, if it is
    limited.
    """

    edges: tuple[str, ...] = field(default=(), kw_only=True)
    latency: int | None = field(default=None, kw_only=True)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "edges": list(self.edges)}
