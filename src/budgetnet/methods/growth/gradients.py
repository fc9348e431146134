"""The gradients of new channels, by which the policy "gradient" selects groups."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from budgetnet.channels import ChannelGraph, resize
from budgetnet.channels.gradmax import norm_scale
from budgetnet.channels.shadow import copy_of

Loss = Callable[[Any, Tensor], Tensor]
"""Maps (outputs, targets) to a scalar."""


def growth_gradients(
    net: nn.Module,
    groups: Collection[str],
    batch: tuple[Tensor, Tensor],
    seed: int = 0,
    loss: Loss = functional.cross_entropy,
) -> dict[str, float]:
    """The initial gradient norm of a new channel of each group, at the outgoing weights that maximise it.

    This uses GradMax (Evci et al., ICLR 2022) as a criterion. In a copy of the traced `net`, every group gets a new
    channel in each of its blocks by init="gradmax"; then the gradient of the incoming weights on `batch` (inputs,
    targets) is computed. loss: maps (outputs, targets) to a scalar. `net` does not change.

    Raises GraphError for a group that GradMax does not support, such as one that a grouped convolution reads.
    """
    trial = copy_of(net)
    graph = ChannelGraph.of(trial)
    old = {name: graph.group(name) for name in groups}
    wider = {name: group.width + group.blocks for name, group in old.items()}
    resize(trial, wider, init="gradmax", seed=seed, batch=batch, loss=loss)
    trial.eval()
    loss(trial(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
    return {name: _norm_of_new(graph, name, group.width // group.blocks, group.blocks) for name, group in old.items()}


def _norm_of_new(graph: ChannelGraph, name: str, first: int, blocks: int) -> float:
    """Norm of the gradient of the filters from index `first` in each block, over all producers of a group.

    If the scale of the norm behind a filter is zero, the gradient of the scale counts, for a filter of norm 1.
    """
    squares = []
    for path in graph.group(name).producers:
        weight, scale = graph.model.get_parameter(f"{path}.weight"), norm_scale(graph, path)
        gradients = [weight.grad]
        if scale is not None and scale.grad is not None:
            lengths = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1).clamp_min(1e-30)
            gradients.append(torch.where(scale.detach() == 0, scale.grad / lengths, 0))
        for gradient in gradients:
            if gradient is not None:
                squares.append(gradient.reshape(blocks, -1, *gradient.shape[1:])[:, first:].double().square().sum())
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
