"""Ctrl-C, and SIGTERM and SIGUSR1, which a cluster sends before it stops a job."""

from __future__ import annotations

import os
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
from budgetnet.processes.launch import launch
from budgetnet.training.callbacks.checkpoint import Checkpoint

_AGREE_EVERY = 10  # steps after which several processes exchange whether a signal has come, which waits for the device


class Signals:
    """Handles SIGINT (Ctrl-C), SIGTERM and SIGUSR1.

    received: the last signal that has come, or None. postponed: whether a signal is only recorded and raises nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.postponed = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """A context in which the first signal raises Preempted, unless that is postponed.

        A second one ends the process at once (`processes.insisting`). A signal that this process ignores stays ignored,
        as SIGINT does in the background of a shell.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread handles signals
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signal.Signals(number)
        if first and not self.postponed:
            raise Preempted
        if first and number == signal.SIGINT and launch().rank == 0:  # print is not safe within a signal handler
            os.write(2, b"\ninterrupted: a checkpoint is written after this step; Ctrl-C again ends at once\n")


class Preemption(pl.Callback):
    """Ends training after the current step, with a checkpoint, if a signal has come."""

    def __init__(self, checkpoint: Checkpoint, signals: Signals) -> None:
        self.checkpoint, self.signals = checkpoint, signals
        self._processes: Processes | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        leave_signals_alone(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.postponed, self._processes = True, Processes(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._signalled():
            raise Preempted  # the previous epoch has written its checkpoint

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
        """Whether a signal has come to any process. All processes must call."""
        assert self._processes is not None
        return self._processes.any(self.signals.received is not None)
