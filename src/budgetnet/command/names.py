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


_OF_A_FOLDER = ("dataset=folder", "+dataset=folder")


def named_after_folder(overrides: Iterable[str]) -> bool:
    """Whether the dataset, and with it the run, is named after the folder of the pictures."""
    return any(each in _OF_A_FOLDER for each in overrides)


def run_directory(config: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """The directory of a run: `run.dir`, or else root/experiment/name. The name defaults to `run_name(overrides)`.

    A dataset that is named after its folder is called so there, too, as two folders are two datasets.
    """
    run = config["run"]
    if run["dir"] is not None:
        return Path(run["dir"])
    named = [f"dataset={config['dataset']['name']}" if each in _OF_A_FOLDER else each for each in overrides]
    return Path(run["root"], run["experiment"], run["name"] or run_name(named))


def run_name(overrides: Iterable[str]) -> str:
    """A file name made of overrides in any order, without those that cannot affect what is learned.

    >>> run_name(["seed=1", "backbone=vgg16", "budget.flops=50%", "logger=csv"])
    'backbone=vgg16,budget.flops=50%,seed=1'

    Different overrides give different names: what a file name cannot hold as it is adds a hash.
    >>> run_name(["dataset.name='a b'"]), run_name(["dataset.name='a:b'"])
    ('dataset.name=_a_b_-08dfef36', 'dataset.name=_a_b_-5d890156')
    """
    named = sorted(override.lstrip("+") for override in overrides if _is_named(override.lstrip("+~")))
    return _file_name(named) or "default"


def sweep_name(experiment: str, overrides: Iterable[str]) -> str:
    """The name of a sweep, made of its experiment and overrides.

    >>> sweep_name("default", ["seed=0,1,2", "backbone=vgg16"])
    'default,backbone=vgg16,seed=0,1,2'
    """
    name = run_name(overrides)
    return _file_name([experiment] if name == "default" else [experiment, *name.split(",")])


def _is_named(override: str) -> bool:
    option = override.partition("=")[0]
    hydras_own = option.startswith(("hydra.", "hydra/")) or option in (
        "hydra",
        "experiment",
    )  # the latter is the folder's
    return not hydras_own and affects_result(option)


def _file_name(parts: Sequence[str]) -> str:
    """A file name of parts, with a hash of them if it does not hold all of their text, or not where a part ends."""
    text = ",".join(parts)
    name = re.sub(r"[^\w.,=%+@-]+", "_", text)
    whole = name == text and all(part.count("=") < 2 for part in parts) and len(name) <= _LONGEST_NAME
    if whole:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def command_line(overrides: Sequence[str] | None = None) -> str:
    """The command that runs this again: that of this process, or of one job of a sweep with these overrides."""
    return shlex.join([*program(), *(sys.argv[1:] if overrides is None else overrides)])
