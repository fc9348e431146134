"""Criteria that score filters by their weights alone: pure functions from a traced network to scores, (width,)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.errors import UsageError
from budgetnet.methods.pruning.coupled import Scores


def _by_producer(graph: ChannelGraph, score: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply `score` to the filters, (filters, entries), of every convolution, and add up the producers of a group."""
    scores: dict[str, Tensor] = {}
    for group in graph.groups:
        if group.kind == "convolution":
            weights = [graph.model.get_parameter(f"{path}.weight").detach().flatten(1) for path in group.producers]
            scores[group.name] = torch.stack([score(weight.double()) for weight in weights]).sum(0).cpu()
    return scores


def l1(graph: ChannelGraph) -> Scores:
    """Sum of absolute weights of a filter (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017)."""
    return _by_producer(graph, lambda filters: filters.abs().sum(1))


def l2(graph: ChannelGraph) -> Scores:
    """Euclidean norm of a filter (He et al., "Soft Filter Pruning", IJCAI 2018)."""
    return _by_producer(graph, lambda filters: filters.norm(dim=1))


def fpgm(graph: ChannelGraph) -> Scores:
    """Sum of the distances to the layer's other filters (He et al., "Filter Pruning via Geometric Median", CVPR 2019).

    A filter near the geometric median is the easiest to replace by the others.
    """
    return _by_producer(graph, lambda filters: torch.cdist(filters, filters).sum(1))


def norm_scale(graph: ChannelGraph) -> Scores:
    """|γ| of the batch norm behind a filter (Liu et al., "Network Slimming", ICCV 2017).

    Raises UsageError for a convolution without a batch norm.
    """
    scores: dict[str, Tensor] = {}
    for group in graph.groups:
        if group.kind != "convolution":
            continue
        scales = []
        for path in group.producers:
            norm = graph.norm_after.get(path)
            scale = None if norm is None else graph.model.get_submodule(norm)._parameters.get("weight")
            if scale is None:
                raise UsageError(
                    f"method=slimming prunes by the scales of batch norms, and {path} has none behind it; use another "
                    "method, such as l1"
                )
            scales.append(scale.detach().double().abs().cpu())
        scores[group.name] = torch.stack(scales).sum(0)
    return scores
