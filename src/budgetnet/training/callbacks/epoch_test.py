"""The test set after every epoch, as published code reads it; nothing is selected by it."""

from __future__ import annotations

from collections.abc import Iterable

import pytorch_lightning as pl
import torch

from budgetnet.data.sharding import Batch
from budgetnet.training.learner import Learner


class EpochTest(pl.Callback):
    """Puts the test accuracy of the epoch's network into the module's results, and leaves all else as it was.

    Comes before Recorder, which writes it down, and so before the epoch's network is changed. Every process evaluates
    its part, as in the final test. The time counts in the epoch's seconds, like that of validation; the train cost is
    that of training alone.
    """

    def __init__(self) -> None:
        self._loader: Iterable[Batch] | None = None

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if self._loader is None:  # made once: it keeps a set in memory on the device
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
