"""Building the components of a run from a resolved configuration, without writing any file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from budgetnet.channels import ChannelGraph
from budgetnet.command.configuration import Configuration, parse
from budgetnet.command.made import blamed_on, check_smallest_batch, make, make_data, make_network, make_task
from budgetnet.command.methods import method_class
from budgetnet.command.start import begin_from
from budgetnet.costs import CostModel, TrainCostLedger
from budgetnet.costs.pricing import pricing_of
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import UsageError
from budgetnet.methods.method import Method, Training
from budgetnet.processes.group import Processes
from budgetnet.runs.records import Records, metric_columns
from budgetnet.runs.warnings import Warnings
from budgetnet.tasks import Task
from budgetnet.tasks.distilled import distilled
from budgetnet.tasks.multi_exit import task_of
from budgetnet.training.callbacks.checkpoint import Checkpoint
from budgetnet.training.callbacks.epoch_test import EpochTest
from budgetnet.training.callbacks.growth import Growth
from budgetnet.training.callbacks.preemption import Preemption, Signals
from budgetnet.training.callbacks.progress import Progress
from budgetnet.training.callbacks.record import Recorder
from budgetnet.training.learner import Learner
from budgetnet.training.loggers import make_loggers
from budgetnet.training.trainer import make_trainer, quiet


@dataclass(frozen=True)
class Components:
    """The components of a run.

    full: entries of summary.json about the full backbone, such as its widths and costs.
    warning: a line about the full backbone for the start of the run, if most of it cannot change.
    """

    data: DataModule
    learner: Learner
    trainer: pl.Trainer
    processes: Processes
    full: dict[str, Any]
    warning: str | None

    @property
    def method(self) -> Method:
        """The method of the learner."""
        return self.learner.method


def build(config: Mapping[str, Any] | Configuration, directory: Path, signals: Signals | None = None) -> Components:
    """Build the components of a run in `directory`. Nothing is written, except that a missing dataset is downloaded.

    config: a plain and resolved configuration, or a parsed one. signals: the signals that may end the run.
    Raises UsageError for a configuration that cannot run.
    """
    quiet()
    options = config if isinstance(config, Configuration) else parse(config, method_class(config))
    method = make_method(options)
    with blamed_on("dataset"):
        pl.seed_everything(options.seed, workers=True, verbose=False)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
            os.environ["OMP_NUM_THREADS"] = str(options.threads)  # otherwise Lightning's launcher sets it
        data = make_data(options.dataset, options.plain["dataset"])
        data.prepare_data()
    with blamed_on("task"):
        task = make_task(options.task, data, getattr(method.optim, "label_smoothing", 0.0))
        if options.distill.teacher is not None:
            task = distilled(task, options.distill.teacher, data.num_classes, data.input_shape)
    with blamed_on("backbone"):
        net = make_network(options.backbone, data, task, options.trainer.sync_batchnorm)
        reference = net
        if options.backbone.get("multiplier") is not None and not method.needs_budget:
            reference = make_network({**options.backbone, "multiplier": None}, data, task)
        task = task_of(net, task)
    warnings = Warnings()
    trainer = _trainer(options, directory, task, method, signals or Signals(), warnings)
    data.check(trainer.world_size)
    share = data.images_per_epoch(trainer.world_size) // data.steps_per_epoch(trainer.world_size) // trainer.world_size
    name = str(options.backbone.get("name", options.backbone["_target_"]))
    check_smallest_batch(name, net, data.input_shape, share, options.trainer.micro_batches)
    processes = Processes(trainer)
    with blamed_on(f"method._target_={options.method['_target_']}"):
        full = ChannelGraph.of(reference)
        costs, widths, warning = CostModel(full).costs(), full.widths, full.warning
        began = begin_from(options, method, net, data, task.outputs(data.num_classes))
        images = data.images_per_epoch(trainer.world_size)
        ledger = TrainCostLedger(data.images_per_epoch(1), data.baseline_epochs, costs["flops"])
        pricing = pricing_of(net, options.budget.machines)
        whole = pricing.costs() if options.start_from is None else {**pricing.costs(), **costs}
        training = Training(
            net=net,
            task=task,
            pricing=pricing,
            ledger=ledger,
            budget=options.budget.resolve({**whole, "train_cost": ledger.baseline_cost}),
            epochs=options.epochs,
            seed=options.seed,
            backbone=options.backbone.get("name", options.backbone["_target_"]),
            input_shape=data.input_shape,
            batch_size=images // data.steps_per_epoch(trainer.world_size),
            steps_per_epoch=data.steps_per_epoch(trainer.world_size),
            validation_every=options.trainer.check_val_every_n_epoch if data.splits.validation is not None else None,
            micro_batches=options.trainer.micro_batches,
            processes=processes,
            device=trainer.strategy.root_device,
            dtype=torch.bfloat16 if options.trainer.precision == "bf16-true" else torch.float32,
            weights=began,
            started=options.start_from is not None,
        )
        try:
            phases = method.start(training)
        except UsageError as error:
            if warning is None or "budget" not in str(error).lower():
                raise
            raise UsageError(f"{error} ({warning})") from error
        training.pricing.update()
        learner = Learner(method, phases, options.trainer.compile, warnings)
    if options.trainer.channels_last:
        _channels_last(net, data, trainer.strategy.root_device)
    method.check(continued=(directory / "last.ckpt").exists())
    facts: dict[str, Any] = {"full_widths": widths, "seed_widths": training.graph.widths}
    facts |= {"full_params": costs["params"], "full_flops": costs["flops"]}
    if began is not None:
        facts["started_from"] = options.start_from or options.backbone["weights"]
    return Components(data, learner, trainer, processes, facts, warning)


def make_method(options: Configuration) -> Method:
    """Build the method of conf/method from the sections that it reads. Raises UsageError if it cannot be built."""
    target = options.method["_target_"]
    kind = method_class(options.plain)
    with blamed_on(f"method._target_={target}"):
        return kind(**options.sections)


def _trainer(
    options: Configuration, directory: Path, task: Task, method: Method, signals: Signals, warnings: Warnings
) -> pl.Trainer:
    """The trainer with its callbacks in the order in which they must run."""
    if options.trainer.compile is not None and method.create_graph:
        raise UsageError(
            f"trainer.compile={options.trainer.compile}: method={options.method['name']} differentiates through its "
            "gradients, which a compiled network does not allow: leave it out"
        )
    records = Records(
        directory, metric_columns([metric.name for metric in task.metrics], taught=task.teacher_flops > 0)
    )
    checkpoint = Checkpoint(directory, options.checkpoint.every_n_steps)
    callbacks: list[pl.Callback] = [EpochTest()] if options.trainer.test_every_epoch else []
    callbacks += [Recorder(records, partial(make_loggers, options.logger, options.plain, directory, warnings))]
    callbacks += [Progress()] if options.trainer.progress else []
    callbacks += [Growth(records)]
    for name, callback in options.callbacks.items():
        with blamed_on(f"callbacks.{name}"):
            callbacks += [make(f"callbacks.{name}", callback, pl.Callback)]
    callbacks += [Preemption(checkpoint, signals), checkpoint]
    with blamed_on(f"trainer with {', '.join(options.trainer.stated) or 'its defaults'}"):
        return make_trainer(options.trainer, options.epochs, directory, callbacks, method.unused_parameters)


def _channels_last(net: torch.nn.Module, data: DataModule, device: torch.device) -> None:
    """Convert weights and images to the memory format channels_last, unless a CPU would crash.

    In the backward pass of a 1×1 convolution with a stride and few input channels, oneDNN (issue 6035) writes past its
    workspace. The backbones of this project have no such convolution.
    """
    convolutions = (module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
    if device.type == "cpu" and any(c.kernel_size == (1, 1) and max(c.stride) > 1 for c in convolutions):
        data.channels_last = False
    else:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
