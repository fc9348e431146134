"""A short run in this process, and what it leaves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch

from budgetnet.command.build import Components, build
from budgetnet.command.compose import composed

SHORT = (
    "dataset=digits", "backbone=lenet5", "budget.flops=70%", "growth.seed_shape=equal", "growth.epochs_per_round=1",
    "growth.policy=saturation", "growth.readout=support", "growth.threshold=0.0",
    "lbi.selection_norm=0.3", "growth.number=1", "growth.ratio=0.0", "finetune.epochs=3",
    "epochs=12", "optim.lr=0.02", "logger=csv", "dataset.limit_train=40", "dataset.batch_size=8",
    "dataset.validation=40", "dataset.limit_test=40", "threads=1", "trainer.progress=false", "trainer.accelerator=cpu",
)  # fmt: skip
"""Three growing epochs and three of fine-tuning, five steps each, of a network without batch norm."""


Fit = Callable[..., Components]


def fitted(directory: Path, *overrides: str) -> Components:
    """Train a configuration as a run does, in this process, which keeps the run's number of threads."""
    parts = build(composed([*SHORT, *overrides]), directory)
    parts.trainer.fit(parts.learner, datamodule=parts.data)
    return parts


def metrics(parts: Components) -> list[dict[str, str]]:
    with open(Path(parts.trainer.default_root_dir, "metrics.csv")) as file:
        return list(csv.DictReader(file))


def weights(parts: Components) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in parts.learner.net.state_dict().items()}
