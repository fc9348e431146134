"""Growth rounds and budget checks, between epochs of a running trainer."""

from __future__ import annotations

import gc
import time

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from budgetnet.methods.growth import GrowthPlan
from budgetnet.methods.resizing import Images, ResizingModule
from budgetnet.processes.group import order_buckets
from budgetnet.runs.records import Records
from budgetnet.training.callbacks.record import log


class Growth(pl.Callback):
    """At the end of every round: measure and plan on rank 0, broadcast, resize, wrap again, record."""

    def __init__(self, records: Records) -> None:
        self.records = records

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ResizingModule)
        epochs = trainer.current_epoch + 1
        pl_module.epoch_is_over(epochs)
        if not pl_module.round_is_over(epochs):
            return
        start = _now(pl_module)
        images = pl_module.ledger.images_per_epoch
        batch = _images(trainer, pl_module) if pl_module.images_wanted else None
        plan = pl_module.plan_round(epochs, images, batch) if trainer.is_global_zero else None
        plan = trainer.strategy.broadcast(plan)
        assert isinstance(plan, GrowthPlan)
        filters = pl_module.first_filters(plan) if trainer.is_global_zero else None
        pl_module.carry_out(plan, epochs, batch)
        # Blocks may have no width of their own, and with its last round a method's own parameters may go.
        replaced = plan.changes or plan.stop or plan.details
        if isinstance(trainer.strategy, DDPStrategy) and replaced:
            rewrap(trainer.strategy, pl_module)
        pause = _now(pl_module) - start
        pl_module.ledger.growth_seconds += pause
        if filters is not None:
            self.records.filters(plan.round, *(part.numpy() for part in filters))
        if trainer.is_global_zero:
            self._record(trainer, pl_module, plan, epochs, pause)

    def _record(self, trainer: pl.Trainer, module: ResizingModule, plan: GrowthPlan, epochs: int, pause: float) -> None:
        costs = module.costs()
        self.records.growth(
            {
                "round": plan.round,
                "epoch": epochs,
                "step": trainer.global_step,
                "saturation": dict(plan.saturation),
                "candidates": list(plan.candidates),
                "plan": {name: [plan.before.get(name, 0), width] for name, width in plan.changes.items()},
                "widths": dict(plan.after),
                **plan.details,
                **costs,
                "train_cost_flops": module.ledger.spent,
                "clipped": plan.clipped,
                "stop": plan.stop,
                "pause_ms": round(1000 * pause, 3),
            }
        )
        widths = {f"growth/{name}": float(width) for name, width in plan.after.items()}
        log(trainer, {"growth/round": float(plan.round), "growth/grown_groups": float(len(plan.changes)), **widths})


def _now(module: ResizingModule) -> float:
    """The clock, once the device has done what it was asked."""
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


def _images(trainer: pl.Trainer, module: ResizingModule) -> Images:
    """The first batches of the training set, as this process has them, that hold `images_wanted` images."""
    assert trainer.train_dataloader is not None
    inputs, labels, count = [], [], 0
    for some, of_some in trainer.train_dataloader:
        inputs.append(trainer.precision_plugin.convert_input(some.to(module.device)))
        labels.append(of_some.to(module.device))
        count += len(of_some)
        if count >= module.images_wanted:
            break
    return torch.cat(inputs), torch.cat(labels)


def rewrap(strategy: DDPStrategy, module: ResizingModule) -> None:
    """Wrap the resized module in DistributedDataParallel anew: the old wrapper still reduces the old parameters."""
    strategy.model = module
    gc.collect()
    strategy.configure_ddp()
    assert isinstance(strategy.model, DistributedDataParallel)
    order_buckets(strategy.model, module.data.input_shape)
