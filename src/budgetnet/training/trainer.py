"""The Lightning trainer of conf/trainer, with the project's callbacks in the order they must run in."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

from budgetnet.errors import UsageError, nearest
from budgetnet.processes.launch import launch
from budgetnet.runs.durable_files import DurableFiles
from budgetnet.sections import TrainerOptions

_REFUSED = {
    "StochasticWeightAveraging": "it averages weights of networks whose shapes differ while a network changes",
    "WeightAveraging": "it averages weights of networks whose shapes differ while a network changes",
    "EMAWeightAveraging": "it averages weights of networks whose shapes differ while a network changes",
    "GradientAccumulationScheduler": "steps are counted by the run's own clock: use trainer.micro_batches",
    "ModelPruning": "its masks do not follow a network that changes its shape: use a pruning method",
    "BackboneFinetuning": "it replaces the optimizer's parameter groups, which methods manage themselves",
    "BatchSizeFinder": "it tries sizes by training before the run does: set dataset.batch_size",
    "LearningRateFinder": "it tries rates by training before the run does: set optim.lr",
    "SpikeDetection": "it reads a loss that a step returns, and methods take their own steps",
}
"""Callbacks of Lightning that cannot work with networks that change their shapes and methods that step, and why."""


def make_trainer(
    options: TrainerOptions, epochs: int, directory: Path, callbacks: Sequence[pl.Callback], unused_parameters: bool
) -> pl.Trainer:
    """The trainer of a run of at most `epochs` epochs.

    unused_parameters: whether a step may leave some parameters without a gradient.
    Raises UsageError for strategies, compilers, callbacks and devices with which a network that changes its shape
    cannot be trained.
    """
    if options.strategy not in ("auto", "ddp"):
        raise UsageError(f"trainer.strategy={options.strategy}: {_why_not(options.strategy)}; use ddp")
    if options.compile is not None and options.compile not in (known := torch.compiler.list_backends(())):
        raise UsageError(
            f"trainer.compile={options.compile!r} is no backend of torch.compile{nearest(options.compile, known)}"
        )
    for callback in callbacks:
        if why := next((_REFUSED[kind.__name__] for kind in type(callback).__mro__ if kind.__name__ in _REFUSED), None):
            raise UsageError(f"callbacks: {type(callback).__name__} cannot be used here: {why}")
    lightning: dict[str, Any] = dict(options.lightning)
    if options.compile is None:
        lightning |= _deterministic(lightning.pop("deterministic"), lightning.get("benchmark"))
    if options.strategy == "ddp":
        lightning["strategy"] = DDPStrategy(
            find_unused_parameters=unused_parameters, timeout=timedelta(minutes=options.timeout)
        )
    trainer = pl.Trainer(
        **lightning,
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=directory,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        plugins=[DurableFiles(), *_cluster()],
    )
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):  # what "auto" makes of a TPU
        raise UsageError(f"trainer.strategy={type(trainer.strategy).__name__}: {_why_not('')}; use ddp")
    if options.sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise UsageError("trainer.sync_batchnorm=true needs GPUs: torch's SyncBatchNorm does not take CPU tensors")
    return trainer


def _deterministic(mode: bool | str, benchmark: bool | None) -> dict[str, Any]:
    """Make torch's operations deterministic, as Lightning's option of this name does; returns its option benchmark.

    Lightning's also imports torch's compiler for a flag that only matters to compiled networks, which takes a second.
    """
    torch.set_deterministic_debug_mode("warn" if mode == "warn" else "error" if mode else "default")
    if mode:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # the documentation of cuBLAS, "Results reproducibility"
        benchmark = bool(benchmark)
    return {"benchmark": benchmark}


def _cluster() -> list[ClusterEnvironment]:
    """The Slurm environment if srun launched this process, and Lightning's own within a batch script without srun.

    Lightning would take any process under Slurm for one that srun launched.
    """
    if launch().by == "srun":
        try:
            return [SLURMEnvironment(auto_requeue=False)]
        except RuntimeError as error:
            raise UsageError(" ".join(str(error).split())) from error
    alone = launch().by != "torchrun" and SLURMEnvironment.detect()
    return [LightningEnvironment()] if alone else []


def _why_not(strategy: str) -> str:
    """Why a run cannot use a strategy other than ddp."""
    if "find_unused" in strategy:
        return "gradients of grown parameters would silently not be averaged, and the processes would drift apart"
    if strategy.startswith(("fsdp", "deepspeed", "xla", "model_parallel")):
        return "it cuts parameters into shards, whose shapes cannot change while a network grows"
    return "not one that a growing run has been proven with"


def quiet() -> None:
    """Silence Lightning's notices about devices and workers, which do not apply to these runs."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        "does not have many workers",
        "smaller than the logging interval",
        "Total length of `list` across ranks is zero",
        "Deterministic behavior was enabled",
        "Grad strides do not match",
        "It is recommended to use .*sync_dist",  # logged values are the same on every process
        "LeafSpec",
        "treespec",
    ):
        warnings.filterwarnings("ignore", f".*{text}.*")
