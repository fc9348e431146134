"""What one operation costs: multiply-accumulates as fvcore counts them in eval mode, from the shapes it sees.

Convolutions, linear layers and matrix products are `macs`; norms take 1 to 5 per element, resampling 1 to 4. The rest
is free. Where fvcore does not look (attention in one call, recurrent and bilinear layers, padding="same", products with
an addition) the true number is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Price(NamedTuple):
    macs: int = 0
    other: int = 0


FREE = Price()


def price(name: str, argument: Callable[..., Any], out: Any) -> Price:
    """The price of the function called `name`; argument(position, name, default) gives what it was called with."""
    rule = _PRICES.get(name)
    return FREE if rule is None else rule(argument, out)


def _convolution(argument: Callable[..., Any], out: Tensor) -> Price:
    weight = argument(1, "weight")
    images = out.shape[0] if out.dim() == weight.dim() else 1
    return Price(images * weight.numel() * math.prod(out.shape[2 - (out.dim() < weight.dim()) :]))


def _transposed_convolution(argument: Callable[..., Any], out: Tensor) -> Price:
    x, weight = argument(0, "input"), argument(1, "weight")
    images = x.shape[0] if x.dim() == weight.dim() else 1
    return Price(images * weight.numel() * math.prod(x.shape[2 - (x.dim() < weight.dim()) :]))


def _linear(argument: Callable[..., Any], out: Tensor) -> Price:
    return Price(argument(0, "input").numel() * argument(1, "weight").shape[0])


def _matmul(argument: Callable[..., Any], out: Tensor) -> Price:
    return Price(out.numel() * argument(0, "input").shape[-1])


def _added_matmul(argument: Callable[..., Any], out: Tensor) -> Price:
    return Price(out.numel() * argument(1, "mat1").shape[-1])


def _einsum(argument: Callable[..., Any], out: Tensor) -> Price:
    """Products of two tensors: the sizes of all letters multiplied."""
    equation, operands = argument(0, "equation"), argument(1, "operands")
    if isinstance(operands, Tensor):
        operands = [operand for position in (1, 2, 3) if (operand := argument(position, "", None)) is not None]
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes = {letter: size for term, x in zip(terms, operands) for letter, size in zip(term, x.shape)}
    return Price(math.prod(sizes.values()))


def _attention(argument: Callable[..., Any], out: Tensor) -> Price:
    query, key, value = argument(0, "query"), argument(1, "key"), argument(2, "value")
    return Price(query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1])


def _batch_norm(argument: Callable[..., Any], out: Tensor) -> Price:
    affine = argument(3, "weight", None) is not None
    if argument(1, "running_mean", None) is None:  # statistics of the batch, in eval mode too
        return Price(0, out.numel() * (5 if affine else 4))
    return Price(0, out.numel() * (2 if affine else 1))


def _norm(position: int) -> Callable[[Callable[..., Any], Tensor], Price]:
    def rule(argument: Callable[..., Any], out: Tensor) -> Price:
        return Price(0, out.numel() * (4 if argument(position, "weight", None) is None else 5))

    return rule


def _adaptive_average(argument: Callable[..., Any], out: Tensor) -> Price:
    return Price(0, argument(0, "input").numel())


def _interpolate(argument: Callable[..., Any], out: Tensor) -> Price:
    per_element = {"nearest": 1, "bilinear": 4}.get(str(argument(3, "mode", "nearest")), 0)
    return Price(0, per_element * out.numel() if out.dim() == 4 else 0)


_PRICES: dict[str, Callable[[Callable[..., Any], Any], Price]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _added_matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "group_norm": _norm(2),
    "layer_norm": _norm(2),
    "instance_norm": _norm(3),
    "adaptive_avg_pool2d": _adaptive_average,
    **dict.fromkeys(("interpolate", "upsample"), _interpolate),
    "upsample_nearest": lambda argument, out: Price(0, out.numel() if out.dim() == 4 else 0),
    "upsample_bilinear": lambda argument, out: Price(0, 4 * out.numel()),
    "grid_sample": lambda argument, out: Price(0, 4 * out.numel()),
}

PRICED = frozenset(_PRICES)


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside a function that is one call for Python, such as multi-head attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = self.other = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = str(func.overloadpacket).rpartition(".")[2]
        result = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
        if result is None:
            return out
        if packet in ("mm", "bmm"):
            self.macs += result.numel() * args[0].shape[-1]
        elif packet in ("addmm", "baddbmm"):
            self.macs += result.numel() * args[1].shape[-1]
        elif packet in ("mv", "dot"):
            self.macs += args[0].numel()
        elif packet in ("addmv", "addbmm"):
            self.macs += args[1].numel() * (args[2].shape[-1] if packet == "addbmm" else 1)
        elif packet == "_trilinear":  # of nn.Bilinear: (rows, first), (outputs, first, second), (rows, second)
            self.macs += args[0].shape[0] * args[1].numel() + result.numel() * args[2].shape[-1]
        elif packet in ("mkldnn_rnn_layer", "_cudnn_rnn"):  # every weight matrix is applied to every step
            steps = args[0].numel() // args[0].shape[-1]
            weights = [leaf for leaf in tree_leaves(args[1:3]) if isinstance(leaf, Tensor) and leaf.dim() == 2]
            self.macs += steps * sum(weight.numel() for weight in weights)
        elif packet in ("convolution", "_convolution"):
            space = args[0] if args[6] else result
            self.macs += space.shape[0] * math.prod(space.shape[2:]) * args[1].numel()
        elif "scaled_dot_product" in packet:
            query, key, value = args[:3]
            rows = query.numel() // query.shape[-1]
            self.macs += rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif packet in ("native_layer_norm", "native_group_norm"):
            weight = args[2] if packet == "native_layer_norm" else args[1]
            self.other += result.numel() * (4 if weight is None else 5)
        elif "batch_norm" in packet:
            self.other += result.numel() * (1 if args[1] is None else 2)
        return out


def metered(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Price]:
    """What a function gives, and what it cost by what it ran."""
    with Meter() as meter, torch._C.DisableTorchFunction():
        out = function(*args, **kwargs)
    return out, Price(meter.macs, meter.other)
