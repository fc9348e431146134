"""Names of runs and sweeps, made of their overrides, so that the same command finds its directory again."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetnet.sections import affects_result

SWEEP = "BUDGETNET_SWEEP"
"""The environment variable with the folder of the sweep, for all of its processes."""

_LONGEST_NAME = 120
_CHECKOUT = ["python", "-m", "src.run"]


def program() -> list[str]:
    """The words that this process was started with, before its overrides: `budgetnet`, or those of a checkout."""
    return ["budgetnet"] if Path(sys.argv[0]).stem in ("budgetnet", "main") else _CHECKOUT


def program_module() -> str:
    """The module that `program` runs."""
    return "src.run" if program() == _CHECKOUT else "budgetnet.command.main"


def run_directory(config: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """The directory of a run: `run.dir`, or else root/experiment/name. The name defaults to `run_name(overrides)`.

    A dataset that is named after its folder is called so there, too, as two folders are two datasets.
    """
    run = config["run"]
    if run["dir"] is not None:
        return Path(run["dir"])
    named = [
        f"dataset={config['dataset']['name']}" if each in ("dataset=folder", "+dataset=folder") else each
        for each in overrides
    ]
    return Path(run["root"], run["experiment"], run["name"] or run_name(named))


def run_name(overrides: Iterable[str]) -> str:
    """A file name made of overrides in any order, without those that cannot affect what is learned.

    >>> run_name(["seed=1", "backbone=vgg16", "budget.flops=50%", "logger=csv"])
    'backbone=vgg16,budget.flops=50%,seed=1'
    """
    named = sorted(filter(_is_named, (override.lstrip("+~") for override in overrides)))
    return _file_name(",".join(named)) or "default"


def sweep_name(experiment: str, overrides: Iterable[str]) -> str:
    """The name of a sweep, made of its experiment and overrides.

    >>> sweep_name("default", ["seed=0,1,2", "backbone=vgg16"])
    'default,backbone=vgg16,seed=0,1,2'
    """
    name = run_name(overrides)
    return _file_name(experiment if name == "default" else f"{experiment},{name}")


def _is_named(override: str) -> bool:
    option = override.partition("=")[0]
    hydras_own = option.startswith(("hydra.", "hydra/")) or option in (
        "hydra",
        "experiment",
    )  # the latter is the folder's
    return not hydras_own and affects_result(option)


def _file_name(text: str) -> str:
    name = re.sub(r"[^\w.,=%+@-]+", "_", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def command_line(overrides: Sequence[str] | None = None) -> str:
    """The command that runs this again: that of this process, or of one job of a sweep with these overrides."""
    return shlex.join([*program(), *(sys.argv[1:] if overrides is None else overrides)])
