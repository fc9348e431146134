"""Give filters behind a batch norm another length: the network's function stays, what a step changes does not."""

from __future__ import annotations

import math

import torch
from torch import nn

from budgetnet.channels.graph import Graph
from budgetnet.internals import AnyBatchNorm

FRESH_NORM = math.sqrt(2)
"""L2 norm of a filter as `resize` draws it with init="he", in the mean."""


@torch.no_grad()
def rescale_filters(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, norm: float = FRESH_NORM
) -> list[str]:
    """Scale every filter that a batch norm reads, and nothing else does, to the L2 norm `norm`, in place.

    The network's function stays the same (in eval mode up to the norm's epsilon, since running statistics are scaled
    along). A step of SGD turns a filter of norm n by an angle that falls as 1/n², and training lengthens filters: old
    ones would learn slower than those that growth has just added. Momentum is scaled with the gradients, by 1/c for
    weights times c, and LBI's Z with the weights. A filter of zeros stays. Returns the modules whose weights changed.
    Raises GraphError for an untraced model.
    """
    graph = Graph.of(model)
    changed = []
    for path, norm_path in graph.norm_after.items():
        layer, reads = model.get_submodule(path), model.get_submodule(norm_path)
        if not isinstance(reads, AnyBatchNorm) or not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        weight = layer.weight
        lengths = torch.linalg.vector_norm(
            weight.flatten(1), dim=1, dtype=torch.promote_types(weight.dtype, torch.float32)
        )
        factor = torch.where(lengths > 0, norm / lengths, 1.0).to(weight.dtype)
        each = factor.view(-1, *[1] * (weight.dim() - 1))
        weight.mul_(each)
        if reads.running_mean is not None and reads.running_var is not None:
            bias = torch.zeros_like(reads.running_mean) if layer.bias is None else layer.bias
            reads.running_mean.sub_(bias).mul_(factor).add_(bias)
            reads.running_var.mul_(factor**2)
        state = {} if optimizer is None else optimizer.state.get(weight, {})
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"].div_(each)
        if "z" in state:
            state["z"].mul_(each)
        changed.append(path)
    return changed
