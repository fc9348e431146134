"""How a run and a sweep are called: by their overrides, so that the same command finds its directory again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_UNNAMED = (
    *("run.", "logger", "hydra", "export", "experiment", "launcher.", "checkpoint."),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "progress")),
)
_LONGEST_NAME = 120


def run_directory(config: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """root/experiment/name, or `run.dir`. The name is made of the overrides, so the same command finds it again."""
    run = config["run"]
    if run["dir"] is not None:
        return Path(run["dir"])
    return Path(run["root"], run["experiment"], run["name"] or run_name(overrides))


def run_name(overrides: Iterable[str]) -> str:
    """A file name for a list of overrides, whatever their order.

    >>> run_name(["seed=1", "backbone=vgg16", "budget.flops=50%", "logger=csv"])
    'backbone=vgg16,budget.flops=50%,seed=1'
    """
    named = sorted(o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith(_UNNAMED))
    return _file_name(",".join(named)) or "default"


def sweep_name(experiment: str, overrides: Iterable[str]) -> str:
    """The name of a sweep, made of its experiment and overrides, so that the same command finds its folder again.

    >>> sweep_name("default", ["seed=0,1,2", "backbone=vgg16"])
    'default,backbone=vgg16,seed=0,1,2'
    """
    name = run_name(overrides)
    return _file_name(experiment if name == "default" else f"{experiment},{name}")


def _file_name(text: str) -> str:
    name = re.sub(r"[^\w.,=%+@-]+", "_", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
