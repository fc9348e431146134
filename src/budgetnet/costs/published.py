"""FLOPs as the tables of LW-DNA (CVPR 2021) and DHP (ECCV 2020) count them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

_PER_ELEMENT = {"batch_norm": 2, "relu": 1, "relu6": 1, "prelu": 1, "hardswish": 1, "hardsigmoid": 1}


class _Elements(TorchFunctionMode):
    """Adds up what norms and rectifiers cost."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.total += _PER_ELEMENT.get(getattr(func, "__name__", ""), 0) * out.numel()
        return out


def published_flops(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image, 2 for each element of a batch norm, 1 for
    each of a ReLU and what is made of one (ReLU6, PReLU, hard swish, hard sigmoid).

    input_shape: (channels, height, width). Every activation counts; the tables count one that a block uses several
    times once (ResNet-50: 4.1177 G of 4.1210 G) and a transposed convolution at the size of its output (U-Net: 3.41 G).
    """
    network = copy.deepcopy(network).to("meta").eval()
    elements = _Elements()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, elements:
        network(torch.empty(1, *input_shape, device="meta"))
    return int(counter.get_total_flops()) // 2 + elements.total
