"""The sections of conf/ that no method reads, as value objects, and which options can affect a result."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, ClassVar

from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError, nearest
from budgetnet.options import NO_EFFECT, as_mapping, require_positive, without_effect

MOST_THREADS = 1024
MOST_DEVICES = 1024

_LOGGERS = ("csv", "wandb")
_MODES = ("online", "offline", "disabled", None)


@dataclass(frozen=True)
class WholeRun:
    """The options of conf/config.yaml itself. Raises UsageError for values out of range."""

    seed: int
    epochs: int
    threads: int | None = None
    export: bool = field(default=True, metadata=NO_EFFECT)
    plan: bool = field(default=False, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed={self.seed}: expected 0 to {2**32 - 1}")
        if self.epochs < 1:
            raise UsageError(f"epochs={self.epochs}: expected 1 or more")
        if self.threads is not None and not 0 < self.threads <= MOST_THREADS:
            raise UsageError(f"threads={self.threads}: expected 1 to {MOST_THREADS}, or null")


@dataclass(frozen=True)
class Place:
    """conf/config.yaml, run: where the files of a run are stored. Raises UsageError for what is no directory name."""

    affects_result: ClassVar[bool] = False

    root: str
    experiment: str
    name: str | None = None
    dir: str | None = None

    def __post_init__(self) -> None:
        for name, value in as_mapping(self).items():
            if value is None:
                continue
            if not value.strip() or not value.isprintable() or max(map(len, os.fsencode(value).split(b"/"))) > 255:
                raise UsageError(f"run.{name}={value!r}: expected the name of a directory")
            parts = PurePath(value).parts
            if name in ("name", "experiment") and (not parts or ".." in parts or PurePath(value).is_absolute()):
                raise UsageError(f"run.{name}={value!r} leaves run.root: for a directory anywhere else, give run.dir=")


@dataclass(frozen=True)
class Launching:
    """conf/config.yaml, launcher: how many jobs of a sweep run at the same time, and on which GPUs."""

    affects_result: ClassVar[bool] = False

    n_jobs: Any = None
    gpus: Any = None


@dataclass(frozen=True)
class Logging:
    """conf/logger: the CSV files alone, or also Weights & Biases or another logger.

    Raises UsageError for unknown values and values out of range.
    """

    affects_result: ClassVar[bool] = False

    name: str
    project: str = "budgetnet"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: str | None = None
    init_timeout: float = 20
    artifacts: bool = False
    _target_: str | None = None
    """The class of another logger of Lightning, which is called with the other options of the section."""

    def __post_init__(self) -> None:
        if self._target_ is None and self.name not in _LOGGERS:
            raise UsageError(f"logger.name={self.name!r} is unknown{nearest(self.name, _LOGGERS)}")
        if self.mode not in _MODES:
            raise UsageError(f"logger.mode={self.mode!r}: expected online, offline, disabled or null")
        if self.init_timeout <= 0:
            raise UsageError(f"logger.init_timeout={self.init_timeout}: expected a number of seconds above 0")
        if self._target_ is None:
            self._check_names()

    def _check_names(self) -> None:
        """W&B takes names of 1 to 128 characters without some, and tags of 1 to 64 characters."""
        for name, without in (("project", "/\\#?%:"), ("entity", "/\\#?%:"), ("group", "")):
            value = getattr(self, name)
            if value is not None and (not 0 < len(value.strip()) <= len(value) <= 128 or set(value) & set(without)):
                but = f" without {' '.join(without)}" if without else ""
                raise UsageError(f"logger.{name}={value!r}: W&B takes 1 to 128 characters{but}")
        for tag in self.tags:
            if not 0 < len(tag) <= 64:
                raise UsageError(f"logger.tags={list(self.tags)}: W&B takes tags of 1 to 64 characters")


@dataclass(frozen=True)
class Checkpoints:
    """conf/config.yaml, checkpoint: how often last.ckpt is written. Raises UsageError for a number below 1."""

    affects_result: ClassVar[bool] = False

    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        require_positive("checkpoint", every_n_steps=self.every_n_steps)


REPLACED = {
    **dict.fromkeys(("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"), "epochs"),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), "dataset.limit_train"),
    "limit_val_batches": "dataset.validation",
    "limit_test_batches": "dataset.limit_test",
    "fast_dev_run": "debug=quick",
    "gradient_clip_val": "a smaller optim.lr",
    "accumulate_grad_batches": "trainer.micro_batches",
}
"""Options of Lightning's trainer that are not supported, and their replacements."""


@dataclass(frozen=True)
class TrainerOptions:
    """conf/trainer: devices, precision and options of the trainer. The last four are further options of Lightning.

    timeout: minutes after which several processes no longer wait for one that gives no sign of life.

    Raises UsageError for values out of range.
    """

    accelerator: str = field(default="auto", metadata=NO_EFFECT)
    devices: Any = field(default=1, metadata=NO_EFFECT)
    num_nodes: int = field(default=1, metadata=NO_EFFECT)
    strategy: str = field(default="auto", metadata=NO_EFFECT)
    precision: str = "32-true"
    deterministic: Any = field(default="warn", metadata=NO_EFFECT)
    check_val_every_n_epoch: int = 1
    test_every_epoch: bool = False
    sync_batchnorm: bool = False
    micro_batches: int = 1
    compile: str | None = None
    channels_last: bool = field(default=True, metadata=NO_EFFECT)
    progress: bool = field(default=True, metadata=NO_EFFECT)
    timeout: float = field(default=10.0, metadata=NO_EFFECT)
    benchmark: bool | None = field(default=None, metadata=NO_EFFECT)
    detect_anomaly: bool = field(default=False, metadata=NO_EFFECT)
    inference_mode: bool = field(default=True, metadata=NO_EFFECT)
    profiler: str | None = field(default=None, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        self._check_devices()
        if not 0 < self.num_nodes <= MOST_DEVICES:
            raise UsageError(f"trainer.num_nodes={self.num_nodes}: expected 1 to {MOST_DEVICES}")
        if self.deterministic not in (True, False, "warn"):
            raise UsageError(f"trainer.deterministic={self.deterministic!r}: expected true, false or warn")
        if not 0 < self.timeout <= 10_000:
            raise UsageError(f"trainer.timeout={self.timeout}: expected minutes, above 0 and at most 10000")
        if self.micro_batches < 1:
            raise UsageError(f"trainer.micro_batches={self.micro_batches}: expected 1 or more")
        if self.check_val_every_n_epoch < 1:
            raise UsageError(f"trainer.check_val_every_n_epoch={self.check_val_every_n_epoch}: expected 1 or more")

    def _check_devices(self) -> None:
        devices = self.devices
        if isinstance(devices, str) and re.fullmatch(r"-?\d{1,9}(,\d{1,9})*,?", devices, re.ASCII):
            devices = [int(number) for number in devices.strip(",").split(",")]
            devices = devices[0] if "," not in self.devices else devices
        several = isinstance(devices, list) and 0 < len(set(map(str, devices))) == len(devices) <= MOST_DEVICES
        if several:
            right = all(type(number) is int and 0 <= number < MOST_DEVICES for number in devices)
        else:
            right = devices == "auto" or (type(devices) is int and (devices == -1 or 0 < devices <= MOST_DEVICES))
        if not right:
            raise UsageError(
                f"trainer.devices={self.devices!r}: expected how many, 1 to {MOST_DEVICES}, a list of device "
                "numbers, or auto"
            )

    @property
    def lightning(self) -> dict[str, Any]:
        """The arguments of `pl.Trainer`, which does not take the options of this project."""
        ours = (
            "test_every_epoch",
            "sync_batchnorm",
            "micro_batches",
            "compile",
            "channels_last",
            "progress",
            "timeout",
        )
        return {name: value for name, value in as_mapping(self).items() if name not in ours}

    @property
    def stated(self) -> list[str]:
        """The options in `lightning` that differ from their defaults, as text such as "precision=16-mixed"."""
        defaults = {each.name: each.default for each in fields(self)}
        return [f"{name}={value}" for name, value in self.lightning.items() if value != defaults[name]]


# -- which options can affect a result --------------------------------------------------------------------------------

SECTIONS: Mapping[str, type] = {
    "": WholeRun,
    "run": Place,
    "launcher": Launching,
    "logger": Logging,
    "checkpoint": Checkpoints,
    "trainer": TrainerOptions,
    "dataset": DatasetOptions,
}
"""The value object of each section by its name; "" holds the options outside sections."""


def affects_result(option: str) -> bool:
    """Whether an option, or any option of a section, can affect what is learned.

    An option that cannot says where a run is computed and stored, and changes at most the order in which numbers are
    added. All options outside SECTIONS, such as those of methods, can affect what is learned.

    >>> affects_result("dataset.batch_size"), affects_result("dataset.root"), affects_result("logger")
    (True, False, False)
    """
    section, _, name = option.partition(".")
    if section not in SECTIONS:
        section, name = "", option
    kind = SECTIONS[section]
    if not getattr(kind, "affects_result", True):  # this includes options that are not fields
        return False
    return name.partition(".")[0] not in without_effect(kind)


def affecting(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain configuration without the options that cannot affect what is learned.

    Runs are compared, and resumed, by these options.
    """
    found: dict[str, Any] = {}
    for section, value in config.items():
        if not affects_result(section):
            continue
        if section in SECTIONS and isinstance(value, Mapping):
            value = {name: each for name, each in value.items() if affects_result(f"{section}.{name}")}
        found[section] = value
    return found
