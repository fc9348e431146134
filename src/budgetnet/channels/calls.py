"""One call of a function, what it is called, and where in the user's code it stands."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from budgetnet.channels import shapes
from budgetnet.channels.labels import Planes

NOT_THE_USERS = (str(Path(__file__).parent), str(Path(torch.__file__).parent), "<")
"""Where the files begin whose lines are not the user's."""


class Place(NamedTuple):
    """Where an operation stands: its name, the module that runs it, and the line of the user's code."""

    operation: str
    module: str
    file: str
    line: int
    own: bool  # called by a module that is not one of torch's own layers

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        where = f"module {self.module!r}" if self.module else "the network's forward"
        line = f" ({Path(self.file).name}:{self.line}: {code})" if self.file else ""
        return f"operation {self.operation!r} in {where}{line}"


class Cost(NamedTuple):
    """Multiply-accumulates of one image: `amount` now, in proportion to the lengths of `factors` ((n,) labels each).

    divisor: of a grouped convolution, the number of its groups. matrix: convolutions and the like.
    """

    module: str
    matrix: bool
    amount: int
    factors: tuple[Tensor, ...]
    divisor: int = 1


class Event(NamedTuple):
    """One operation: its name, the line of the user's code and the module that runs it, and what it gave."""

    name: str
    line: tuple[str, int]
    module: str
    inputs: tuple[Planes, ...]
    outputs: tuple[tuple[tuple[int, ...], Planes], ...]

    def what(self) -> tuple[Any, ...]:
        """What was run, wherever in the trace."""
        return self.name, self.line, self.module, *(shape for shape, _ in self.outputs)

    def labels(self) -> list[Tensor]:
        """Of all that it read and gave."""
        given = (planes for _, planes in self.outputs)
        return [plane.labels for planes in (*self.inputs, *given) for plane in planes]


@dataclass
class Call:
    """One call of a function."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor] = field(default_factory=list)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def run(self) -> Any:
        known = shapes.result(self)
        return self.function(*self.args, **self.kwargs) if known is None else known

    def tensor(self) -> Tensor:
        """The one tensor that it gives."""
        out = self.run()
        assert isinstance(out, Tensor)
        return out


def first(call: Call) -> Tensor:
    return call.tensors[0]


def leaves(value: Any) -> list[Tensor]:
    """The tensors of a result."""
    found: list[Tensor] = []
    collect(value, found)
    return found


def collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list, type({}.values()))):
        for part in value:
            collect(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            collect(part, found)


def one_device(
    tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Constants that forward makes on the CPU meet tensors on the meta device."""
    if not any(t.is_meta for t in tensors) or all(t.is_meta or t.dim() == 0 for t in tensors):
        return args, kwargs

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor) and not value.is_meta and value.dim() > 0:
            twin = value.to("meta")
            twin._real = value  # type: ignore[attr-defined]
            if (carried := getattr(value, "_carried", None)) is not None:
                twin._carried = carried  # type: ignore[attr-defined]
            return twin
        if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
            return type(value)(moved(part) for part in value)
        return value

    return tuple(moved(arg) for arg in args), {name: moved(value) for name, value in kwargs.items()}


_NAMES: dict[Any, str] = {}
_DUNDER = {
    "__radd__": "add", "__rsub__": "sub", "__rmul__": "mul", "__rtruediv__": "div", "__rdiv__": "div",
    "__truediv__": "div", "__itruediv__": "div", "__idiv__": "div", "true_divide": "div", "divide": "div",
    "multiply": "mul", "subtract": "sub", "__rpow__": "pow", "__rmatmul__": "matmul", "__imatmul__": "matmul",
    "__rfloordiv__": "floor_divide", "__floordiv__": "floor_divide", "__mod__": "remainder",
    "concat": "cat", "concatenate": "cat", "__getitem__": "getitem", "__setitem__": "setitem",
    "absolute": "abs", "negative": "neg", "clip": "clamp", "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d", "max_pool3d_with_indices": "max_pool3d",
    "adaptive_max_pool1d_with_indices": "adaptive_max_pool1d",
    "adaptive_max_pool2d_with_indices": "adaptive_max_pool2d", "log_softmax_": "log_softmax",
    "fractional_max_pool2d_with_indices": "fractional_max_pool2d",
    "fractional_max_pool3d_with_indices": "fractional_max_pool3d",
    "log_sigmoid": "logsigmoid", "_threshold": "threshold", "col2im": "fold",
}  # fmt: skip


def name_of(func: Any) -> str:
    """The common name of a function or method: F.relu, torch.relu and Tensor.relu_ are all 'relu'."""
    try:
        return _NAMES[func]
    except (KeyError, TypeError):
        pass
    name = str(getattr(func, "__name__", func))
    if isinstance(func, torch._ops.OpOverload):  # in a scripted function, or called as torch.ops.aten.relu
        name = func._schema.name.removeprefix("aten::")
        name = f"aten.{name}" if name in ("batch_norm", "instance_norm") else name  # they take theirs in another order
    if name == "__get__":
        return f"get {getattr(func.__self__, '__name__', '')}"  # such a method is made anew at each access
    if func is torch.nn.functional.unfold:
        name = "im2col"
    plain = _DUNDER.get(name)
    if plain is None and name.startswith("__"):
        plain = name.strip("_")
        if plain.startswith("i") and plain[1:] in ("add", "sub", "mul", "and", "or", "xor", "pow"):
            plain = plain[1:]
    if plain is None:
        plain = name.rstrip("_") if name.endswith("_") else name
        plain = _DUNDER.get(plain, plain)
    with suppress(TypeError):  # some cannot be hashed
        _NAMES[func] = plain
    return plain
