"""A progress bar per epoch: phase, widths, FLOPs and their budget, and the validation metric."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl

from budgetnet.costs.budget import format_quantity
from budgetnet.training.learner import Learner


class Progress(pl.callbacks.ProgressBar):
    """On a terminal a line that fills during the epoch, otherwise one line at the end of the epoch.

    A step costs no more than reading the clock, and the line is drawn at most `per_second` times a second.
    """

    def __init__(self, per_second: float = 4.0) -> None:
        super().__init__()
        self.interval = 1 / per_second
        self._next = 0.0
        self._terminal = sys.stderr.isatty()

    def disable(self) -> None:
        self._terminal = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()  # for a run resumed within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        self._next = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._terminal and trainer.is_global_zero and time.monotonic() >= self._next:
            self._next = time.monotonic() + self.interval
            assert isinstance(pl_module, Learner)
            sys.stderr.write("\r\x1b[2K" + self.line(trainer, pl_module, batch_idx + 1))
            sys.stderr.flush()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, Learner)
            start = "\r\x1b[2K" if self._terminal else ""
            sys.stderr.write(start + self.line(trainer, pl_module, int(trainer.num_training_batches)) + "\n")
            sys.stderr.flush()

    def line(self, trainer: pl.Trainer, learner: Learner, batches: int) -> str:
        """The text of the bar after `batches` steps of the epoch."""
        total, training, phase = int(trainer.num_training_batches), learner.method.training, learner.phase
        filled = 20 * batches // total
        flops, limit = learner.method.costs()["flops"], training.budget.limits.get("flops")
        of = f" of {format_quantity(limit)} ({100 * flops / limit:.0f}%)" if limit else ""
        metric = learner.task.metric
        value = learner.results.get(f"val_{metric.name}")
        name = phase.name if phase.final else f"{phase.name} round {training.round + 1}"
        columns = [
            f"epoch {trainer.current_epoch + 1:3d} {name}",
            "█" * filled + "·" * (20 - filled) + f" {batches}/{total}",
            f"{time.monotonic() - self._start:.1f} s",
            f"widths {sum(training.graph.widths.values())}",
            f"FLOPs {format_quantity(flops)}{of}",
            *([f"val {metric.text(value)}"] if value is not None else []),
        ]
        return "  ".join(columns)
