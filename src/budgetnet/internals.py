"""All uses of private names of Lightning and torch, to be reviewed when one of them is upgraded.

Tested with pytorch-lightning 2.6.6 and torch 2.13.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core import imports
from lightning_utilities.core.imports import RequirementCache
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy

__all__ = [
    "AnyBatchNorm",
    "is_compiler_error",
    "leave_signals_alone",
    "process_group_backend",
    "symmetric_padding",
    "without_plots",
]


@contextmanager
def without_plots() -> Iterator[None]:
    """While Lightning is imported, torchmetrics is told that matplotlib and scipy are not installed.

    It would import both, for plots and for sound, which takes a third of the time that a run needs to begin.
    """
    unneeded = ("matplotlib", "scipy")
    met, found = RequirementCache.__bool__, imports.package_available

    def is_met(self: RequirementCache) -> bool:
        return self.requirement not in unneeded and met(self)

    def is_found(name: str) -> bool:
        return name not in unneeded and found(name)

    RequirementCache.__bool__, imports.package_available = is_met, is_found  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        RequirementCache.__bool__, imports.package_available = met, found  # type: ignore[method-assign]


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch.compile raised the error, for a network or a backend that it cannot compile."""
    return isinstance(error, torch._dynamo.exc.TorchDynamoException)


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
