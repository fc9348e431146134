"""The parts of a run, put together from a resolved configuration; nothing is written."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from budgetnet.channels import ChannelGraph, GraphError
from budgetnet.command.configuration import Training, parse
from budgetnet.command.methods import method_class
from budgetnet.costs import CostModel, TrainCostLedger
from budgetnet.data.datamodule import DataModule
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError, nearest
from budgetnet.methods.base import BudgetedModule
from budgetnet.processes.environment import started
from budgetnet.runs.checkpoints import DurableFiles
from budgetnet.runs.records import Records, metric_columns
from budgetnet.tasks import Classification, Segmentation, Task
from budgetnet.training.callbacks.checkpoint import Checkpoint
from budgetnet.training.callbacks.epoch_test import EpochTest
from budgetnet.training.callbacks.growth import Growth
from budgetnet.training.callbacks.preemption import Preemption, Signals
from budgetnet.training.callbacks.progress import Progress
from budgetnet.training.callbacks.record import Recorder
from budgetnet.training.loggers import make_loggers

Config = Mapping[str, Any]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Parts:
    """What a run is made of. full: widths and costs of the full backbone that the method started from."""

    data: DataModule
    module: BudgetedModule
    trainer: pl.Trainer
    full: dict[str, Any]


def build(config: Config, directory: Path, signals: Signals | None = None) -> Parts:
    """The parts of a run that will be kept in `directory`.

    signals: those that may end it.
    Raises UsageError for a configuration that cannot run. Nothing is written, but a missing dataset is downloaded.
    """
    quiet()
    configuration = parse(config, method_class(config))
    config = configuration.plain
    with _blamed_on("dataset"):
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        if config["threads"] is not None:
            torch.set_num_threads(config["threads"])
            os.environ["OMP_NUM_THREADS"] = str(config["threads"])  # Lightning's launcher asks for it
        data = make_data(configuration.dataset, config["dataset"])
        data.prepare_data()
    task = make_task(config.get("task"), data, config["optim"]["label_smoothing"])
    module, full = make_module(config, data, task)
    trainer = make_trainer(config, directory, module, signals or Signals())
    if config["trainer"]["channels_last"]:
        _channels_last(module.net, data, trainer.strategy.root_device)
    data.check(trainer.world_size)
    module.check(trainer, data, continued=(directory / "last.ckpt").exists())
    return Parts(data, module, trainer, full)


def make(name: str, section: Config, kind: type[Made], **arguments: Any) -> Made:
    """What the `_target_` of a section of conf/ makes; UsageError if that is not of this kind."""
    return _expect(name, section, kind, instantiate(section, **arguments))


def _expect(name: str, section: Config, kind: type[Made], made: Any) -> Made:
    if not isinstance(made, kind):
        target, expected = section["_target_"], f"{kind.__module__}.{kind.__name__}"
        raise UsageError(f"{name}._target_={target} made a {type(made).__name__}: expected a {expected}")
    return made


def make_data(options: DatasetOptions, section: Config) -> DataModule:
    """The dataset of conf/dataset: its `_target_` is called with the options and the source."""
    target = instantiate({"_target_": section["_target_"], "_partial_": True, "source": section.get("source")})
    return _expect("dataset", section, DataModule, target(options=options))


def make_module(config: Config, data: DataModule, task: Task) -> tuple[BudgetedModule, dict[str, Any]]:
    """The method's module, and facts of the full backbone it started from (widths and costs)."""
    with _blamed_on("backbone"):
        net = make_network(config["backbone"], data, task, config["trainer"]["sync_batchnorm"])
        graph = ChannelGraph.of(net)
        reference = graph
        if config["method"]["name"] == "train" and config["backbone"].get("multiplier") is not None:
            reference = ChannelGraph.of(make_network({**config["backbone"], "multiplier": None}, data, task))
    costs, widths = CostModel(reference).costs(), reference.widths
    images = data.images_per_epoch(1)
    ledger = TrainCostLedger(images, data.baseline_epochs, costs["flops"])
    target = config["method"]["_target_"]
    with _blamed_on(f"method._target_={target}"):
        method = instantiate({"_target_": target, "_partial_": True})
        module = method(config, net, data.num_classes, ledger)
        if not isinstance(module, BudgetedModule):
            raise UsageError(f"method._target_={target} made a {type(module).__name__}: expected a BudgetedModule")
    module.task = task
    full = {
        "full_widths": widths,
        "seed_widths": module.graph.widths,
        "full_params": costs["params"],
        "full_flops": costs["flops"],
    }
    if module.full_depths:
        full["full_depths"] = dict(module.full_depths)
    return module, full


def make_network(backbone: Config, data: DataModule, task: Task, sync_batchnorm: bool = False) -> torch.nn.Module:
    """The network of conf/backbone for a dataset, traced; one that is not the project's own is also proven.

    It is called with num_classes and in_channels and, where it takes them, with image_size, a list of height and width,
    and task, the task's name.
    sync_batchnorm: batch norms that take their statistics over all processes; replaced before the network is traced.
    """
    section = dict(backbone)
    frozen = section.pop("frozen", [])
    if not isinstance(frozen, list) or not all(isinstance(name, str) for name in frozen):
        raise UsageError(f"backbone.frozen={frozen}: expected a list of module paths or operations")
    name = section.get("name", section["_target_"])
    outputs = task.outputs(data.num_classes)
    net = new_network(section, outputs, data.input_shape, task)
    if sync_batchnorm:
        net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    try:
        graph = ChannelGraph.trace(net, torch.empty(1, *data.input_shape), frozen)
        if not section["_target_"].startswith("budgetnet.backbones."):
            graph.verify()
    except GraphError as error:
        raise UsageError(f"backbone={name}: {error}") from error
    _check_output(name, net, task, outputs, data.input_shape)
    return net


def _parameters(target: str) -> Collection[str]:
    """Names of what a `_target_` takes; none where that cannot be told, as of one that does not exist."""
    try:
        return signature(resolve_name(target)).parameters
    except Exception:  # whatever importing it raises; building the network says what
        return ()


def _check_output(name: str, net: torch.nn.Module, task: Task, outputs: int, shape: tuple[int, int, int]) -> None:
    """Raises UsageError unless a network gives what its task takes. It is run on no data, without a cost."""
    output = copy.deepcopy(net).to("meta").eval()(torch.empty(2, *shape, device="meta"))
    try:
        task.check(output, outputs, shape)
    except UsageError as error:
        raise UsageError(f"backbone={name}: {error}") from error


_TASKS = (Classification, Segmentation)
"""What the labels of a dataset are for, unless the option `task` says it."""


def make_task(section: Config | None, data: DataModule, label_smoothing: float) -> Task:
    """The task of conf/task, or, without one, what the dataset's labels are for.

    It is given label_smoothing if it takes it. Raises UsageError for a task that the labels are not for.
    """
    dims = data.splits.train.labels.dim()
    if section is None:
        kind = next(kind for kind in _TASKS if kind.target_dims == dims)
        section = {"_target_": f"{kind.__module__}.{kind.__name__}"}
    options = {key: value for key, value in section.items() if key != "name"}
    if "label_smoothing" in _parameters(section["_target_"]):
        options["label_smoothing"] = label_smoothing
    elif label_smoothing:
        raise UsageError(f"optim.label_smoothing={label_smoothing}: task={section['_target_']} does not take it")
    task = make("task", options, Task)  # type: ignore[type-abstract]
    if task.target_dims != dims:
        have, example = ("whole images", "shapes") if dims == 1 else ("pixels", "cifar10")
        raise UsageError(
            f"task={task.name}, but the labels of dataset={data.name} are of {have}: leave task out, or choose a "
            f"dataset for it, such as dataset={example}"
        )
    return task


def new_network(section: Config, outputs: int, shape: Sequence[int], task: Task | None = None) -> torch.nn.Module:
    """What conf/backbone describes, for images of this shape (channels, height, width).

    It is told its outputs (num_classes) and channels, and, where it takes them, image_size=[height, width] and the
    name of the task, which is classification unless it is given.
    """
    task = task or Classification()
    channels, *image_size = shape
    known: dict[str, Any] = {"image_size": image_size, "task": task.name}
    arguments = {name: value for name, value in known.items() if name in _parameters(section["_target_"])}
    if "image_size" in arguments:
        section = {**section, "_convert_": "all"}  # a plain list
    if isinstance(task, Segmentation) and "task" not in arguments:
        raise UsageError(
            f"backbone={section.get('name', section['_target_'])} classifies whole images: choose one that segments, "
            "such as cnf, or a network of your own that takes task"
        )
    return make("backbone", section, torch.nn.Module, num_classes=outputs, in_channels=channels, **arguments)


def make_trainer(config: Config, directory: Path, module: BudgetedModule, signals: Signals) -> pl.Trainer:
    """The Lightning trainer of conf/trainer with the project's callbacks, in the order they must run in."""
    section = dict(config["trainer"])
    records = Records(directory, metric_columns([metric.name for metric in module.task.metrics]))
    if section["strategy"] not in ("auto", "ddp"):
        raise UsageError(f"trainer.strategy={section['strategy']}: {_why_not(str(section['strategy']))}; use ddp")
    progress = section.pop("progress")
    section.pop("channels_last")  # done by build
    section.pop("sync_batchnorm")  # done by make_network
    module.micro_batches, module.compiler = section.pop("micro_batches"), section.pop("compile")
    if module.compiler is not None and module.compiler not in (known := torch.compiler.list_backends(())):
        raise UsageError(
            f"trainer.compile={module.compiler!r} is no backend of torch.compile{nearest(module.compiler, known)}"
        )
    checkpoint = Checkpoint(directory, config["checkpoint"]["every_n_steps"])
    limit = module.budget.limits.get("flops")
    loggers = partial(make_loggers, config["logger"], config, directory)
    callbacks: list[pl.Callback] = [EpochTest()] if section.pop("test_every_epoch") else []
    callbacks += [Recorder(records, loggers)]
    callbacks += [Progress(limit)] if progress else []
    callbacks += [Growth(records)] if hasattr(module, "plan_round") else []
    for name, callback in config["callbacks"].items():
        with _blamed_on(f"callbacks.{name}"):
            callbacks += [make(f"callbacks.{name}", callback, pl.Callback)]
    callbacks += [Preemption(checkpoint, signals), checkpoint]
    own = {
        "max_epochs": config["epochs"],
        "logger": False,
        "callbacks": callbacks,
        "default_root_dir": directory,
        "enable_progress_bar": progress,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "plugins": [DurableFiles(), *_cluster()],
    }
    stated = [f"{name}={value}" for name, value in section.items() if value != getattr(Training, name)]
    with _blamed_on(f"trainer with {', '.join(stated) or 'its defaults'}"):
        trainer = pl.Trainer(**section, **own)
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):  # what "auto" makes of a TPU
        raise UsageError(f"trainer.strategy={type(trainer.strategy).__name__}: {_why_not('')}; use ddp")
    if config["trainer"]["sync_batchnorm"] and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise UsageError("trainer.sync_batchnorm=true needs GPUs: torch's SyncBatchNorm does not take CPU tensors")
    return trainer


def _channels_last(net: torch.nn.Module, data: DataModule, device: torch.device) -> None:
    """Give weights and images that memory format, unless a CPU would crash on it.

    oneDNN (issue 6035) writes past its workspace in the backward pass of a strided 1×1 convolution with fewer input
    channels than a vector holds. The project's own backbones have none.
    """
    convolutions = (module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
    if device.type == "cpu" and any(c.kernel_size == (1, 1) and max(c.stride) > 1 for c in convolutions):
        data.channels_last = False
    else:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _cluster() -> list[ClusterEnvironment]:
    """Slurm where srun has started this process; in a mere batch script of Slurm, what serves without it."""
    if started().by == "srun":
        try:
            return [SLURMEnvironment(auto_requeue=False)]
        except RuntimeError as error:
            raise UsageError(" ".join(str(error).split())) from error
    alone = started().by != "torchrun" and SLURMEnvironment.detect()
    return [LightningEnvironment()] if alone else []


def _why_not(strategy: str) -> str:
    """Why a run cannot have a strategy of Lightning's other than ddp."""
    if "find_unused" in strategy:
        return "a parameter that has grown would silently not be reduced, and the processes would drift apart"
    if strategy.startswith(("fsdp", "deepspeed", "xla", "model_parallel")):
        return "it cuts parameters into shards, whose shapes cannot change while a network grows"
    return "not one that a growing run has been proven with"


@contextmanager
def _blamed_on(section: str) -> Iterator[None]:
    """Whatever breaks while a part of the run is put together is the fault of its section's options: one line."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, OSError, ImportError, HydraException, MisconfigurationException) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        if isinstance(cause, UsageError):
            raise cause from error
        text = " ".join(str(cause).split())
        raise UsageError(f"{section} cannot be built ({type(cause).__name__}: {text})") from error


def quiet() -> None:
    """Leave the terminal to the run: Lightning's notices about devices and workers say nothing here."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        "does not have many workers",
        "smaller than the logging interval",
        "Total length of `list` across ranks is zero",
        "Deterministic behavior was enabled",
        "Grad strides do not match",
        "LeafSpec",
        "treespec",
    ):
        warnings.filterwarnings("ignore", f".*{text}.*")
