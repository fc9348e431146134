"""Torch-Pruning, as its README and its CIFAR example have it: global magnitudes, step by step to the FLOPs."""

from __future__ import annotations

import torch
import torch_pruning as tp
from torch import nn

from experiments.peers.training import SHAPE, flops


def to_budget(net: nn.Module, limit: int, head: nn.Module) -> nn.Module:
    """Prune a trained network in place until it has at most `limit` FLOPs."""
    pruner = tp.pruner.BasePruner(
        net, torch.randn(SHAPE), importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True,
        pruning_ratio=1.0, iterative_steps=400, ignored_layers=[head],
    )  # fmt: skip
    while flops(net) > limit and pruner.current_step < pruner.iterative_steps:
        pruner.step()
    return net
