"""Measured times of modules and networks on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from budgetnet.backbones.fabric import Fabric

SAMPLES = 9
"""Number of measurements of each module, of which the median is used."""

_WARM_UP = 3


@torch.no_grad()
def timed(compute: Callable[[], object], device: torch.device, samples: int = SAMPLES) -> list[int]:
    """Time `compute` several times: `samples` whole numbers of microseconds, at least 1, until the device is done."""
    found = []
    for number in range(_WARM_UP + samples):
        start = _now(device)
        compute()
        if number >= _WARM_UP:
            found.append(max(1, round((_now(device) - start) * 1e6)))
    return found


def edge_latencies(net: Fabric, image_shape: Sequence[int]) -> Tensor:
    """Microseconds for one image in eval mode of stem and head together and of every edge, int64 (samples, 1 + edges).

    image_shape: (channels, height, width). The device and precision are those of the network, which does not change.
    """
    shapes = {node.name: node.shape for node in net.layout.nodes}
    device, training = next(net.parameters()).device, net.training
    image, last = _one(net, image_shape), _one(net, net.layout.nodes[-1].shape)
    net.eval()
    try:
        columns = [timed(lambda: (net.stem(image), net.head(last)), device)]
        for edge in net.layout.edges:
            module, value = net.edges[edge.name], _one(net, shapes[edge.source])
            columns.append(timed(lambda module=module, value=value: module(value), device))  # type: ignore[misc]
    finally:
        net.train(training)
    return torch.tensor(columns).T.contiguous()


def latency_of(net: Fabric, alive: Tensor, image_shape: Sequence[int]) -> int:
    """Median microseconds for one image, in eval mode, of the network with the edges `alive`, bool (edges,).

    image_shape: (channels, height, width).
    """
    training, image, masks = net.training, _one(net, image_shape), alive[None]
    net.eval()
    try:
        return sorted(timed(lambda: net.masked(image, masks), image.device))[SAMPLES // 2]
    finally:
        net.train(training)


def _one(net: Fabric, shape: Sequence[int]) -> Tensor:
    like = next(net.parameters())
    return torch.zeros(1, *shape, device=like.device, dtype=like.dtype)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
