"""Whole runs as a user starts them, kept small: LeNet-5 on scikit-learn's digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TINY = (
    "dataset=digits", "backbone=lenet5", "budget.flops=90%", "growth.seed_shape=equal", "growth.epochs_per_round=1",
    "growth.threshold=0.0", "lbi.selection_norm=0.3", "growth.number=1", "growth.ratio=0.0", "finetune.epochs=3",
    "epochs=16", "optim.lr=0.02", "export=false", "logger=csv",
)  # fmt: skip


def arguments(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "src.run", *overrides]


def environment() -> dict[str, str]:
    hidden = ("WANDB_MODE", "WANDB_API_KEY")
    return {key: value for key, value in os.environ.items() if key not in hidden} | {"OMP_NUM_THREADS": "1"}


def run(*overrides: str, module: str = "src.run") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *overrides]
    return subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run that was never interrupted."""
    directory = tmp_path_factory.mktemp("tiny") / "run"
    finished = run(*TINY, f"run.dir={directory}")
    assert finished.returncode == 0, finished.stderr
    return directory
