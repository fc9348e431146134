"""One row per epoch, the same numbers in metrics.csv and in every logger."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from budgetnet.runs.records import Records
from budgetnet.training.learner import Learner
from budgetnet.training.loggers import Unfailing


def log(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Send scalars to the loggers at the trainer's step, without Lightning's per-step bookkeeping."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


class Recorder(pl.Callback):
    """Writes metrics.csv and the rows of the method (saturation.csv, edges.csv), and sends them to the loggers.

    It runs before Growth, so that a row describes the network of its epoch.

    loggers: makes the loggers of the trainer. They begin after the first step, so that a run that cannot train leaves
    nothing in them.
    """

    def __init__(self, records: Records, loggers: Callable[[], list[Logger]]) -> None:
        self.records, self.make_loggers = records, loggers
        self._logging = False
        self._start: float | None = None
        """The time at which the current epoch began, on the clock of time.perf_counter."""

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": 0.0 if self._start is None else time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = time.perf_counter() - state_dict["elapsed"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and not trainer.loggers:
            trainer.loggers = self.make_loggers()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._logging:
            self._logging, begin = True, time.perf_counter()
            for logger in trainer.loggers:
                if isinstance(logger, Unfailing):
                    logger.begin()
            if self._start is not None:  # not counted in the seconds of the epoch
                self._start += time.perf_counter() - begin

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        row = self.row(trainer, pl_module)
        self._start = None
        own = pl_module.method.rows()
        if not trainer.is_global_zero:
            return
        self.records.metrics(row)
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
        for name, values in own.items():
            self.records.row(name, {"epoch": row["epoch"], **values})
            numbers |= {f"{name}/{key}": float(value) for key, value in values.items() if key != "round"}
        log(trainer, numbers)

    def row(self, trainer: pl.Trainer, learner: Learner) -> dict[str, Any]:
        """The row of metrics.csv for the epoch that just ended (see `budgetnet.runs.records.metric_columns`).

        Raises RunError for a loss that is not finite.
        """
        learner.end_training_epoch()
        training = learner.method.training
        shown = {name: value for name, value in learner.results.items() if name in self.records.columns}
        teacher = {"teacher_cost_flops": training.ledger.teacher} if learner.task.teacher_flops else {}
        return {
            "epoch": trainer.current_epoch + 1,
            "phase": learner.phase.name,
            "round": training.round,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            **shown,
            **learner.method.costs(),
            "train_cost_flops": training.ledger.spent,
            "train_cost_baseline_percent": training.ledger.percent_of_baseline(),
            **teacher,
            "seconds": time.perf_counter() - (self._start or 0.0),
        }
