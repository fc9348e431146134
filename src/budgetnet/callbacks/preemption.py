"""SIGTERM and SIGUSR1: what a cluster sends before it takes a machine away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from budgetnet.callbacks.checkpoint import Checkpoint
from budgetnet.errors import Preempted
from budgetnet.processes import Processes

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_AGREE_EVERY = 10  # steps between two agreements of several processes, each of which waits for the device


class Preemption(pl.Callback):
    """Ends a run that is told to: in training after the running step, with a checkpoint; elsewhere at once.

    Lightning's own handlers are put aside: they save under a name of their own and wait for the device every step.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.received: signal.Signals | None = None
        self._training = False
        self._processes: Processes | None = None

    @contextmanager
    def listening(self, trainer: pl.Trainer) -> Iterator[None]:
        """Handle the signals as long as this lasts. Raises Preempted out of it when one has come."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is not threading.main_thread():
            yield  # no signal comes here
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signal.Signals(number)
        if first and not self._training:
            raise Preempted

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training, self._processes = True, Processes(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._told():
            raise Preempted  # the epoch before has its checkpoint

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = False
        if self._told():
            raise Preempted

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = batch_idx + 1
        if steps == trainer.num_training_batches or (trainer.world_size > 1 and steps % _AGREE_EVERY):
            return
        if self._told():
            self.checkpoint.save(trainer)
            raise Preempted

    def _told(self) -> bool:
        """Whether a signal has come to any process. All must ask."""
        assert self._processes is not None
        return self._processes.any(self.received is not None)


def requeue() -> bool:
    """Under Slurm, ask for this job to be run again; not if it was the user who cancelled it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    if "JobState=CANCELLED" in shown.stdout:
        return False
    return subprocess.run(["scontrol", "requeue", job], capture_output=True).returncode == 0
