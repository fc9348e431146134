"""All uses of private names of Lightning and torch, to be reviewed when one of them is upgraded.

Tested with pytorch-lightning 2.6.6 and torch 2.13.0.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core import imports
from lightning_utilities.core.imports import RequirementCache
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy

__all__ = [
    "AnyBatchNorm",
    "batched_by_vmap",
    "is_compiler_error",
    "leave_signals_alone",
    "no_onnx_log",
    "process_group_backend",
    "quick_imports",
    "symmetric_padding",
]

_LIGHTNING = ("lightning_fabric", "pytorch_lightning")


@contextmanager
def quick_imports() -> Iterator[None]:
    """While Lightning is imported, what it imports of others but seldom uses is left out, which halves the time.

    torchmetrics is told that matplotlib and scipy are not installed, which it uses for plots and for sound. Lightning's
    checks of compiled modules, and its functions that are never compiled, import torch's compiler where it is first
    needed, as torch's own do.
    """
    unneeded = ("matplotlib", "scipy")
    met, found = RequirementCache.__bool__, imports.package_available
    import_, disable = builtins.__import__, torch.compiler.disable

    def is_met(self: RequirementCache) -> bool:
        return self.requirement not in unneeded and met(self)

    def is_found(name: str) -> bool:
        return name not in unneeded and found(name)

    def imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        """In place of the `import` statement."""
        by = ((globals or {}).get("__name__") or "").partition(".")[0]
        if name == "torch._dynamo" and fromlist == ("OptimizedModule",) and by in _LIGHTNING:
            return SimpleNamespace(OptimizedModule=CompiledModule)
        return import_(name, globals, locals, fromlist, level)

    def disabled(function: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        return _disable_dynamo(function, recursive)

    RequirementCache.__bool__, imports.package_available = is_met, is_found  # type: ignore[method-assign, assignment]
    builtins.__import__, torch.compiler.disable = imported, disabled
    try:
        yield
    finally:
        RequirementCache.__bool__, imports.package_available = met, found  # type: ignore[method-assign]
        builtins.__import__, torch.compiler.disable = import_, disable


class _OfCompiledModules(type):
    """Tells of an object whether it is a compiled module: none is before torch's compiler is imported."""

    def __instancecheck__(cls, instance: object) -> bool:
        compiler = sys.modules.get("torch._dynamo")
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class CompiledModule(metaclass=_OfCompiledModules):
    """torch._dynamo.OptimizedModule for `isinstance`, without an import of the compiler."""


@contextmanager
def no_onnx_log() -> Iterator[None]:
    """Where torch.onnx.export fails it writes the whole graph to the standard output, below Python's own."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def batched_by_vmap(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor of which torch.vmap shows a function one slice, or None where it does not."""
    functorch, mapped = torch._C._functorch, False
    while functorch.is_functorch_wrapped_tensor(tensor):
        mapped = mapped or functorch.is_batchedtensor(tensor)
        tensor = functorch.get_unwrapped(tensor)
    return tensor if mapped else None


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch.compile raised the error, for a network or a backend that it cannot compile."""
    compiler = sys.modules.get("torch._dynamo.exc")
    return compiler is not None and isinstance(error, compiler.TorchDynamoException)


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Disable Lightning's signal handlers, which write a file of their own and make each step wait for the device."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def process_group_backend(strategy: DDPStrategy) -> str:
    """The torch.distributed backend that a strategy would use."""
    return str(strategy._get_process_group_backend())


def symmetric_padding(layer: nn.Conv2d) -> Any:
    """The padding of a convolution, in the form that torch.nn.functional.pad takes."""
    return layer._reversed_padding_repeated_twice
