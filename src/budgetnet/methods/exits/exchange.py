"""What processes that share a batch tell each other, so that they find what one process with all of it would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Kept = TypeVar("Kept")


def _same(value: Kept) -> Kept:
    return value


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(tensors)


@dataclass(frozen=True)
class Exchange:
    """gather: a tensor (batch, ...) to that of all processes (processes·batch, ...), in the order of their ranks.

    average: tensors by name to their means over processes. No gradient goes through either; every process has as many
    samples.
    """

    rank: int = 0
    processes: int = 1
    gather: Callable[[Tensor], Tensor] = _same
    average: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = _copied


ALONE = Exchange()


def among_processes() -> Exchange:
    """The exchange of the default process group, which has been initialised."""
    processes = dist.get_world_size()

    def gather(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(processes)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def average(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
        dist.all_reduce(flat)
        parts = torch.split(flat / processes, [tensor.numel() for tensor in tensors.values()])
        return {name: part.view_as(tensor) for (name, tensor), part in zip(tensors.items(), parts)}

    return Exchange(dist.get_rank(), processes, gather, average)
