"""What every method shares: a budgeted network under manual optimization, metered as it trains."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from budgetnet.backbones.fabric import Fabric
from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import Budget, CostModel, TrainCostLedger
from budgetnet.costs.sequential import SequentialOperations
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import RunError, UsageError
from budgetnet.processes.group import Processes, order_buckets
from budgetnet.runs.checkpoints import CHECKPOINT_FORMAT
from budgetnet.seeding import keyed_generator
from budgetnet.tasks import Classification, Task

_SETTLE_EVERY = 25  # steps between two looks at the losses; each look waits for the device


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
    full_depths: Mapping[str, int] = MappingProxyType({})
    """Blocks in each stage of the full backbone, where the method changes how many there are."""

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
        self.results: dict[str, float] = {}
        """Accuracies in percent and losses of the last evaluation and the last training epoch."""
        self.task: Task = Classification()
        """What the loss is, and what is right."""
        self.micro_batches = 1
        """Parts of a batch that are passed one after the other, to save memory; a step is of the whole batch."""
        self.compiler: str | None = None
        """Backend of torch.compile for the training steps once no shape changes any more."""
        self.batches_done = 0
        """Of the running epoch; 0 between epochs."""
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._compiling = False
        self._losses: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._evaluated: list[Tensor] = []
        self._images = 0
        self._totals = torch.zeros(0, dtype=torch.float64)
        self._random_state: list[dict[str, Any]] | None = None
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

    @property
    def resizes(self) -> bool:
        """Whether widths may still change."""
        return False

    def regularise(self) -> None:
        """Add to the gradients, times `loss_scale`, what no loss of a batch gives; by default nothing."""

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied with until the optimizer steps: above 1 under precision 16-mixed."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    # -- one step ---------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes), or (batch, classes, height, width), of images (batch, channels, height, width)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        lr = self.learning_rate(self.current_epoch, batch_idx, int(self.trainer.num_training_batches))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, sums = self._compile(images, labels) if self._compiling else self._backward(images, labels)
        self.regularise()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss)
        self._sums.append(sums)
        self._images += len(labels)
        self.batches_done = batch_idx + 1
        self.book(len(labels) * self.trainer.world_size)
        if self.batches_done % _SETTLE_EVERY == 0:
            self.settle()

    def book(self, images: int) -> None:
        """Add a step's train cost to the ledger. images: of all processes."""
        self.ledger.add(images, self._flops)

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the gradients of the mean loss of a batch; returns that loss and the sums of its metrics."""
        parts = list(zip(images.chunk(self.micro_batches), labels.chunk(self.micro_batches), strict=True))
        forward = self._compiled or self.forward
        losses, sums = [], []
        for number, (some, targets) in enumerate(parts, start=1):
            with self._unreduced() if number < len(parts) else nullcontext():
                logits = forward(some)
                loss = self.task.loss(logits, targets)
                loss = loss if len(parts) == 1 else loss * (len(targets) / len(labels))
                self.manual_backward(loss)
            losses.append(loss.detach())
            sums.append(self.task.sums(logits.detach(), targets))
        if len(parts) == 1:
            return losses[0], sums[0]
        return torch.stack(losses).sum(), torch.stack(sums).sum(0)

    def _start_compiling(self) -> None:
        if self.compiler and self._compiled is None and not self.resizes:
            torch.compiler.reset()
            self._compiled, self._compiling = torch.compile(self.net.forward, backend=self.compiler), True

    def _compile(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The first step of a compiled network; its time, nearly all of it the compiler's, is booked as such."""
        start = time.perf_counter()
        try:
            done = self._backward(images, labels)
        except torch._dynamo.exc.TorchDynamoException as error:
            text = " ".join(str(error).split())[:200]
            raise RunError(
                f"trainer.compile={self.compiler} fails on this network ({text}); leave it out to train without"
            ) from error
        self._compiling = False
        self.ledger.compile_seconds += time.perf_counter() - start
        return done

    def _unreduced(self) -> AbstractContextManager[None]:
        """Gradients stay on this process: the backward pass of a batch's last part reduces those of all its parts."""
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def on_train_epoch_start(self) -> None:
        self._losses, self._sums, self._images = [], [], 0
        self._totals = torch.zeros(0, dtype=torch.float64)
        self.results.clear()
        self._start_compiling()
        key = keyed_generator("network", self.data.seed, self.current_epoch, self.global_rank)
        drawn = key.initial_seed()  # for dropout and its like: the same when the run is continued here
        torch.manual_seed(drawn)
        np.random.seed(drawn % 2**32)
        random.seed(drawn)

    def settle(self) -> None:
        """Add the steps since the last call, of all processes, to the epoch's totals. All processes must call.

        Raises RunError if a loss was not finite. The totals are of double precision, in which sums of single-precision
        numbers are exact: they do not depend on when they are settled.
        """
        if not self._losses:
            return
        losses, sums = torch.stack(self._losses).cpu(), torch.stack(self._sums).cpu()
        steps = len(losses)
        new = torch.cat(
            [torch.stack([losses.double().sum(), torch.tensor(float(steps)).double()]), sums.double().sum(0)]
        )
        total = Processes(self.trainer).sum(new)
        if not total.isfinite().all():
            bad = (~torch.isfinite(losses)).nonzero()
            batch = self.batches_done - steps + (int(bad[0]) if len(bad) else steps - 1)
            self._not_finite("loss", self.current_epoch * int(self.trainer.num_training_batches) + batch)
        self._totals = self._totals + total if len(self._totals) else total
        self._losses, self._sums, self._images = [], [], 0

    def epoch_metrics(self) -> dict[str, float]:
        """Mean loss and accuracy (percent) of the training epoch, which this ends, over all processes."""
        self.settle()
        self.batches_done = 0
        if not len(self._totals):
            return {}
        loss, steps = self._totals[:2].tolist()
        values = self.task.compute(self._totals[2:])
        return {"train_loss": loss / steps, **{f"train_{name}": value for name, value in values.items()}}

    def _not_finite(self, what: str, step: int) -> NoReturn:
        raise RunError(
            f"the {what} is not finite at step {step} (epoch {self.current_epoch + 1}, phase {self.phase}): try a "
            "smaller optim.lr; the checkpoint of the last good epoch is kept"
        )

    # -- evaluation -------------------------------------------------------------------------------------------------

    def evaluated(self, images: Tensor) -> Tensor:
        """Logits of the network that would be left if training ended now."""
        return self.forward(images)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        output = self.evaluated(images)
        losses = self.task.losses(output, labels)
        count = torch.tensor(float(len(labels)), dtype=torch.float64, device=losses.device)
        self._evaluated.append(
            torch.cat([torch.stack([losses.double().sum(), count]), self.task.sums(output, labels).double()])
        )

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        Processes(self.trainer).share(self.net.buffers())  # each process has the running statistics of its own images

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._collect("val")

    def on_test_epoch_end(self) -> None:
        self._collect("test")

    def _collect(self, name: str) -> None:
        total = Processes(self.trainer).sum(torch.stack(self._evaluated).sum(0).cpu())
        self._evaluated.clear()
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            self.settle()  # names the step, if it was one of training
            self._not_finite(f"{name} loss", self.trainer.global_step)
        self.results[f"{name}_loss"] = loss
        self.results |= {f"{name}_{metric}": value for metric, value in self.task.compute(total[2:]).items()}

    # -- widths -----------------------------------------------------------------------------------------------------

    def resize(self, widths: Mapping[str, int | Sequence[int]], **options: Any) -> None:
        """Change widths of the live network (see `budgetnet.resize`) and price it anew."""
        resize(self.net, widths, **options)
        self._flops = self.cost.flops()

    def costs(self) -> dict[str, int]:
        """Params, macs and flops now; also the sequential operations of a network of edges."""
        costs = self.cost.costs()
        if isinstance(self.net, Fabric):
            costs["sequential_ops"] = SequentialOperations(self.net.layout, self.budget.machines or 1).full()
        return costs

    def check(self, trainer: pl.Trainer, data: DataModule, continued: bool) -> None:
        """Raises UsageError where the method cannot run so. Before anything is written; continued: a run goes on."""

    def edge_record(self) -> dict[str, float | int]:
        """A row of edges.csv for the epoch that ended; empty where no edges are chosen."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What summary.json says of a method's own besides."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["budgetnet"] = {
            "format": CHECKPOINT_FORMAT,
            "widths": self.graph.widths,
            "ledger": self.ledger.state_dict(),
            "phase": self.phase,
            "round": self.round,
            "epochs": self.current_epoch + (self.batches_done == 0),
            "batches": self.batches_done,
            "totals": self._totals.tolist(),
            "random_state": self._random_state,
        }
        self._random_state = None

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
        self.batches_done = state["batches"]
        self._totals = torch.tensor(state["totals"], dtype=torch.float64)
        self._random_state = state["random_state"]

    def keep_random_state(self) -> None:
        """Put every process's random state into the next checkpoint: one in the middle of an epoch needs it."""
        self._random_state = Processes(self.trainer).gather(_random_state(self.device))

    def on_train_start(self) -> None:
        if isinstance(self.trainer.model, DistributedDataParallel):
            order_buckets(self.trainer.model, self.data.input_shape)
        if self.batches_done:  # in the middle of an epoch, whose start is not announced again
            self._start_compiling()
        kept, self._random_state = self._random_state, None
        if kept is not None and self.global_rank < len(kept):
            name, keys, *rest = kept[self.global_rank]["numpy"]
            np.random.set_state((name, np.array(keys, np.uint32), *rest))
            random.setstate(kept[self.global_rank]["python"])
            torch.set_rng_state(kept[self.global_rank]["cpu"])
            if self.device.type == "cuda" and "cuda" in kept[self.global_rank]:
                torch.cuda.set_rng_state(kept[self.global_rank]["cuda"], self.device)


def _random_state(device: torch.device) -> dict[str, Any]:
    """Of this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "cpu": torch.get_rng_state(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states
