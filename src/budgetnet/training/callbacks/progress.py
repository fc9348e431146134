"""A line for each epoch: where the run stands, how good and how large its network is, and how long it will take."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from budgetnet.costs.budget import format_quantity
from budgetnet.training.forecast import Clock, calibrate, duration
from budgetnet.training.learner import Learner

_WIDE = 120
"""Columns of a line that goes into a file."""
_CALIBRATED_ABOVE = 30.0
"""Seconds that a run is expected to take, for a forecast that is worth timing a network of its final costs."""
_FORWARD = 1 / 3
"""What an image costs that is not trained on, as a part of one that is."""


class Progress(pl.callbacks.ProgressBar):
    """On a terminal a line that fills during the epoch, otherwise one line at the end of the epoch.

    A step costs no more than reading the clock, and the line is drawn at most `per_second` times a second.
    """

    def __init__(self, per_second: float = 4.0) -> None:
        super().__init__()
        self.interval = 1 / per_second
        self.clock = Clock()
        self._next = self._began = self._start = self._last = 0.0
        self._calibrated = self._whole = False
        self._terminal = sys.stderr.isatty()
        self._stepped = 0.0
        """Seconds of the epoch up to the end of its last step, without the validation that follows."""

    def disable(self) -> None:
        self._terminal = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = self._start = self._last = time.monotonic()  # for a run resumed within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._last = time.monotonic()
        self._next, self._whole = 0.0, True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Learner)
        now = time.monotonic()
        if batch_idx:  # the first step of an epoch waits for data
            self.clock.stepped(now - self._last)
        if not self._calibrated and now - self._began > 1:
            self._calibrate(trainer, pl_module, batch, batch_idx + 1)
            now = time.monotonic()
        self._last, self._stepped = now, now - self._start
        if self._terminal and trainer.is_global_zero and now >= self._next:
            self._next = now + self.interval
            self._draw(self.line(trainer, pl_module, batch_idx + 1))

    def _calibrate(self, trainer: pl.Trainer, learner: Learner, batch: Any, done: int) -> None:
        """Time steps of the network as it is now and as it will be, once it is known that the run takes long."""
        self._calibrated = True
        left, now = self.left(trainer, learner, done), float(learner.method.training.pricing.flops)
        ends = [stretch.flops for stretch in learner.course(trainer.current_epoch) if stretch.epochs]
        far = [end for end in (min(ends, default=now), max(ends, default=now)) if abs(end - now) > 0.02 * now]
        widths = learner.method.training.pricing.edge_names is None
        if left is None or left < _CALIBRATED_ABOVE or not far or not widths or trainer.world_size > 1:
            return
        start = time.monotonic()
        try:
            targets = learner.task.taught(*batch)
            held_out = learner.data.splits.validation
            evaluated = 0 if held_out is None else len(held_out), learner.data.options.eval_batch_size
            found = calibrate(learner.net, learner.task, (batch[0], targets), [now, *far], *evaluated)
            self.clock.calibrated(found, int(trainer.num_training_batches), now)
        except (RuntimeError, ValueError):  # no memory for both, or a network that cannot be copied
            torch.cuda.empty_cache()
        self._start += time.monotonic() - start

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if self._terminal and trainer.is_global_zero and not trainer.sanity_checking and trainer.training:
            self._draw(self.line(trainer, pl_module, int(trainer.num_training_batches), "validating"))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if self._whole:
            self.clock.epoch(float(pl_module.method.training.pricing.flops), time.monotonic() - self._start)
        if trainer.is_global_zero:
            self._draw(self.line(trainer, pl_module, int(trainer.num_training_batches)) + "\n")

    def _draw(self, text: str) -> None:
        sys.stderr.write(("\r\x1b[2K" if self._terminal else "") + text)
        sys.stderr.flush()

    def left(self, trainer: pl.Trainer, learner: Learner, done: int) -> float | None:
        """The seconds that training will still take, after `done` steps of the epoch. None if they are not known."""
        data, now = learner.data, float(learner.method.training.pricing.flops)
        held_out = data.splits.validation
        others = _FORWARD * (0 if held_out is None else len(held_out)) / max(1, data.train_size)
        steps = int(trainer.num_training_batches)
        return self.clock.left(learner.course(trainer.current_epoch), now, steps, done, others)

    def _epochs(self, trainer: pl.Trainer, learner: Learner) -> str:
        """How many epochs the run will have, as text; with "~" while a plan may still change it."""
        epochs = trainer.current_epoch + sum(stretch.epochs for stretch in learner.course(trainer.current_epoch))
        return f"~{epochs}" if learner.phase.epochs is None else str(epochs)

    def line(self, trainer: pl.Trainer, learner: Learner, batches: int, doing: str = "") -> str:
        """The text after `batches` steps of the epoch, as wide as the terminal, or 120 columns in a file.

        Where there is no room for everything, what matters least is left out.
        """
        total, training, phase = int(trainer.num_training_batches), learner.method.training, learner.phase
        width = shutil.get_terminal_size((_WIDE, 24)).columns if self._terminal else _WIDE
        filled = (10 if width < 100 else 20) * batches // total
        metric, results = learner.task.metric, learner.results
        loss = results.get("train_loss", learner.running_loss)
        value, left = results.get(f"val_{metric.name}"), self.left(trainer, learner, batches)
        name = phase.name if phase.final else f"{phase.name} {training.round + 1}"
        limits, costs = training.budget.limits, {**learner.method.costs(), "train_cost": training.ledger.spent}
        kind = max(
            (each for each in limits if each in costs), key=lambda each: costs[each] / limits[each], default=None
        )
        flops = format_quantity(costs["flops"])
        parts = [  # (how much it matters, text)
            (9, f"epoch {trainer.current_epoch + 1:3d}/{self._epochs(trainer, learner)}"),
            (8, name),
            (3, "█" * filled + "·" * ((10 if width < 100 else 20) - filled)),
            (2, f"{batches}/{total}"),
            (6, "" if loss is None else f"loss {loss:.3f}"),
            (7, "" if value is None else f"val {metric.text(value)}"),
            (5, "" if kind is None else f"{100 * costs[kind] / limits[kind]:.0f}% of {format_quantity(limits[kind])}"),
            (1, f"{flops}FLOPs" if flops[-1].isalpha() else f"{flops} FLOPs"),
            (4, f"{batches * learner.data.batch_size / max(self._stepped, 1e-9):.0f} img/s"),
            (8, doing or ("compiling" if learner.compiling else "" if left is None else f"{duration(left)} left")),
        ]
        shown = [part for part in parts if part[1]]
        while sum(len(text) + 2 for _, text in shown) - 2 > width - 1 and len(shown) > 1:
            shown.remove(min(shown))
        return "  ".join(text for _, text in shown)
