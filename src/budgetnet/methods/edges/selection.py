"""From probabilities of edges to the network that is kept: never above the budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph
from budgetnet.costs.edges import EdgeCosts
from budgetnet.methods.plan import WidthPlan

Fits = Callable[[Tensor], bool]
"""Whether the network of a choice of edges, bool (edges,), is within the budget."""


def within(costs: EdgeCosts, limits: Mapping[str, int]) -> Fits:
    """Whether none of these limits is exceeded by what of a choice lies on a path."""

    def fits(choice: Tensor) -> bool:
        price = costs.price(choice)
        return all(price[kind] <= limit for kind, limit in limits.items())

    return fits


def choose(
    costs: EdgeCosts, limits: Mapping[str, int], probabilities: Tensor, fallback: Tensor, threshold: float = 0.5
) -> Tensor:
    """bool (edges,): the edges that are kept, all of them on paths from end to end, within the limits.

    probabilities: (edges,), in any order that likelier edges stand higher in. Edges above the threshold are on; if
    there is no path, the likeliest of the others follow until there is. While that does not fit, the least likely edge
    goes without which there is still a path. If the path that is left at last does not fit, `fallback`, which does,
    takes its place. Of those that were on, the likeliest come back that fit, each with the cheapest path through it.
    """
    graph, fits = costs.layout, within(costs, limits)
    falling = probabilities.argsort(descending=True, stable=True).tolist()
    on = probabilities > threshold
    for edge in falling:
        if graph.alive(on).any():
            break
        on[edge] = True
    kept = graph.alive(on)
    for edge in reversed(falling):
        if fits(kept):
            break
        if not kept[edge]:
            continue
        without = kept.clone()
        without[edge] = False
        if (alive := graph.alive(without)).any():
            kept = alive
    if not fits(kept):
        kept = fallback.clone()
    fractions = costs.budget_fractions(limits)
    for edge in falling:
        if on[edge] and not kept[edge]:
            weights = [0.0 if here else fraction for here, fraction in zip(kept.tolist(), fractions, strict=True)]
            path = graph.path(weights, kept | on, through=edge)
            if path is not None and fits(kept | path):
                kept = kept | path
    return kept


def keep_edges(net: Fabric, names: Collection[str]) -> ChannelGraph:
    """Remove all other edges of a live, traced fabric, and trace what is left as it was traced before."""
    graph = ChannelGraph.of(net)
    gone = tuple(f"edges.{name}" for name in net.edges.keys() - set(names))
    net.keep(names)
    frozen = [name for name in graph.frozen if not f"{name}.".startswith(tuple(f"{path}." for path in gone))]
    return ChannelGraph.trace(net, torch.empty(graph.input_shape), frozen)


@dataclass(frozen=True)
class EdgePlan(WidthPlan):
    """The end of the search: the names of the edges that are kept, and their measured microseconds, if limited."""

    edges: tuple[str, ...] = field(default=(), kw_only=True)
    latency: int | None = field(default=None, kw_only=True)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "edges": list(self.edges)}
