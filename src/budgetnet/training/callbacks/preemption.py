"""SIGTERM and SIGUSR1: what a cluster sends before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from budgetnet.errors import Preempted
from budgetnet.internals import leave_signals_alone
from budgetnet.processes.group import Processes
from budgetnet.training.callbacks.checkpoint import Checkpoint

_AGREE_EVERY = 10  # steps between two agreements of several processes, each of which waits for the device


class Signals:
    """SIGTERM and SIGUSR1. `received`: the one that has come. While `postponed`, nothing else happens then."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.postponed = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Raise Preempted out of whatever runs here when one comes, once, unless that is postponed."""
        if threading.current_thread() is not threading.main_thread():
            yield  # no signal comes here
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signal.Signals(number)
        if first and not self.postponed:
            raise Preempted


class Preemption(pl.Callback):
    """Ends a run that a signal has reached, in training: after the running step, with a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, signals: Signals) -> None:
        self.checkpoint, self.signals = checkpoint, signals
        self._processes: Processes | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        leave_signals_alone(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.postponed, self._processes = True, Processes(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._signalled():
            raise Preempted  # the epoch before has its checkpoint

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.postponed = False
        if self._signalled():
            raise Preempted

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = batch_idx + 1
        if steps == trainer.num_training_batches or (trainer.world_size > 1 and steps % _AGREE_EVERY):
            return
        if self._signalled():
            self.checkpoint.save(trainer)
            raise Preempted

    def _signalled(self) -> bool:
        """Whether a signal has come to any process. All must ask."""
        assert self._processes is not None
        return self._processes.any(self.signals.received is not None)
