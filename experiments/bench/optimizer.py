"""LBI beside torch.optim.SGD, on the parameters of a ResNet-32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph
from budgetnet.methods.growth import sparse_sets
from budgetnet.optim import LBI

from .timing import Action


def optimizers(device: torch.device) -> tuple[LBI, torch.optim.SGD]:
    """Both with momentum and weight decay, multi-tensor, on gradients that stay as they are."""
    net = backbones.build("resnet32", num_classes=10).to(device)
    kinds = sparse_sets(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32, device=device)))
    for param in net.parameters():
        param.grad = 0.01 * torch.randn_like(param)
    sparse = [param for param in net.parameters() if param in kinds]
    dense = [param for param in net.parameters() if param not in kinds and param.dim() > 1]
    vectors = [param for param in net.parameters() if param.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": sparse, "sparse": "filter", "threshold": 0.1},
        {"params": dense},
        {"params": vectors, "weight_decay": 0.0},
    ]
    lbi = LBI(groups, lr=0.1, weight_decay=5e-4)
    groups = [{"params": _copies(sparse + dense)}, {"params": _copies(vectors), "weight_decay": 0.0}]
    return lbi, torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=True)


def _copies(params: list[nn.Parameter]) -> list[nn.Parameter]:
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    for one, param in zip(copies, params, strict=True):
        one.grad = torch.zeros_like(param) if param.grad is None else param.grad.clone()
    return copies


def ten_steps(optimizer: torch.optim.Optimizer) -> Action:
    def steps() -> None:
        for _ in range(10):
            optimizer.step()

    return steps


def state_ratio(device: torch.device) -> list[float]:
    """Bytes of LBI's state divided by those of SGD with momentum."""
    lbi, sgd = optimizers(device)
    lbi.step()
    sgd.step()
    of_lbi, of_sgd = (
        sum(value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value))
        for optimizer in (lbi, sgd)
    )
    return [of_lbi / of_sgd]
