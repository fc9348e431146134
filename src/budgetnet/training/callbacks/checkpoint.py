"""Checkpoints: last.ckpt after every epoch or more often, best.ckpt at the best validation of the final network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from budgetnet.runs.best import fingerprint
from budgetnet.training.learner import Learner


class Checkpoint(pl.callbacks.Checkpoint):
    """Writes last.ckpt and best.ckpt. It runs after the other callbacks, so that last.ckpt holds the grown network.

    best.ckpt is selected by the first metric of the task on the validation set, among the epochs in which the network
    has its final shape. Without a validation set it is that of the last epoch. last.ckpt tells its epoch, its value and
    the fingerprint of its weights (`budgetnet.runs.best`).

    every_n_steps: the number of steps after which last.ckpt is also written within an epoch, or None.
    """

    def __init__(self, directory: Path, every_n_steps: int | None = None) -> None:
        self.directory = Path(directory)
        self.every_n_steps = every_n_steps
        self.best_value: float | None = None
        self.best_epoch = 0
        self.best_weights: str | None = None
        self.forgotten = False
        """Whether best.ckpt is lost, so that what a checkpoint tells of it is not taken over."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_steps is None or trainer.global_step % self.every_n_steps:
            return
        if batch_idx + 1 < trainer.num_training_batches:  # the end of the epoch writes a checkpoint anyway
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        epochs = trainer.current_epoch + 1
        metric = pl_module.task.metric
        value = pl_module.results.get(f"val_{metric.name}")
        final = pl_module.final_from is not None and epochs > pl_module.final_from  # growth ends at the end of an epoch
        if pl_module.data.splits.validation is None:
            better = final
        else:  # the last among equals
            worse = self.best_value is None or (value is not None and not metric.better(self.best_value, value))
            better = final and value is not None and worse
        if better:
            self.best_value, self.best_epoch = value, epochs
            if trainer.is_global_zero:
                self.best_weights = fingerprint(pl_module.state_dict())
        if pl_module.finished(epochs):
            trainer.should_stop = True
        trainer.save_checkpoint(self.directory / "last.ckpt")
        if better:  # after last.ckpt, of which it is made if the process ends between the two
            trainer.save_checkpoint(self.directory / "best.ckpt")

    def save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt after a step within an epoch. Raises RunError for a loss that is not finite."""
        learner = trainer.lightning_module
        assert isinstance(learner, Learner)
        learner.collect()
        learner.keep_random_state()
        trainer.save_checkpoint(self.directory / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value, "best_epoch": self.best_epoch, "best_weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.forgotten:
            self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]
            self.best_weights = state_dict.get("best_weights")
