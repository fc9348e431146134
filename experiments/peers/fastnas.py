"""FastNAS of NVIDIA's Model Optimizer, as its guide and its ResNet-20 notebook have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import modelopt.torch.prune as mtp
import torch
from torch import nn

from experiments.peers.training import SHAPE

DIVISOR = 4
"""Widths are multiples of it. The notebook has 16 for layers of 16 to 64 filters, which leaves one to four widths."""

ROOM = 0.98
"""The part of the budget that is asked for: it does not count batch norms, which fvcore does."""


def to_budget(
    net: nn.Module, limit: int, score: Callable[[nn.Module], float], batches: Iterable[object], folder: Path
) -> nn.Module:
    """Search the widths of a trained network for the best score with at most `limit` FLOPs, which it counts double."""
    config = mtp.fastnas.FastNASConfig().model_dump()
    config["nn.Conv2d"]["*"]["channel_divisor"] = DIVISOR
    config["nn.BatchNorm2d"]["*"]["feature_divisor"] = DIVISOR
    config["nn.Linear"]["*"]["feature_divisor"] = DIVISOR
    found, _ = mtp.prune(
        net, mode=[("fastnas", config)], constraints={"flops": 2 * ROOM * limit}, dummy_input=torch.randn(SHAPE),
        config={"score_func": score, "checkpoint": str(folder / "search.pth"), "data_loader": batches},
    )  # fmt: skip
    return found
