"""The closed table of operations: what each does to the channel axis, and what it costs.

A row is a function of the Builder, which knows the operation and what it reads; it returns the layout of
dimension 1 of the result. Costs are those of fvcore in eval mode: multiply-accumulates of convolutions and linear
layers, 2 per batch-norm element, 5 per element of a norm across channels, and what resampling takes; the rest is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from budgetnet.channels.builder import Builder, Draft


def _argument(b: Builder, position: int, name: str, default: Any = None) -> Any:
    """An argument of the operation, however it was passed."""
    node = b.node
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# -- layers -------------------------------------------------------------------------------------------------------


def _convolution(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    source, groups = b.layout(), module.groups
    positions = math.prod(value.shape[2:]) * math.prod(module.kernel_size)
    if groups == module.in_channels and groups > 1:
        multiplier = module.out_channels // groups
        layout = [(group, factor * multiplier, parts) for group, factor, parts in source]
        b.term(path, True, positions, layout)
        b.attributes[path, "groups"] = source
    else:
        layout = b.produce(path, module.out_channels, "convolution")
        if groups > 1:
            if len(source) != 1:
                raise b.error("is a grouped convolution after a concatenation, which is not followed")
            for group, _, _ in (*source, *layout):
                group.root.blocks = math.lcm(group.root.blocks, groups)
        b.axis(f"{path}.weight", 1, [(group, factor, parts * groups) for group, factor, parts in source])
        b.consume(path, source)
        b.term(path, True, positions, source, layout, groups)
    b.axis(f"{path}.weight", 0, layout)
    if module.bias is not None:
        b.axis(f"{path}.bias", 0, layout)
    b.attributes[path, "in_channels"], b.attributes[path, "out_channels"] = source, layout
    return layout


def _linear(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    source = b.layout()
    if value.dim() != 2:
        raise b.error(f"is followed on (batch, features) only, not on {tuple(b.shape())}")
    layout = b.produce(path, module.out_features, "linear")
    b.axis(f"{path}.weight", 0, layout)
    b.axis(f"{path}.weight", 1, source)
    if module.bias is not None:
        b.axis(f"{path}.bias", 0, layout)
    b.attributes[path, "in_features"], b.attributes[path, "out_features"] = source, layout
    b.consume(path, source)
    b.term(path, True, 1, source, layout)
    return layout


def _batch_norm(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    b.attributes[path, "num_features"] = b.layout()
    return _norm(b, module, path, value, 2 if module.affine else 1)


def _group_norm(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    source = b.layout()
    if len(source) != 1:
        raise b.error("is a GroupNorm after a concatenation, which is not followed")
    source[0][0].root.blocks = math.lcm(source[0][0].root.blocks, module.num_groups)
    b.attributes[path, "num_channels"] = source
    return _across_channels(b, module, path, value, module.affine)


def _layer_norm(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    if len(module.normalized_shape) != value.dim() - 1:
        raise b.error(f"is followed over all but the batch, not over {tuple(module.normalized_shape)}")
    b.attributes[path, "normalized_shape"] = b.layout()
    return _across_channels(b, module, path, value, module.elementwise_affine)


def _across_channels(b: Builder, module: Any, path: str, value: torch.Tensor, affine: bool) -> Draft:
    for group, _, _ in b.layout():
        group.root.mixed = True
    return _norm(b, module, path, value, 5 if affine else 4)


def _norm(b: Builder, module: Any, path: str, value: torch.Tensor, per_element: int) -> Draft:
    source = b.layout()
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.dim() > 0:
            b.axis(f"{path}.{name}", 0, source)
    b.term(path, False, per_element * math.prod(value.shape[2:]), source)
    (previous,) = b.sources()
    if previous.op == "call_module" and len(previous.users) == 1:
        b.norm_after.setdefault(str(previous.target), path)
    return source


def _keep_module(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    return b.layout()


def _adaptive_average_module(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    return _adaptive_average(b, value)


def _upsample_module(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    return _upsampled(b, module.mode, value, path)


def _flatten_module(b: Builder, module: Any, path: str, value: torch.Tensor) -> Draft:
    if module.start_dim != 1 or module.end_dim not in (-1, len(b.shape()) - 1):
        raise b.error("is followed to (batch, features) only")
    return _flattened(b)


# -- functions and methods ----------------------------------------------------------------------------------------


def _keep(b: Builder, value: torch.Tensor) -> Draft:
    return b.layout()


def _adaptive_average(b: Builder, value: torch.Tensor) -> Draft:
    b.term(b.node.name, False, math.prod(b.shape()[2:]), b.layout())
    return b.layout()


def _interpolate(b: Builder, value: torch.Tensor) -> Draft:
    return _upsampled(b, str(_argument(b, 3, "mode", "nearest")), value, b.node.name)


def _upsampled(b: Builder, mode: str, value: torch.Tensor, where: str) -> Draft:
    per_element = {"nearest": 1, "bilinear": 4}.get(mode)
    if per_element is None:
        raise b.error(f"has no known cost with mode={mode!r}; use 'nearest' or 'bilinear'")
    b.term(where, False, per_element * math.prod(value.shape[2:]), b.layout())
    return b.layout()


def _join(b: Builder, value: torch.Tensor) -> Draft:
    """Element-wise operation of tensors, or of a tensor and a number."""
    if any(b.value(a).dim() != value.dim() for a in b.sources()):
        raise b.error("joins tensors of different rank")
    full = [a for a in b.sources() if b.value(a).shape[1] == value.shape[1]]
    for single in b.sources():  # a one-channel mask spread over all channels: its own width must stay 1
        if b.value(single).shape[1] != value.shape[1]:
            b.freeze(b.layouts[single])
    for other in full[1:]:
        b.tie(b.layouts[full[0]], b.layouts[other])
    return b.layouts[full[0]]


def _concatenate(b: Builder, value: torch.Tensor) -> Draft:
    if _argument(b, 1, "dim", 0) not in (1, 1 - value.dim()):
        raise b.error("is followed along the channels (dim=1) only")
    listed = _argument(b, 0, "tensors")
    return [segment for a in listed for segment in b.layouts[a]]


def _reduce(b: Builder, value: torch.Tensor) -> Draft:
    dims = _argument(b, 1, "dim")
    reduced = {d % len(b.shape()) for d in ([dims] if isinstance(dims, int) else dims or range(len(b.shape())))}
    if reduced & {0, 1}:
        raise b.error("is followed over space only (dim=(2, 3))")
    return b.layout()


def _flatten(b: Builder, value: torch.Tensor) -> Draft:
    end = _argument(b, 2, "end_dim", -1)
    if _argument(b, 1, "start_dim", 0) == 2 and value.dim() == 3:
        raise b.error("is followed to (batch, features) only")
    if _argument(b, 1, "start_dim", 0) != 1 or end not in (-1, len(b.shape()) - 1):
        raise b.error("is followed to (batch, features) only; write x.flatten(1)")
    return _flattened(b)


def _view(b: Builder, value: torch.Tensor) -> Draft:
    """To (batch, features), or between (batch, channels) and (batch, channels, 1, 1)."""
    shape = b.shape()
    sizes = b.node.args[1:] or (_argument(b, 1, "shape"),)
    sizes = tuple(sizes[0]) if isinstance(sizes[0], (tuple, list, torch.Size)) else sizes
    if len(sizes) > 1 and isinstance(sizes[1], int) and sizes[1] != -1 and not _is_constant(b):
        raise b.error(
            f"fixes the number of channels or features to {sizes[1]}; write x.flatten(1) or x.size(1) instead"
        )
    if value.shape[0] == shape[0] and value.dim() == 2:
        return _flattened(b)
    if value.shape[:2] == shape[:2] and value.shape[2:].numel() == shape[2:].numel():
        return b.layout()
    raise b.error(f"reshapes {tuple(shape[1:])} to {tuple(value.shape[1:])}, which is not followed")


def _flattened(b: Builder) -> Draft:
    spatial = math.prod(b.shape()[2:])
    return [(group, factor * spatial, parts) for group, factor, parts in b.layout()]


def _is_constant(b: Builder) -> bool:
    return all(group.root.frozen for group, _, _ in b.layout())


def _index(b: Builder, value: torch.Tensor) -> Draft:
    """Spatial slicing, x[:, :, ::2, ::2], and added dimensions at the end, x[:, :, None, None]."""
    index = _argument(b, 1, "index")
    index = index if isinstance(index, tuple) else (index,)
    whole = [part is Ellipsis or part == slice(None) for part in index[:2]]
    if len(whole) < 2 or not all(whole) or (Ellipsis in index[:2] and len(index) > len(b.shape()) - 1):
        raise b.error("is followed over space only (x[:, :, ...]); channels cannot be picked out")
    return b.layout()


def _space_only(b: Builder, value: torch.Tensor) -> Draft:
    """squeeze and unsqueeze of dimensions behind the channels."""
    dims = _argument(b, 1, "dim")
    rank = max(len(b.shape()), value.dim())
    if dims is None or {d % rank for d in ([dims] if isinstance(dims, int) else dims)} & {0, 1}:
        raise b.error("is followed behind the channels only; name the dimensions, such as squeeze((2, 3))")
    return b.layout()


def _pad(b: Builder, value: torch.Tensor) -> Draft:
    if len(_argument(b, 1, "pad")) > 2 * (len(b.shape()) - 2):
        raise b.error("pads channels; use budgetnet.backbones.match_channels(x, like), which follows widths")
    return b.layout()


def _match_channels(b: Builder, value: torch.Tensor) -> Draft:
    source, target = b.layouts[_argument(b, 0, "x")], b.layouts[_argument(b, 1, "like")]
    b.joins.append((source, target))
    return target


# -- the table ----------------------------------------------------------------------------------------------------

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid,
)  # fmt: skip
_ACTIVATION_NAMES = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid", "hardtanh",
    "hardswish", "hardsigmoid", "softplus", "logsigmoid", "relu_", "leaky_relu_", "elu_", "tanh_", "sigmoid_",
)  # fmt: skip
_OTHER = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip

MODULES: dict[type[nn.Module], Callable[[Builder, Any, str, torch.Tensor], Draft]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Flatten: _flatten_module,
    nn.AdaptiveAvgPool2d: _adaptive_average_module,
    nn.Upsample: _upsample_module,
    **dict.fromkeys((*_ACTIVATIONS, *_OTHER), _keep_module),
}

FUNCTIONS: dict[str, Callable[[Builder, torch.Tensor], Draft]] = {
    **dict.fromkeys(_ACTIVATION_NAMES, _keep),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_max_pool2d"), _keep),
    **dict.fromkeys(("dropout", "dropout2d", "feature_dropout", "contiguous", "clone", "neg"), _keep),
    **dict.fromkeys(("add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_", "expand_as"), _join),
    **dict.fromkeys(("truediv", "itruediv", "div", "div_"), _join),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("mean", "sum", "amax"), _reduce),
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("squeeze", "unsqueeze"), _space_only),
    **dict.fromkeys(("interpolate", "upsample"), _interpolate),
    "adaptive_avg_pool2d": _adaptive_average,
    "flatten": _flatten,
    "getitem": _index,
    "pad": _pad,
    "match_channels": _match_channels,
}

INTEGERS = {"size", "getattr", "dim", "numel", "getitem", "add", "sub", "mul", "floordiv", "mod", "truediv"}
"""What may be computed from sizes; the result is a number, which carries no channels."""
