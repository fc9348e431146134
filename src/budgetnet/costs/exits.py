"""What every exit of a network costs, counted while it runs without storage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from budgetnet.backbones.exits import ExitNetwork
from budgetnet.errors import UsageError

KINDS = ("params", "macs", "flops", "published")


class ExitCosts:
    """Exact costs of one image, in whole numbers, up to every exit: by kind, one number an exit.

    "flops" and "macs" are multiply-accumulates as CostModel has them: flops is the integer that fvcore counts.
    "published" is the count of the papers on these networks: multiply-accumulates of convolutions and linear layers, an
    operation for each bias of a linear layer, each element of a ReLU and each that a window of a pooling layer holds;
    batch norm and interpolation are free. "params" are all that take part.

    shape: (channels, height, width) of the images. Raises UsageError for an operation whose cost is not known.
    """

    def __init__(self, network: ExitNetwork, shape: tuple[int, int, int]) -> None:
        self._network = copy.deepcopy(network).to("meta").eval()
        self._images = torch.empty(1, *shape, device="meta")

    @cached_property
    def cumulative(self) -> dict[str, tuple[int, ...]]:
        """Of all blocks up to the exit, whole, and of the classifiers of the exits before it: what papers print."""
        return self._counted(self._network)

    @cached_property
    def lazy(self) -> dict[str, tuple[int, ...]]:
        """Of an image that has passed the exits before and leaves here, where nothing is computed before it is read."""
        return self._counted(lambda images: list(self._network.lazily(images)))

    @cached_property
    def alone(self) -> dict[str, tuple[int, ...]]:
        """Of what this exit reads alone, where it is known that the image leaves here: no other classifier runs."""
        found = [
            self._counted(partial(self._network.exit_after, number=number)) for number in range(self._network.exits)
        ]
        return {kind: tuple(costs[kind][0] for costs in found) for kind in KINDS}

    def _counted(self, run: Callable[[Tensor], Any]) -> dict[str, tuple[int, ...]]:
        """By kind, what has been spent whenever a classifier is done."""
        counter = Counter()
        rows: list[dict[str, int]] = []
        hooks = [
            classifier.register_forward_hook(lambda *_: rows.append(counter.total()))
            for classifier in self._network.classifiers
        ]
        try:
            with torch.no_grad(), counter:
                run(self._images)
        finally:
            for hook in hooks:
                hook.remove()
        return {kind: tuple(row[kind] for row in rows) for kind in KINDS}


class Counter(TorchFunctionMode):
    """Adds up what the operations under it cost."""

    def __init__(self) -> None:
        super().__init__()
        self._spent = dict.fromkeys(KINDS[1:], 0)
        self._parameters: dict[int, int] = {}

    def total(self) -> dict[str, int]:
        """By kind, what has been spent so far."""
        return {"params": sum(self._parameters.values()), **self._spent}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        parameters = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, nn.Parameter)]
        self._parameters.update({id(parameter): parameter.numel() for parameter in parameters})
        count = COUNTED.get(func)
        if count is not None:
            for kind, cost in zip(KINDS[1:], count(args, result), strict=True):
                self._spent[kind] += cost
        elif func in MATRIX or (parameters and isinstance(result, Tensor)):
            name = getattr(func, "__name__", repr(func))
            raise UsageError(f"what {name} costs at an exit is not known: expected convolutions, linear layers, norms")
        return result


def _convolution(args: Any, result: Tensor) -> tuple[int, int, int]:
    macs = result.numel() * args[1][0].numel()  # the weight's filters: in_channels / groups · kernel
    return macs, macs, macs


def _linear(args: Any, result: Tensor) -> tuple[int, int, int]:
    macs = result.numel() * args[1].shape[1]
    bias = result.numel() if len(args) > 2 and args[2] is not None else 0
    return macs, macs, macs + bias


def _pooling(args: Any, result: Tensor) -> tuple[int, int, int]:
    size = args[1] if isinstance(args[1], tuple) else (args[1], args[1])
    return 0, 0, result.numel() * size[0] * size[1]


COUNTED: dict[Any, Callable[[Any, Tensor], tuple[int, int, int]]] = {
    F.conv2d: _convolution,
    F.linear: _linear,
    F.batch_norm: lambda _, result: (0, 2 * result.numel(), 0),
    F.relu: lambda _, result: (0, 0, result.numel()),
    F.max_pool2d: _pooling,
    torch.max_pool2d: _pooling,
    F.avg_pool2d: _pooling,
    Tensor.mean: lambda args, _: (0, 0, args[0].numel()),
    F.interpolate: lambda _, result: (0, 4 * result.numel(), 0),  # bilinear
}
"""(macs, flops, published) of the operations that have a cost, from their arguments and result."""

MATRIX = {
    torch.matmul,
    torch.bmm,
    torch.einsum,
    torch.mm,
    Tensor.matmul,
    Tensor.__matmul__,
    F.scaled_dot_product_attention,
}
"""Operations that cost something without holding a parameter."""
