"""Copies of a model: whole, and without storage, so that it runs at any widths."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from budgetnet.channels.calls import Call, leaves, name_of, one_device

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copy_of(net: AnyModule) -> AnyModule:
    """A deep copy, also where the last pass has left a computed weight in a module, as nn.utils.weight_norm does."""
    attributes = [*net.buffers(), *(value for module in net.modules() for value in vars(module).values())]
    computed = [value for value in attributes if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(net, {id(value): value.detach().clone() for value in computed})


class Shadow:
    """A copy on the meta device; integer buffers, which may be indices, keep their values."""

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {}
        for module in model.modules():
            for store in (module._parameters, module._buffers, module.__dict__):
                for value in store.values():
                    if isinstance(value, nn.Parameter):
                        memo[id(value)] = nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
                    elif isinstance(value, Tensor):
                        plain = value.detach()
                        memo[id(value)] = plain.clone() if _index(plain) else torch.empty_like(plain, device="meta")
                    elif isinstance(value, dict) and not value and type(value) in (dict, OrderedDict):
                        memo[id(value)] = value.copy()  # hooks: a third of the time of a copy
            if (graph := module.__dict__.get("_channel_graph")) is not None:
                memo[id(graph)] = None
        self.model: nn.Module = copy.deepcopy(model, memo)
        self.tensors: dict[str, Tensor] = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self.dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        self._modules = dict(self.model.named_modules())
        self._attributes: dict[tuple[str, str], Any] = {}

    def resize(self, shapes: Mapping[str, list[int]], attributes: Mapping[tuple[str, str], int]) -> None:
        """Give tensors other shapes and modules other numbers, from what they were at first."""
        for name, tensor in self.tensors.items():
            tensor.__dict__.pop("_carried", None)  # what it carries is known anew in each run
            shape = torch.Size(shapes.get(name, tensor.shape))
            self._put(name, tensor if shape == tensor.shape else tensor.new_empty(shape))
        for (path, name), size in attributes.items():
            module, whole = self._modules[path], name.partition("[")[0]
            self._attributes.setdefault((path, whole), getattr(module, whole))
            set_attribute(module, name, size)

    def restore(self) -> None:
        self.resize({}, {})
        for (path, name), value in self._attributes.items():
            setattr(self._modules[path], name, value)

    def _put(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        module = self._modules[path]
        if leaf in module._parameters:
            module._parameters[leaf] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False)
        else:
            module._buffers[leaf] = tensor


class QuickShapes(TorchFunctionMode):
    """Calls on the meta device give tensors of the right shape in as little time as can be (`channels.shapes`)."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = leaves((args, kwargs))
        if len(tensors) > 1:
            args, kwargs = one_device(tensors, args, kwargs)
        return Call(name_of(func), func, args, kwargs, tensors).run()


def set_attribute(module: nn.Module, name: str, size: int) -> None:
    """Let a layer know one of its widths; a layer norm keeps it in a tuple. name: "splits[1]" is an item of a list."""
    name, _, index = name.partition("[")
    value = getattr(module, name)
    if index or isinstance(value, tuple):
        items, place = list(value), int(index.rstrip("]") or 0)
        items[place] = size
        setattr(module, name, type(value)(items))
    else:
        setattr(module, name, size)


def _index(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dim() > 0


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random states are the same in every run, and stay as they were; attention takes no shortcut."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # the CPU's alone
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.backends.mha.set_fastpath_enabled(fast)
