"""The only LightningModule: it trains any method on any task by manual optimization, and counts the train cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from budgetnet.data.datamodule import DataModule
from budgetnet.errors import RunError, UsageError
from budgetnet.internals import is_compiler_error
from budgetnet.methods.method import Method
from budgetnet.methods.phases import Phase, Stretch
from budgetnet.methods.plan import Plan
from budgetnet.processes.group import Processes
from budgetnet.runs.checkpoints import CHECKPOINT_FORMAT
from budgetnet.runs.warnings import Warnings
from budgetnet.seeding import keyed_seed, random_state, restore_random_state, seed_global_draws
from budgetnet.tasks import Output, Task
from budgetnet.training.conditions import changed, conditions
from budgetnet.training.forecast import course

_COLLECT_EVERY = 25  # steps between two collections of the losses, each of which waits for the device


class Learner(pl.LightningModule):
    """Trains the network of a method: steps, phases, the ledger of train cost, exact sums of metrics, checkpoints.

    method: a method whose `start` has been called.
    phases: the phases of the run, in order.
    compiler: a backend of torch.compile for training steps in the final phase, in which no shape changes.
    warnings: where warnings of the run are kept, which are part of a checkpoint.
    """

    def __init__(
        self, method: Method, phases: list[Phase], compiler: str | None = None, warnings: Warnings | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.warnings = warnings or Warnings()
        self.method, self.phases, self.compiler = method, phases, compiler
        training = method.training
        self.net = training.net
        self.own = method.modules
        self.stop_reason: str | None = None
        """Why the phase before the last one ended, the one in which the network took its shape."""
        self.batches_done = 0
        """Number of finished batches of the current epoch; 0 between epochs."""
        self._phase, self._phase_start = 0, 0
        """Index of the current phase, and the number of epochs that were finished when it began."""
        self._compiling = False
        self._losses: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._evaluated: list[Tensor] = []
        self._totals = torch.zeros(0, dtype=torch.float64)
        """Totals of the current epoch: the sum of the losses of its steps, their number, and the sums of metrics."""
        self._random_state: list[dict[str, Any]] | None = None
        self.confusion: Tensor | None = None
        """After a test: how many images of class i (rows) were predicted as class j. None without classes."""
        self._output: Output = torch.empty(0)
        training.phase = phases[0]
        training.backward, training.unreduced, training.loss_scale = self._backward, self._unreduced, self._loss_scale

    # -- components ---------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The task that the network is trained for."""
        return self.method.training.task

    @property
    def results(self) -> dict[str, float]:
        """Metrics of the last training epoch and of the last evaluation, by name."""
        return self.method.training.results

    @property
    def processes(self) -> Processes:
        """The group of training processes."""
        return self.method.training.processes

    @property
    def data(self) -> DataModule:
        """The data module of the trainer."""
        data = getattr(self.trainer, "datamodule", None)
        assert isinstance(data, DataModule)
        return data

    # -- phases -------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.phases[self._phase]

    @property
    def final_from(self) -> int | None:
        """The number of epochs after which the network had its final shape, or None if it does not have it yet."""
        return self._phase_start if self.phase.final else None

    def finished(self, epochs: int) -> bool:
        """Whether the last phase ends after `epochs` epochs, which may be before the trainer's last epoch."""
        last, length = self._phase == len(self.phases) - 1, self.phase.epochs
        return last and length is not None and epochs >= self._phase_start + length

    def end_of_epoch(self, epochs: int, plan: Plan | None) -> None:
        """Count the round that was applied after `epochs` epochs, and begin the next phase if the current one ends."""
        if plan is not None:
            self.method.training.round = plan.round
        stop = plan is not None and plan.stop is not None
        length = self.phase.epochs
        over = stop or (length is not None and epochs >= self._phase_start + length)
        if over and self._phase < len(self.phases) - 1:
            if plan is not None and stop:
                self.stop_reason = plan.stop
            self._begin_phase(self._phase + 1, epochs)
            if self.phase.final:
                self.method.training.budget.require_kept(self.method.costs(), f"the network after epoch {epochs}")

    def _begin_phase(self, number: int, epochs: int) -> None:
        self._phase, self._phase_start = number, epochs
        self.method.training.phase = self.phase

    def course(self, epochs: int) -> list[Stretch]:
        """What is to come after `epochs` finished epochs, as far as it can be foreseen."""
        return course(self.method, self.phases[self._phase :], self._phase_start, epochs)

    @property
    def compiling(self) -> bool:
        """Whether the next step compiles the network, which may take minutes."""
        return self._compiling

    @property
    def running_loss(self) -> float | None:
        """The mean training loss of the epoch so far, without waiting for the device; None at its beginning."""
        return float(self._totals[0] / self._totals[1]) if len(self._totals) else None

    # -- one step -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.method.training.optimizers = self.method.optimizers()
        return self.method.training.optimizers

    def forward(self, images: Tensor) -> Output:
        """The output of the method for images (batch, channels, height, width)."""
        return self.method.forward(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Take one step of the method and of all optimizers, and add its cost to the ledger.

        Raises RunError for a loss that is not finite, and for a network that cannot be compiled.
        """
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
        self.processes.step()
        for count, flops in self.method.computed(len(targets) * self.trainer.world_size):
            training.ledger.add(count, flops)
        training.ledger.teacher += len(targets) * self.trainer.world_size * self.task.teacher_flops
        if self.batches_done % _COLLECT_EVERY == 0:
            self.collect()

    def _optimizers(self) -> list[Any]:
        """The first optimizer as Lightning wraps it, so that its steps are counted; the others as they are."""
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
        """Take the first step of a compiled network. Nearly all of its time is compilation, and it is recorded so."""
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
        # dropout and other random layers draw the same numbers in this epoch when the run is resumed
        seed_global_draws(keyed_seed("network", self.data.seed, self.current_epoch, self.global_rank))

    def collect(self) -> None:
        """Add the steps of all processes since the last call to the totals of the epoch. All processes must call.

        The totals are in double precision, in which sums of single-precision numbers are exact, so that they do not
        depend on when they are collected. Raises RunError for a loss that is not finite.
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
        """End the training epoch and put its mean loss and metrics over all processes into `results`.

        Raises RunError for a loss that is not finite.
        """
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
        """Put a result into trainer.callback_metrics for Lightning's callbacks, such as EarlyStopping."""
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
        self._output = output = self.method.evaluate(images)
        losses = self.task.losses(output, targets)
        count = torch.tensor(float(len(targets)), dtype=torch.float64, device=losses.device)
        own = torch.stack([losses.double().sum(), count])
        self._evaluated.append(torch.cat([own, self.task.sums(output, targets).double()]))
        self.method.judge(output, targets)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)
        if self.trainer.testing and (counts := self.task.confusion(self._output, batch[1])) is not None:
            self.confusion = counts if self.confusion is None else self.confusion + counts

    def on_validation_epoch_start(self) -> None:
        self._evaluated.clear()
        self.processes.synchronise(self.net.buffers())  # running statistics differ between processes
        self.method.refresh()

    def on_test_epoch_start(self) -> None:
        self.confusion = None
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Raises RunError for a validation loss that is not finite."""
        self._end_evaluation("val")
        for metric in self.task.metrics:
            self._publish(f"val_{metric.name}")
        self._publish("val_loss")

    def on_test_epoch_end(self) -> None:
        """Raises RunError for a test loss that is not finite."""
        self._end_evaluation("test")
        if self.confusion is not None:
            self.confusion = self.processes.sum(self.confusion.double()).long().cpu()

    def _end_evaluation(self, name: str) -> None:
        total = self.processes.sum(torch.stack(self._evaluated).sum(0).cpu())
        self._evaluated.clear()
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            self.collect()  # raises first, and names the step, if a training loss is not finite either
            self._not_finite(f"{name} loss", self.trainer.global_step)
        self.results[f"{name}_loss"] = loss
        values = {**self.task.compute(total[2:]), **self.method.judged(name)}
        self.results.update({f"{name}_{metric}": value for metric, value in values.items()})

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["budgetnet"] = {
            "format": CHECKPOINT_FORMAT,
            "widths": self.method.training.graph.widths,
            "edges": self.method.training.pricing.edge_names,
            "ledger": self.method.training.ledger.state_dict(),
            "phase": self._phase,
            "phase_start": self._phase_start,
            "round": self.method.training.round,
            "stop_reason": self.stop_reason,
            "epochs": self.current_epoch + (self.batches_done == 0),
            "batches": self.batches_done,
            "totals": self._totals.tolist(),
            "random_state": self._random_state,
            "warnings": list(self.warnings.lines),
            "conditions": self._conditions(),
            "method": self.method.state_dict(),
            "searching": self.method.searching,
        }
        self._random_state = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the structure and the widths of the checkpoint before its weights are loaded.

        Raises UsageError for a checkpoint of another format.
        """
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
        self.warnings.restore(state.get("warnings", []))
        line = changed(state.get("conditions"), self._conditions())
        if line is not None and self.processes.rank == 0:
            self.warnings.add(line)

    def _conditions(self) -> dict[str, Any]:
        return conditions(self.method.training.device, self.processes.count)

    def keep_random_state(self) -> None:
        """Put the random states of all processes into the next checkpoint, as one within an epoch needs them."""
        self._random_state = self.processes.gather(random_state(self.device))

    def on_fit_start(self) -> None:
        self.method.begin()

    def on_train_start(self) -> None:
        if self.batches_done:  # resumed within an epoch, for which on_train_epoch_start is not called
            self._start_compiling()
        states, self._random_state = self._random_state, None
        if states is not None and self.global_rank < len(states):
            restore_random_state(states[self.global_rank], self.device)
