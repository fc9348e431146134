"""last.ckpt after every epoch, or more often; best.ckpt at the best validation accuracy of the final network."""

from __future__ import annotations

import io
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from budgetnet.errors import RunError
from budgetnet.methods.base import CHECKPOINT_FORMAT, BudgetedModule


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU, plain values only. Raises RunError for a damaged, foreign or older one."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["budgetnet"]["format"]
    except FileNotFoundError as error:
        raise RunError(f"{path} is not there: all nodes of a run must see its directory") from error
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, IndexError, ValueError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{path} is damaged or not a checkpoint of this project ({reason}): remove it to start again"
        ) from error
    if found != CHECKPOINT_FORMAT:
        raise RunError(
            f"{path} is of checkpoint format {found}, and this version reads {CHECKPOINT_FORMAT}: continue it with the "
            "version that wrote it, or start in a new directory (run.dir=)"
        )
    return state


class DurableFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, syncs it and renames it: at any instant the old one or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        final = Path(path)
        temporary = final.with_name(final.name + ".tmp")
        contents = io.BytesIO()
        torch.save(checkpoint, contents)
        with open(temporary, "wb") as file:
            file.write(contents.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
        directory = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class Checkpoint(pl.callbacks.Checkpoint):
    """Runs after the other callbacks, so a checkpoint taken at a growth round holds the grown network.

    every_n_steps: also write last.ckpt after every so many steps, in the middle of an epoch.
    `best.ckpt` is chosen by validation top-1 among the epochs after growth (the widths are the final ones there);
    without a validation set it is the last epoch.
    """

    def __init__(self, directory: Path, every_n_steps: int | None = None) -> None:
        self.directory = Path(directory)
        self.every_n_steps = every_n_steps
        self.best_top1 = -1.0
        self.best_epoch = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_steps is None or trainer.global_step % self.every_n_steps:
            return
        if batch_idx + 1 < trainer.num_training_batches:  # else the epoch ends, which is the better place
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, BudgetedModule)
        epochs = trainer.current_epoch + 1
        held_out = pl_module.data.splits.validation is not None
        top1 = pl_module.results.get("val_top1", -1.0) if held_out else float(epochs)
        final = not pl_module.resizes and epochs > pl_module.growing_epochs  # growth ends at the end of an epoch
        better = final and top1 >= max(self.best_top1, 0.0)  # of equals the last
        if better:
            self.best_top1, self.best_epoch = top1, epochs
        if pl_module.finished(epochs):
            trainer.should_stop = True
        if better:  # before last.ckpt, which tells a continued run that this was the best
            trainer.save_checkpoint(self.directory / "best.ckpt")
        trainer.save_checkpoint(self.directory / "last.ckpt")

    def save(self, trainer: pl.Trainer) -> None:
        """Write last.ckpt after a step in the middle of an epoch. Raises RunError if a loss was not finite till now."""
        module = trainer.lightning_module
        assert isinstance(module, BudgetedModule)
        module.settle()
        module.keep_random_state()
        trainer.save_checkpoint(self.directory / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best_top1": self.best_top1, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_top1, self.best_epoch = state_dict["best_top1"], state_dict["best_epoch"]
