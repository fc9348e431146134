"""last.ckpt after every epoch, best.ckpt at the best validation accuracy of the final network."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch

from budgetnet.errors import RunError
from budgetnet.methods.base import BudgetedModule


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU, plain values only. Raises RunError for a damaged one."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if "budgetnet" not in state:
            raise KeyError("budgetnet")
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{path} is damaged or not a checkpoint of this project ({reason}): remove it to start again"
        ) from error
    return state


class Checkpoint(pl.callbacks.Checkpoint):
    """Runs after the other callbacks, so a checkpoint taken at a growth round holds the grown network.

    Files are written under a temporary name and renamed. `best.ckpt` is chosen by validation top-1 among the epochs
    after growth (the widths are the final ones there); without a validation set it is the last epoch.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.best_top1 = -1.0
        self.best_epoch = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, BudgetedModule)
        epochs = trainer.current_epoch + 1
        held_out = pl_module.data.splits.validation is not None
        top1 = pl_module.results.get("val_top1", -1.0) if held_out else float(epochs)
        final = pl_module.phase != "grow" and epochs > pl_module.growing_epochs  # growth ends at the end of an epoch
        better = final and top1 >= max(self.best_top1, 0.0)  # of equals the last
        if better:
            self.best_top1, self.best_epoch = top1, epochs
        if pl_module.finished(epochs):
            trainer.should_stop = True
        if better:  # before last.ckpt, which tells a continued run that this was the best
            self._save(trainer, "best.ckpt")
        self._save(trainer, "last.ckpt")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        temporary = self.directory / f"{name}.tmp"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.directory / name)

    def state_dict(self) -> dict[str, Any]:
        return {"best_top1": self.best_top1, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_top1, self.best_epoch = state_dict["best_top1"], state_dict["best_epoch"]
