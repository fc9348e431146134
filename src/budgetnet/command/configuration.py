"""The whole configuration, checked before anything else is done with it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from budgetnet.costs.budget import KINDS, Budget
from budgetnet.errors import UsageError, nearest
from budgetnet.methods.growth import GrowthRule
from budgetnet.methods.options import (
    Bregman,
    Checkpoints,
    FineTuning,
    Optimization,
    Pruning,
    Rounds,
    SeedNetwork,
    WholeRun,
    options,
)

LARGEST = 1e30
"""Size of the numbers that arithmetic on options stays within range for; the smallest above 0 is its inverse."""

_LOGGERS = ("csv", "wandb")
_MODES = ("online", "offline", "disabled", None)
_MOST_DEVICES = 1024


@dataclass(frozen=True)
class Place:
    """conf/config.yaml, run: where the files of a run are kept."""

    root: str
    experiment: str
    name: str | None = None
    dir: str | None = None

    def __post_init__(self) -> None:
        for option in ("root", "experiment", "name", "dir"):
            value = getattr(self, option)
            if value is None:
                continue
            if not value.strip() or not value.isprintable() or max(map(len, os.fsencode(value).split(b"/"))) > 255:
                raise UsageError(f"run.{option}={value!r}: expected the name of a directory")


@dataclass(frozen=True)
class Logging:
    """conf/logger: the CSV files alone, or Weights & Biases beside them."""

    name: str
    project: str = "budgetnet"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: str | None = None
    init_timeout: float = 20

    def __post_init__(self) -> None:
        if self.name not in _LOGGERS:
            raise UsageError(f"logger.name={self.name!r} is unknown{nearest(self.name, _LOGGERS)}")
        if self.mode not in _MODES:
            raise UsageError(f"logger.mode={self.mode!r}: expected online, offline, disabled or null")
        if self.init_timeout <= 0:
            raise UsageError(f"logger.init_timeout={self.init_timeout}: expected a number of seconds above 0")


@dataclass(frozen=True)
class Training:
    """conf/trainer: where and how exactly is computed; the last four are options of Lightning's that may be added."""

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    deterministic: Any = "warn"
    check_val_every_n_epoch: int = 1
    test_every_epoch: bool = False
    sync_batchnorm: bool = False
    micro_batches: int = 1
    compile: str | None = None
    channels_last: bool = True
    progress: bool = True
    benchmark: bool | None = None
    detect_anomaly: bool = False
    inference_mode: bool = True
    profiler: str | None = None

    def __post_init__(self) -> None:
        devices = self.devices
        if isinstance(devices, str) and re.fullmatch(r"-?\d{1,9}(,\d{1,9})*,?", devices, re.ASCII):
            devices = [int(number) for number in devices.strip(",").split(",")]
            devices = devices[0] if "," not in self.devices else devices
        several = isinstance(devices, list) and 0 < len(set(map(str, devices))) == len(devices) <= _MOST_DEVICES
        if several:
            right = all(type(number) is int and 0 <= number < _MOST_DEVICES for number in devices)
        else:
            right = devices == "auto" or (type(devices) is int and (devices == -1 or 0 < devices <= _MOST_DEVICES))
        if not right:
            raise UsageError(
                f"trainer.devices={self.devices!r}: expected how many, 1 to {_MOST_DEVICES}, a list of device "
                "numbers, or auto"
            )
        if not 0 < self.num_nodes <= _MOST_DEVICES:
            raise UsageError(f"trainer.num_nodes={self.num_nodes}: expected 1 to {_MOST_DEVICES}")
        if self.deterministic not in (True, False, "warn"):
            raise UsageError(f"trainer.deterministic={self.deterministic!r}: expected true, false or warn")
        if self.micro_batches < 1:
            raise UsageError(f"trainer.micro_batches={self.micro_batches}: expected 1 or more")
        if self.check_val_every_n_epoch < 1:
            raise UsageError(f"trainer.check_val_every_n_epoch={self.check_val_every_n_epoch}: expected 1 or more")


_REPLACED = {
    **dict.fromkeys(("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"), "epochs"),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), "dataset.limit_train"),
    "limit_val_batches": "dataset.validation",
    "limit_test_batches": "dataset.limit_test",
    "fast_dev_run": "debug=quick",
    "gradient_clip_val": "a smaller optim.lr",
    "accumulate_grad_batches": "trainer.micro_batches",
}
"""Options of Lightning's trainer that a growing run cannot have, and what serves instead."""

_SECTIONS: Mapping[str, tuple[type, ...]] = {
    "run": (Place,),
    "logger": (Logging,),
    "checkpoint": (Checkpoints,),
    "trainer": (Training,),
    "growth": (GrowthRule, Rounds, SeedNetwork),
    "lbi": (Bregman,),
    "optim": (Optimization,),
    "finetune": (FineTuning,),
    "prune": (Pruning,),
}
_UNTUNED = ("bsn", "train", "width")
"""Methods that can do without fine-tuning, or have none."""
_BUILT = ("method", "backbone", "dataset")
"""Sections whose `_target_` knows its options itself."""


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain, resolved configuration with every option of its type, and those left out at their defaults.

    Raises UsageError for a section that is missing, an option that is missing, unknown, of a wrong type or out of
    range. What only the network or the data can tell is checked where they are built.
    """
    _check_values(config)
    known = {field.name for field in fields(WholeRun)} | {*_SECTIONS, *_BUILT, "budget", "callbacks", "task"}
    _refuse_unknown("", config, known)
    result = {**config, **vars(options(WholeRun, "", config))}
    for name, kinds in _SECTIONS.items():
        section = _section(config, name)
        for option in section.keys() & _REPLACED.keys() if name == "trainer" else ():
            instead = _REPLACED[option]
            raise UsageError(f"trainer.{option} would go around the run's own clock and cost: use {instead} instead")
        _refuse_unknown(f"{name}.", section, {field.name for kind in kinds for field in fields(kind)})
        result[name] = dict(section)
        for kind in kinds:
            result[name] |= vars(options(kind, name, section))
    _refuse_unknown("budget.", _section(config, "budget"), (*KINDS, "machines"))
    _check_budget(Budget(**config["budget"]), config["method"].get("name"))
    if result["finetune"]["epochs"] == 0 and config["method"].get("name") not in _UNTUNED:
        raise UsageError("finetune.epochs=0: expected a number above 0")
    for name in _BUILT:
        _check_texts(name, _section(config, name), ("_target_",) if name == "backbone" else ("_target_", "name"))
    for name in _section(config, "callbacks"):
        _check_texts(f"callbacks.{name}", _section(config["callbacks"], name), ("_target_",))
    _check_values(result)  # text that was converted to numbers
    return result


def _check_budget(budget: Budget, method: Any) -> None:
    if method == "adenel":
        budget.require()
    for kind in ("latency", "sequential_ops"):
        if getattr(budget, kind) is not None and method != "bsn":
            raise UsageError(
                f"budget.{kind} is kept by choosing edges: use method=bsn with backbone=resnet_fabric or backbone=cnf, "
                "or state budget.flops or budget.params"
            )


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}".strip("."))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value, path)
    else:
        yield path, tree


def _check_values(config: Mapping[str, Any]) -> None:
    for path, value in _leaves(config, ""):
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UsageError(f"{path}={value!r}: expected a value, not text that stands for one")
        if isinstance(value, (int, float)) and value and not 1 / LARGEST <= abs(value) <= LARGEST:
            raise UsageError(f"{path}={value}: expected a finite number, 0 or from 1e-30 to 1e30 in size")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(config.get(name), Mapping):
        raise UsageError(f"{name}={config.get(name)!r}: expected a section of options, as in conf/")
    section: Mapping[str, Any] = config[name]
    return section


def _refuse_unknown(prefix: str, section: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in section.keys() - set(known):
        raise UsageError(f"no option is called '{prefix}{key}'{nearest(f'{prefix}{key}', [prefix + k for k in known])}")


def _check_texts(name: str, section: Mapping[str, Any], options: Sequence[str]) -> None:
    for option in options:
        value = section.get(option)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise UsageError(f"{name}.{option}={value!r}: expected a name, as in conf/{name}")
