"""Commands as a user starts them, and what keeps their runs small: LeNet-5 on scikit-learn's digits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from killed import Replaced
from zygote import REPOSITORY, Forked

from budgetnet.command.build import build
from budgetnet.command.compose import composed
from budgetnet.errors import UsageError

TINY = (
    "dataset=digits", "backbone=lenet5", "budget.flops=90%", "growth.seed_shape=equal", "growth.epochs_per_round=1",
    "growth.policy=saturation", "growth.readout=support", "growth.threshold=0.0",
    "lbi.selection_norm=0.3", "growth.number=1", "growth.ratio=0.0", "finetune.epochs=3",
    "epochs=16", "optim.lr=0.02", "export=false", "logger=csv",
)  # fmt: skip
FEW = ("dataset.limit_train=40", "dataset.batch_size=8", "dataset.validation=60", "dataset.limit_test=60")
SHORT = (*TINY, *FEW)
"""Five growing epochs and three of fine-tuning, five steps each."""
FORGETFUL = ("backbone=own", "backbone._target_=tests.nets.Forgetful")
"""A network with dropout, which depends on the random state."""


def environment() -> dict[str, str]:
    hidden = ("WANDB_MODE", "WANDB_API_KEY")
    return {key: value for key, value in os.environ.items() if key not in hidden} | {"OMP_NUM_THREADS": "1"}


def start(
    *overrides: str,
    module: str = "src.run",
    before: Callable[[], object] | None = None,
    variables: Mapping[str, str] | None = None,
    figures: bool = False,
    others: int = 0,
) -> Forked:
    """Start a command in a fork of a process that has imported everything. before: called there first.

    figures: draw those of the report, which take half the time of a short run. others: how many of the processes that
    it starts are forks, too.
    """
    everywhere = None if figures or module == "src.report" else Replaced("budgetnet.reports.report._FIGURES", {})
    return Forked(overrides, {**environment(), **(variables or {})}, module, before, others, everywhere)


def run(
    *overrides: str,
    module: str = "src.run",
    before: Callable[[], object] | None = None,
    variables: Mapping[str, str] | None = None,
    figures: bool = False,
    others: int = 0,
) -> subprocess.CompletedProcess[str]:
    """The same, waiting for its end."""
    process = start(*overrides, module=module, before=before, variables=variables, figures=figures, others=others)
    stdout, stderr = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def refusal(directory: Path, *overrides: str) -> str:
    """The line with which a command is refused before its first step, in this process; nothing is written.

    That such a line is all that is printed, with exit code 2, is said in command/test_command.py.
    """
    with pytest.raises(UsageError) as refused:
        build(composed(overrides), directory)
    line = str(refused.value)
    assert "\n" not in line and not directory.exists()
    return line


def arguments(*overrides: str, module: str = "src.run") -> list[str]:
    return [sys.executable, "-m", module, *overrides]


def start_command(*overrides: str, module: str = "src.run") -> subprocess.Popen[str]:
    """Start a command as a user does, which takes the seconds of its imports."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        arguments(*overrides, module=module), cwd=REPOSITORY, env=environment(), stdout=pipe, stderr=pipe, text=True
    )


def run_command(*overrides: str, module: str = "src.run") -> subprocess.CompletedProcess[str]:
    """The same, waiting for its end."""
    return subprocess.run(
        arguments(*overrides, module=module),
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
