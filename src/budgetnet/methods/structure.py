"""The structure of a trained network, edges, depths and widths, given to a full backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from budgetnet.channels import ChannelGraph, resize
from budgetnet.channels.depth import change_depth, depths, find_stages
from budgetnet.costs.pricing import EdgePricing, pricing_of
from budgetnet.methods.edges.selection import keep_edges


def give_structure(net: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a traced full backbone, in place, the structure that the entry "budgetnet" of a checkpoint describes.

    Raises UsageError and GraphError for a checkpoint of another backbone.
    """
    pricing, edges = pricing_of(net), state.get("edges")
    if isinstance(pricing, EdgePricing) and edges is not None and set(edges) != set(pricing.fabric.edges):
        keep_edges(pricing.fabric, edges)
    if deep := state["method"].get("depths"):
        stages = find_stages(net)
        now = depths(net, stages)
        change_depth(net, stages, {name: depth for name, depth in deep.items() if now.get(name) != depth}, seed=0)
    widths = ChannelGraph.of(net).widths
    plan = {name: width for name, width in state["widths"].items() if widths.get(name) != width}
    if plan:
        resize(net, plan, seed=0)
