"""The only LightningModule: manual optimization of whatever method and task it is given, metered as it trains."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from budgetnet.data.datamodule import DataModule
from budgetnet.errors import RunError, UsageError
from budgetnet.internals import is_compiler_error
from budgetnet.methods.method import Method
from budgetnet.methods.phases import Phase
from budgetnet.methods.plan import Plan
from budgetnet.processes.group import Processes
from budgetnet.runs.checkpoints import CHECKPOINT_FORMAT
from budgetnet.seeding import keyed_seed
from budgetnet.tasks import Output, Task

_COLLECT_EVERY = 25  # steps between two looks at the losses; each look waits for the device


class Learner(pl.LightningModule):
    """Trains a method's network: its steps, its phases, the ledger, exact sums of metrics, checkpoints.

    method: started. phases: of the run, in order. compiler: a backend of torch.compile for the training steps once no
    shape changes any more.
    """

    def __init__(self, method: Method, phases: list[Phase], compiler: str | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.method, self.phases, self.compiler = method, phases, compiler
        training = method.training
        self.net = training.net
        self.own = method.modules
        self.stop_reason: str | None = None
        """Why the phase ended in which the network took its shape."""
        self.batches_done = 0
        """Of the running epoch; 0 between epochs."""
        self._phase, self._phase_start = 0, 0
        """Number of the running phase, and the epochs that were finished when it began."""
        self._compiling = False
        self._losses: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._evaluated: list[Tensor] = []
        self._totals = torch.zeros(0, dtype=torch.float64)
        """Of the running epoch: the sum of the losses of its steps, their number, the sums of the metrics."""
        self._random_state: list[dict[str, Any]] | None = None
        training.phase = phases[0]
        training.backward, training.unreduced, training.loss_scale = self._backward, self._unreduced, self._loss_scale

    # -- what it is made of -------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """What the network is trained for."""
        return self.method.training.task

    @property
    def results(self) -> dict[str, float]:
        """Metrics of the last training epoch and the last evaluation."""
        return self.method.training.results

    @property
    def processes(self) -> Processes:
        """This process and the others."""
        return self.method.training.processes

    @property
    def data(self) -> DataModule:
        """The dataset that the trainer was given."""
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, DataModule)
        return data

    # -- phases -------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The running phase."""
        return self.phases[self._phase]

    @property
    def final_from(self) -> int | None:
        """Epochs after which the network had its final shape; None: it has not yet."""
        return self._phase_start if self.phase.final else None

    def finished(self, epochs: int) -> bool:
        """Whether training is over after `epochs` epochs, before the trainer's own end."""
        last, length = self._phase == len(self.phases) - 1, self.phase.epochs
        return last and length is not None and epochs >= self._phase_start + length

    def end_of_epoch(self, epochs: int, plan: Plan | None) -> None:
        """Count a round that was carried out after `epochs` epochs, and go on to the next phase where one ends."""
        if plan is not None:
            self.method.training.round = plan.round
        stop = plan is not None and plan.stop is not None
        length = self.phase.epochs
        over = stop or (length is not None and epochs >= self._phase_start + length)
        if over and self._phase < len(self.phases) - 1:
            if plan is not None and stop:
                self.stop_reason = plan.stop
            self._begin_phase(self._phase + 1, epochs)

    def _begin_phase(self, number: int, epochs: int) -> None:
        self._phase, self._phase_start = number, epochs
        self.method.training.phase = self.phase

    # -- one step -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.method.training.optimizers = self.method.optimizers()
        return self.method.training.optimizers

    def forward(self, images: Tensor) -> Output:
        """The method's output of images (batch, channels, height, width)."""
        return self.method.forward(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        targets = self.task.taught(images, targets)
        training = self.method.training
        training.epoch, training.batch = self.current_epoch, batch_idx
        first, *others = self._optimizers()
        epoch = self.current_epoch - self._phase_start
        lr = self.phase.learning_rate(epoch, batch_idx, int(self.trainer.num_training_batches))
        for group in first.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        loss, sums = self._compile(images, targets) if self._compiling else self.method.step(images, targets)
        self.method.before_step()
        first.step()
        for optimizer in others:
            optimizer.step()
        for optimizer in (first, *others):
            optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss)
        self._sums.append(sums)
        self.batches_done = batch_idx + 1
        for some, flops in self.method.computed(len(targets) * self.trainer.world_size):
            training.ledger.add(some, flops)
        training.ledger.teacher += len(targets) * self.trainer.world_size * self.task.teacher_flops
        if self.batches_done % _COLLECT_EVERY == 0:
            self.collect()

    def _optimizers(self) -> list[Any]:
        """The first as Lightning wraps it, whose steps it counts; others as they are."""
        wrapped = self.optimizers()
        first = wrapped[0] if isinstance(wrapped, list) else wrapped
        return [first, *self.method.training.optimizers[1:]]

    def _backward(self, loss: Tensor) -> None:
        self.manual_backward(loss)

    def _loss_scale(self) -> float:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _unreduced(self) -> AbstractContextManager[None]:
        wrapped = self.trainer.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def _start_compiling(self) -> None:
        if self.compiler and self.method.training.compiled is None and self.phase.final:
            torch.compiler.reset()
            compiled: Callable[[Tensor], Output] = torch.compile(self.method.forward, backend=self.compiler)
            self.method.training.compiled, self._compiling = compiled, True

    def _compile(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The first step of a compiled network; its time, nearly all of it the compiler's, is booked as such."""
        start = time.perf_counter()
        try:
            done = self.method.step(images, targets)
        except RuntimeError as error:
            if not is_compiler_error(error):
                raise
            text = " ".join(str(error).split())[:200]
            raise RunError(
                f"trainer.compile={self.compiler} fails on this network ({text}); leave it out to train without"
            ) from error
        self._compiling = False
        self.method.training.ledger.compile_seconds += time.perf_counter() - start
        return done

    def on_train_epoch_start(self) -> None:
        self._losses, self._sums = [], []
        self._totals = torch.zeros(0, dtype=torch.float64)
        self.results.clear()
        self._start_compiling()
        # for dropout and its like: the same when the run is continued here
        drawn = keyed_seed("network", self.data.seed, self.current_epoch, self.global_rank)
        torch.manual_seed(drawn)
        np.random.seed(drawn % 2**32)
        random.seed(drawn)

    def collect(self) -> None:
        """Add the steps since the last call, of all processes, to the epoch's totals. All processes must call.

        Raises RunError if a loss was not finite. The totals are of double precision, in which sums of single-precision
        numbers are exact: they do not depend on when they are collected.
        """
        if self._losses:
            losses, sums = torch.stack(self._losses).cpu(), torch.stack(self._sums).cpu()
            steps = len(losses)
            own = torch.tensor([float(losses.double().sum()), steps], dtype=torch.float64)
            total = self.processes.sum(torch.cat([own, sums.double().sum(0)]))
            if not total.isfinite().all():
                bad = (~torch.isfinite(losses)).nonzero()
                batch = self.batches_done - steps + (int(bad[0]) if len(bad) else steps - 1)
                self._not_finite("loss", self.current_epoch * int(self.trainer.num_training_batches) + batch)
            self._totals = self._totals + total if len(self._totals) else total
            self._losses, self._sums = [], []
        self.method.collect()

    def end_training_epoch(self) -> None:
        """Put the mean loss and the metrics of the training epoch, which this ends, of all processes into `results`."""
        self.method.refresh()
        self.collect()
        self.batches_done = 0
        if len(self._totals):
            loss, steps = self._totals[:2].tolist()
            self.results["train_loss"] = loss / steps
            values = self.task.compute(self._totals[2:])
            self.results.update({f"train_{name}": value for name, value in values.items()})
        for name in ("train_loss", f"train_{self.task.metric.name}"):
            self._publish(name)

    def _publish(self, name: str) -> None:
        """Let callbacks of Lightning's, such as EarlyStopping, see a result: in trainer.callback_metrics."""
        if name in self.results:
            self.log(name, self.results[name], logger=False, prog_bar=False, rank_zero_only=False, batch_size=1)

    def _not_finite(self, what: str, step: int) -> NoReturn:
        raise RunError(
            f"the {what} is not finite at step {step} (epoch {self.current_epoch + 1}, phase {self.phase.name}): try a "
            "smaller optim.lr; the checkpoint of the last good epoch is kept"
        )

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        output = self.method.evaluate(images)
        losses = self.task.losses(output, targets)
        count = torch.tensor(float(len(targets)), dtype=torch.float64, device=losses.device)
        own = torch.stack([losses.double().sum(), count])
        self._evaluated.append(torch.cat([own, self.task.sums(output, targets).double()]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self._evaluated.clear()
        self.processes.synchronise(self.net.buffers())  # each process has the running statistics of its own images
        self.method.refresh()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val")
        for metric in self.task.metrics:
            self._publish(f"val_{metric.name}")
        self._publish("val_loss")

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test")

    def _end_evaluation(self, name: str) -> None:
        total = self.processes.sum(torch.stack(self._evaluated).sum(0).cpu())
        self._evaluated.clear()
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            self.collect()  # names the step, if it was one of training
            self._not_finite(f"{name} loss", self.trainer.global_step)
        self.results[f"{name}_loss"] = loss
        self.results.update({f"{name}_{metric}": value for metric, value in self.task.compute(total[2:]).items()})

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["budgetnet"] = {
            "format": CHECKPOINT_FORMAT,
            "widths": self.method.training.graph.widths,
            "ledger": self.method.training.ledger.state_dict(),
            "phase": self._phase,
            "phase_start": self._phase_start,
            "round": self.method.training.round,
            "stop_reason": self.stop_reason,
            "epochs": self.current_epoch + (self.batches_done == 0),
            "batches": self.batches_done,
            "totals": self._totals.tolist(),
            "random_state": self._random_state,
            "method": self.method.state_dict(),
        }
        self._random_state = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the checkpoint's structure and widths before its weights are loaded."""
        state = checkpoint.get("budgetnet")
        if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
            raise UsageError(
                f"the checkpoint is not one of format {CHECKPOINT_FORMAT}: start the run in a new directory (run.dir=)"
            )
        training = self.method.training
        self._begin_phase(state["phase"], state["phase_start"])
        training.round, self.stop_reason = state["round"], state["stop_reason"]
        training.ledger.load_state_dict(state["ledger"])
        self.method.rebuild(state["method"])
        widths = training.graph.widths
        changes = {name: width for name, width in state["widths"].items() if widths.get(name) != width}
        if changes:
            training.resize(changes)
        self.method.load_state_dict(state["method"])
        self.batches_done = state["batches"]
        self._totals = torch.tensor(state["totals"], dtype=torch.float64)
        self._random_state = state["random_state"]

    def keep_random_state(self) -> None:
        """Put every process's random state into the next checkpoint: one in the middle of an epoch needs it."""
        self._random_state = self.processes.gather(_random_state(self.device))

    def on_fit_start(self) -> None:
        self.method.begin()

    def on_train_start(self) -> None:
        if self.batches_done:  # in the middle of an epoch, whose start is not announced again
            self._start_compiling()
        states, self._random_state = self._random_state, None
        if states is not None and self.global_rank < len(states):
            _restore(states[self.global_rank], self.device)


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


def _restore(state: dict[str, Any], device: torch.device) -> None:
    """The opposite of `_random_state`."""
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
