"""Rounds of a method between the epochs of a running trainer."""

from __future__ import annotations

import gc
import time

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from budgetnet.methods.method import Images
from budgetnet.methods.plan import Plan, WidthPlan
from budgetnet.processes.group import order_buckets
from budgetnet.runs.records import Records
from budgetnet.training.callbacks.record import log
from budgetnet.training.learner import Learner


class Growth(pl.Callback):
    """Before the first step and after every epoch: plan on rank 0, broadcast, apply, wrap the network again, record."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if trainer.current_epoch == 0 and pl_module.batches_done == 0:
            self._round(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        epochs = trainer.current_epoch + 1
        pl_module.method.after_epoch(epochs)
        self._round(trainer, pl_module, epochs)

    def _round(self, trainer: pl.Trainer, learner: Learner, epochs: int) -> None:
        method, start = learner.method, _now(learner)
        count = method.images(epochs)
        batch = _images(trainer, learner, count) if count else None
        plan = method.plan(epochs, batch) if trainer.is_global_zero else None
        plan = learner.processes.broadcast(plan)
        if plan is not None:
            filters = method.first_filters(plan) if trainer.is_global_zero else None
            method.apply(plan, batch)
            if isinstance(trainer.strategy, DDPStrategy) and plan.replaces_parameters:
                rewrap(trainer.strategy, learner)
            pause = _now(learner) - start
            method.training.ledger.growth_seconds += pause
            if filters is not None:
                self.records.filters(plan.round, *(tensor.numpy() for tensor in filters))
        learner.end_of_epoch(epochs, plan)
        if plan is not None and trainer.is_global_zero:
            self._record(trainer, learner, plan, epochs, pause)

    def _record(self, trainer: pl.Trainer, learner: Learner, plan: Plan, epochs: int, pause: float) -> None:
        self.records.growth(
            {
                "round": plan.round,
                "epoch": epochs,
                "step": trainer.global_step,
                **plan.record(),
                **learner.method.costs(),
                "train_cost_flops": learner.method.training.ledger.spent,
                "clipped": plan.clipped,
                "stop": plan.stop,
                "pause_ms": round(1000 * pause, 3),
            }
        )
        scalars = {"growth/round": float(plan.round)}
        if isinstance(plan, WidthPlan):
            scalars["growth/grown_groups"] = float(len(plan.changes))
            scalars |= {f"growth/{name}": float(width) for name, width in plan.after.items()}
        log(trainer, scalars)


def _now(learner: Learner) -> float:
    """The time in seconds after the device has finished its work."""
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
    return time.perf_counter()


def _images(trainer: pl.Trainer, learner: Learner, wanted: int) -> Images:
    """The first training batches of this process, until there are `wanted` images."""
    assert trainer.train_dataloader is not None
    inputs, targets, count = [], [], 0
    for images, expected in trainer.train_dataloader:
        inputs.append(trainer.precision_plugin.convert_input(images.to(learner.device)))
        targets.append(expected.to(learner.device))
        count += len(expected)
        if count >= wanted:
            break
    return torch.cat(inputs), torch.cat(targets)


def rewrap(strategy: DDPStrategy, learner: Learner) -> None:
    """Wrap the changed module in DistributedDataParallel again, since the old wrapper reduces the old parameters."""
    strategy.model = learner
    gc.collect()
    strategy.configure_ddp()
    assert isinstance(strategy.model, DistributedDataParallel)
    order_buckets(strategy.model, learner.method.training.input_shape)
