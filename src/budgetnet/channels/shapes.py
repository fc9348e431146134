"""Results on the meta device that follow from shapes alone.

To ask the meta device itself is most of the time of a trace, and what it answers in Python imports torch's compiler,
which takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from budgetnet.channels.calls import Call


def result(call: Call) -> Tensor | None:
    """What a call gives, or None if it is not known from shapes, or is an error."""
    rule = _RULES.get(call.name)
    return rule(call) if rule is not None and call.tensors and all(t.is_meta for t in call.tensors) else None


def like(x: Tensor) -> Tensor:
    """A tensor of this shape, type and order."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device) if x.is_contiguous() else torch.empty_like(x)


def _elements(call: Call) -> Tensor | None:
    x, *others = call.tensors
    if not x.is_floating_point() or any(other.dtype != x.dtype for other in others):
        return None
    try:
        shape = np.broadcast_shapes(x.shape, *(other.shape for other in others)) if others else x.shape
    except ValueError:
        return None
    name = call.function.__name__
    if name.endswith("_") or name.startswith("__i") or call.kwargs.get("inplace"):
        return x if shape == x.shape else None
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _cat(call: Call) -> Tensor | None:
    x, *others = call.tensors
    dim = call.argument(1, "dim", 0)
    if not isinstance(dim, int) or not -x.dim() <= dim < x.dim() or "axis" in call.kwargs:
        return None
    shape, dim = list(x.shape), dim % x.dim()
    for other in others:
        if other.dtype != x.dtype or [*other.shape[:dim], *other.shape[dim + 1 :]] != shape[:dim] + shape[dim + 1 :]:
            return None
        shape[dim] += other.shape[dim]
    return x.new_empty(shape)


def _linear(call: Call) -> Tensor | None:
    x, weight, bias = (call.argument(place, name) for place, name in enumerate(("input", "weight", "bias")))
    fits = weight.dim() == 2 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    return x.new_empty((*x.shape[:-1], weight.shape[0])) if fits else None


def _mean(call: Call) -> Tensor | None:
    x, dim = call.tensors[0], call.argument(1, "dim")
    if not x.is_floating_point() or dim is None or {*call.kwargs} - {"input", "dim", "keepdim"}:
        return None
    dims = [dim] if isinstance(dim, int) else [*dim]
    if not dims or not all(-x.dim() <= d < x.dim() for d in dims):
        return None
    reduced, kept = {d % x.dim() for d in dims}, call.argument(2, "keepdim", False)
    return x.new_empty([1 if d in reduced else n for d, n in enumerate(x.shape) if kept or d not in reduced])


def _pooled(call: Call) -> Tensor | None:
    x, size = call.tensors[0], call.argument(1, "output_size")
    return x.new_empty((*x.shape[:-2], 1, 1)) if x.dim() > 2 and size in (1, (1, 1), [1, 1]) else None


def _convolution(call: Call) -> Tensor | None:
    x, weight = call.argument(0, "input"), call.argument(1, "weight")
    groups, padding = call.argument(6, "groups", 1), call.argument(4, "padding", 0)
    if x.dim() != weight.dim() or isinstance(padding, str) or any(t.dtype != x.dtype for t in call.tensors):
        return None
    fits = x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    fits = fits and all(tensor.shape == weight.shape[:1] for tensor in call.tensors[2:])
    stride, dilation = call.argument(3, "stride", 1), call.argument(5, "dilation", 1)
    space = _windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return torch.empty((x.shape[0], weight.shape[0], *space), dtype=x.dtype, device="meta") if fits and space else None


def _max_pool(call: Call) -> Tensor | None:
    no_options = not call.argument(5, "ceil_mode", False) and not call.argument(6, "return_indices", False)
    return _pooling(call, call.argument(4, "dilation", 1)) if no_options else None


def _average_pool(call: Call) -> Tensor | None:
    return None if call.argument(4, "ceil_mode", False) else _pooling(call, 1)


def _pooling(call: Call, dilation: int | Sequence[int]) -> Tensor | None:
    x, kernel, padding = call.tensors[0], call.argument(1, "kernel_size"), call.argument(3, "padding", 0)
    stride = call.argument(2, "stride")
    kernel = [_of(kernel, 0), _of(kernel, 1)]
    space = _windows(x.shape[-2:], kernel, kernel if stride in (None, [], ()) else stride, padding, dilation)
    fits = x.dim() in (3, 4) and all(2 * _of(padding, number) <= kernel[number] for number in (0, 1))
    return x.new_empty((*x.shape[:-2], *space)) if fits and space else None


def _windows(sizes: Sequence[int], kernel: Sequence[int], *options: int | Sequence[int]) -> list[int]:
    """How often a window fits along each dimension, or nothing if it does not. options: stride, padding, dilation."""
    space = []
    for number, (size, length) in enumerate(zip(sizes, kernel, strict=True)):
        stride, padding, dilation = (_of(option, number) for option in options)
        space.append((size + 2 * padding - dilation * (length - 1) - 1) // stride + 1)
    return space if space and min(space) > 0 else []


def _of(option: int | Sequence[int], number: int) -> int:
    """The value of an option along a dimension, which is one for all dimensions or one for each."""
    return option if isinstance(option, int) else option[number] if len(option) > 1 else option[0]


def _batch_norm(call: Call) -> Tensor | None:
    """A single value of each channel is refused in training by torch."""
    x, *known = call.tensors
    several = x.dim() > 1 and x.numel() > x.shape[1]
    return like(x) if several and all(tensor.shape == x.shape[1:2] for tensor in known) else None


def _layer_norm(call: Call) -> Tensor | None:
    x, *known = call.tensors
    shape = tuple(call.argument(1, "normalized_shape"))
    fits = {tuple(x.shape[x.dim() - len(shape) :]), *(tuple(tensor.shape) for tensor in known)} == {shape}
    return like(x) if fits else None


def _group_norm(call: Call) -> Tensor | None:
    """Of several values a group: torch refuses a single one in training."""
    x, *known = call.tensors
    groups = call.argument(1, "num_groups")
    several = x.dim() > 2 and x.shape[1] % groups == 0 and x.numel() > x.shape[0] * groups
    return like(x) if several and all(tensor.shape == x.shape[1:2] for tensor in known) else None


def _prelu(call: Call) -> Tensor | None:
    x, weight = call.tensors
    return like(x) if x.dim() > 1 and weight.numel() in (1, x.shape[1]) else None


_PLAIN = (
    "relu relu6 leaky_relu elu selu gelu silu mish tanh sigmoid hardtanh hardswish hardsigmoid softplus dropout "
    "dropout2d feature_dropout neg abs exp sqrt rsqrt square add sub mul div clamp maximum minimum"
)
"""The functions of elements that give what they get: elements of one type."""

_RULES: Mapping[str, Callable[[Call], Tensor | None]] = {
    **dict.fromkeys(_PLAIN.split(), _elements),
    "cat": _cat,
    "linear": _linear,
    "mean": _mean,
    "adaptive_avg_pool2d": _pooled,
    "avg_pool2d": _average_pool,
    "max_pool2d": _max_pool,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
}
