"""What growing a group would do to the loss, to first order: the score of the policy "gradient"."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from budgetnet.channels import ChannelGraph, resize
from budgetnet.channels.gradmax import norm_scale

Loss = Callable[[Any, Tensor], Tensor]
"""A scalar of (outputs, targets)."""


def growth_gradients(
    net: nn.Module,
    groups: Collection[str],
    batch: tuple[Tensor, Tensor],
    seed: int = 0,
    loss: Loss = functional.cross_entropy,
) -> dict[str, float]:
    """Gradient norm that one more channel of each group would begin with, at the best outgoing weights it could have.

    GradMax (Evci et al., ICLR 2022) as a criterion: every group of a copy of the traced `net` gets a channel (a block
    one of each) by init="gradmax", and the gradient of its incoming weights on `batch` (inputs, targets) is measured.
    loss: of (outputs, targets), a scalar.
    The network stays as it is. Raises GraphError where GradMax does not reach (a grouped convolution behind a group).
    """
    trial = copy.deepcopy(net)
    graph = ChannelGraph.of(trial)
    old = {name: graph.group(name) for name in groups}
    wider = {name: group.width + group.blocks for name, group in old.items()}
    resize(trial, wider, init="gradmax", seed=seed, batch=batch, loss=loss)
    trial.eval()
    loss(trial(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
    return {name: _norm_of_new(graph, name, group.width // group.blocks, group.blocks) for name, group in old.items()}


def _norm_of_new(graph: ChannelGraph, name: str, first: int, blocks: int) -> float:
    """Norm of the gradient of the filters at `first` and later in each block, over all producers of a group.

    Where the scale of a norm starts at zero instead, a filter of norm 1 times that scale is what is learned.
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
