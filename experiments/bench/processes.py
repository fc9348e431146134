"""The scaling model of README.md against two processes on this machine."""

from __future__ import annotations

import multiprocessing
import tempfile
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from budgetnet import backbones

from . import scaling
from .timing import seconds

_BATCH, _SIZE = 32, 96
"""Images of all processes together, and their height and width."""


def predicted_against_measured(repeats: int) -> list[float]:
    """How near the model comes to a measured step, 1 at best: ResNet-18 on 2 processes of one thread, gloo.

    The model of scaling.py, with the compute time of half a batch and the time of an all-reduce of 4 bytes a parameter
    as they are measured here, and nothing hidden: the CPU that computes also sends.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(2) as pool:
        address = f"file://{folder}/store"
        return pool.starmap(_rank, [(rank, address, repeats) for rank in range(2)], chunksize=1)[0]


def _rank(rank: int, address: str, repeats: int) -> list[float]:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    net = backbones.build("resnet18", num_classes=1000)
    images, labels = torch.randn(_BATCH // 2, 3, _SIZE, _SIZE), torch.randint(1000, (_BATCH // 2,))
    gradients = torch.zeros(sum(param.numel() for param in net.parameters()))
    wrapped = DistributedDataParallel(net)

    def step(model: nn.Module) -> None:
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]

    def together(action: Any) -> float:
        distributed.barrier()
        taken = torch.tensor(seconds(action))
        distributed.all_reduce(taken, distributed.ReduceOp.MAX)
        return float(taken)

    def alone(model: nn.Module) -> None:
        with wrapped.no_sync():
            step(model)

    found = []
    for repeat in range(repeats + 1):
        compute = together(lambda: alone(wrapped))
        reduction = together(lambda: distributed.all_reduce(gradients))
        whole = together(lambda: step(wrapped))
        if repeat:
            predicted = compute + scaling.shown(compute, reduction, hidden=0.0)
            found.append(min(predicted / whole, whole / predicted))
    distributed.destroy_process_group()
    return found
