"""Evaluation on the test set after every epoch, as in published code; it selects nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytorch_lightning as pl
import torch

from budgetnet.data.sharding import Batch
from budgetnet.training.learner import Learner


class EpochTest(pl.Callback):
    """Adds the test metrics of the epoch's network to the results of the learner.

    It runs before Recorder, which writes them, and so before the network of the epoch is changed. Every process
    evaluates its shard, as in the final test. The time counts in the seconds of the epoch, as that of validation does,
    but not in the train cost.
    """

    def __init__(self) -> None:
        self._loader: Iterable[Batch] | None = None

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if self._loader is None:  # made once, since it holds the dataset in the memory of the device
            self._loader = pl_module.data.test_dataloader()
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        pl_module.on_test_epoch_start()
        with trainer.precision_plugin.test_step_context():
            for number, batch in enumerate(self._loader):
                pl_module.test_step(trainer.precision_plugin.convert_input(batch), number)
        pl_module.on_test_epoch_end()
        for module, training in modes:
            module.training = training
