"""What every method shares: a budgeted network under manual optimization, metered as it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import RunError, UsageError

CHECKPOINT_FORMAT = 1
_CHECK_EVERY = 100  # steps between two looks at the loss; each look waits for the device


class BudgetedModule(pl.LightningModule):
    """A traced network, its costs and its ledger; one optimizer, stepped by hand; the metrics of an epoch.

    net: traced (ChannelGraph.trace) and at the widths it starts with. ledger: the train cost so far. budget: resolved.
    label_smoothing: of the cross-entropy. Subclasses give `configure_optimizers`, `learning_rate` and `phase`.
    """

    phase = "train"
    round = 0
    growing_epochs = 0
    """Epochs of the growing phase, once it is over."""
    stop_reason: str | None = None

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        ledger: TrainCostLedger,
        budget: Budget,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = net
        self.graph = ChannelGraph.of(net)
        self.cost = CostModel(self.graph)
        self.ledger = ledger
        self.budget = budget
        self.label_smoothing = label_smoothing
        top5 = min(5, num_classes)
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(num_classes, top_k=top5, average="micro", validate_args=False)
        self.mean_loss = MeanMetric(nan_strategy="disable")  # a NaN must show
        self.results: dict[str, float] = {}
        """Accuracies in percent and losses of the last evaluation and the last training epoch."""
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._images = 0
        self._flops = self.cost.flops()

    @property
    def data(self) -> DataModule:
        """The dataset that the trainer was given."""
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, DataModule)
        return data

    # -- what a method decides --------------------------------------------------------------------------------------

    def learning_rate(self, epoch: int, batch: int, steps_per_epoch: int) -> float:
        """Learning rate of this step."""
        raise NotImplementedError

    def finished(self, epochs: int) -> bool:
        """Whether training is over after `epochs` epochs, before the trainer's own end."""
        return False

    # -- one step ---------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        lr = self.learning_rate(self.current_epoch, batch_idx, int(self.trainer.num_training_batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = self.net(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self._losses.append(loss.detach())
            self._correct.append((logits.argmax(1) == labels).sum())
        self._images += len(labels)
        self.ledger.add(len(labels) * self.trainer.world_size, self._flops)
        if (batch_idx + 1) % _CHECK_EVERY == 0:
            self._check_losses(batch_idx + 1)

    def on_train_epoch_start(self) -> None:
        self._losses, self._correct, self._images = [], [], 0
        self.results.clear()

    def epoch_metrics(self) -> dict[str, float]:
        """Mean loss and accuracy (percent) of the training epoch; raises RunError if a loss was not finite."""
        self._check_losses(len(self._losses))
        if not self._losses:
            return {}
        loss, correct = torch.stack(self._losses).mean(), torch.stack(self._correct).sum()
        return {"train_loss": loss.item(), "train_top1": 100 * correct.item() / self._images}

    def _check_losses(self, steps: int) -> None:
        recent = self._losses[-_CHECK_EVERY:]
        if not recent:
            return
        bad = (~torch.isfinite(torch.stack(recent))).nonzero()
        if len(bad):
            batch = steps - len(recent) + int(bad[0])
            self._not_finite("loss", self.current_epoch * int(self.trainer.num_training_batches) + batch)

    def _not_finite(self, what: str, step: int) -> NoReturn:
        raise RunError(
            f"the {what} is not finite at step {step} (epoch {self.current_epoch + 1}, phase {self.phase}): try a "
            "smaller optim.lr; the checkpoint of the last good epoch is kept"
        )

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.net(images)
        self.mean_loss.update(nn.functional.cross_entropy(logits, labels), weight=len(labels))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._collect("val")

    def on_test_epoch_end(self) -> None:
        self._collect("test")

    def _collect(self, name: str) -> None:
        self.results[f"{name}_loss"] = loss = self.mean_loss.compute().item()
        if not math.isfinite(loss):
            self._check_losses(len(self._losses))
            self._not_finite(f"{name} loss", self.trainer.global_step)
        self.results[f"{name}_top1"] = 100 * self.top1.compute().item()
        self.results[f"{name}_top5"] = 100 * self.top5.compute().item()
        for metric in (self.mean_loss, self.top1, self.top5):
            metric.reset()

    # -- widths -----------------------------------------------------------------------------------------------------

    def resize(self, widths: Mapping[str, int], **options: Any) -> None:
        """Change widths of the live network (see `budgetnet.resize`) and price it anew."""
        resize(self.net, widths, **options)
        self._flops = self.cost.flops()

    def costs(self) -> dict[str, int]:
        """Params, macs and flops now."""
        return self.cost.costs()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["budgetnet"] = {
            "format": CHECKPOINT_FORMAT,
            "widths": self.graph.widths,
            "ledger": self.ledger.state_dict(),
            "phase": self.phase,
            "round": self.round,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the checkpoint's widths before its weights are loaded."""
        state = checkpoint.get("budgetnet")
        if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
            raise UsageError(
                f"the checkpoint is not one of format {CHECKPOINT_FORMAT}: start the run in a new directory (run.dir=)"
            )
        widths = self.graph.widths
        changes = {name: width for name, width in state["widths"].items() if widths.get(name) != width}
        if changes:
            self.resize(changes)
        self.ledger.load_state_dict(state["ledger"])
        self.phase, self.round = state["phase"], state["round"]
