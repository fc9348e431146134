"""Options of the methods, one value object for each configuration section; they check themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from budgetnet.errors import UsageError, nearest
from budgetnet.methods.phases import SCHEDULES

MOST_THREADS = 1024


def _positive(section: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise UsageError(f"{section}.{name}={value}: expected a number above 0")


def _not_negative(section: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= 0:
            raise UsageError(f"{section}.{name}={value}: expected 0 or more")


def _one_of(section: str, name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise UsageError(f"{section}.{name}={value!r} is unknown{nearest(value, options)}")


@dataclass(frozen=True)
class WholeRun:
    """The options of conf/config.yaml itself."""

    seed: int
    epochs: int
    threads: int | None = None
    export: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed={self.seed}: expected 0 to {2**32 - 1}")
        if self.epochs < 1:
            raise UsageError(f"epochs={self.epochs}: expected 1 or more")
        if self.threads is not None and not 0 < self.threads <= MOST_THREADS:
            raise UsageError(f"threads={self.threads}: expected 1 to {MOST_THREADS}, or null")


@dataclass(frozen=True)
class Checkpoints:
    """The section `checkpoint` of conf/config.yaml."""

    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        _positive("checkpoint", every_n_steps=self.every_n_steps)


@dataclass(frozen=True)
class Optimization:
    """conf/optim: SGD's settings; `schedule` is that of training a fixed network."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _positive("optim", lr=self.lr)
        _not_negative("optim", momentum=self.momentum, weight_decay=self.weight_decay, warmup_epochs=self.warmup_epochs)
        _one_of("optim", "schedule", self.schedule, SCHEDULES)
        if self.momentum >= 1:
            raise UsageError(f"optim.momentum={self.momentum}: expected 0 up to, not including, 1")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"optim.label_smoothing={self.label_smoothing}: expected 0 up to, not including, 1")


@dataclass(frozen=True)
class Bregman:
    """conf/lbi: the clock of a growth round (`coupling`, `selection_norm`), or ν and λ (`threshold`) fixed by hand."""

    coupling: float = 0.1
    selection_norm: float = 0.9
    kappa: float = 1.0
    weight_decay: float = 0.0
    nu: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        _positive("lbi", coupling=self.coupling, selection_norm=self.selection_norm, kappa=self.kappa)
        _positive("lbi", nu=self.nu, threshold=self.threshold)
        _not_negative("lbi", weight_decay=self.weight_decay)

    def nu_of(self, lr: float, steps: int) -> float:
        """ν for which the coupling pulls an unselected filter by `coupling` in a round: lr · steps / ν = coupling."""
        return lr * steps / self.coupling if self.nu is None else self.nu


@dataclass(frozen=True)
class FineTuning:
    """conf/finetune: what follows the last growth round. `lr` None: that of optim. 0 epochs: nothing (method=bsn)."""

    epochs: int
    optimizer: str = "sgd"
    lr: float | None = None
    schedule: str = "cosine"
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _positive("finetune", lr=self.lr)
        _not_negative("finetune", epochs=self.epochs, warmup_epochs=self.warmup_epochs)
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"finetune.warmup_epochs={self.warmup_epochs}: longer than finetune.epochs={self.epochs}")
        _one_of("finetune", "optimizer", self.optimizer, ("sgd", "lbi"))
        _one_of("finetune", "schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True)
class Rounds:
    """conf/growth: when the network grows and how its new channels start (GrowthRule says who and by how much)."""

    epochs_per_round: int = 10
    max_rounds: int | None = None
    init: str = "he"
    state: str = "reset"
    rescale: bool = True
    reduction: str = "max"
    readout: str = "path"
    quantile: float = 0.5

    def __post_init__(self) -> None:
        from budgetnet.channels.initialise import INITIALISATIONS
        from budgetnet.methods.growth.capacity import READOUTS, REDUCTIONS

        _positive("growth", epochs_per_round=self.epochs_per_round, max_rounds=self.max_rounds)
        _one_of("growth", "init", self.init, (*INITIALISATIONS, "firefly"))
        _one_of("growth", "state", self.state, ("reset", "carry"))
        _one_of("growth", "reduction", self.reduction, REDUCTIONS)
        _one_of("growth", "readout", self.readout, READOUTS)
        if not 0 < self.quantile < 1:
            raise UsageError(f"growth.quantile={self.quantile}: expected a part of the filters, above 0 and below 1")

    def must_fit(self, epochs: int, finetune: FineTuning) -> None:
        """Raises UsageError where a run is too short for a round and the fine-tuning."""
        round = f"growth.epochs_per_round={self.epochs_per_round}"
        must_fit(epochs, self.epochs_per_round + finetune.epochs, round, f"finetune.epochs={finetune.epochs}")


@dataclass(frozen=True)
class Pruning:
    """conf/prune: when the full backbone is narrowed, in how many steps, and what scores are measured on."""

    epochs: int
    steps: int = 1
    epochs_per_step: int = 5
    scope: str = "all"
    images: int = 1024
    sparsity: float = 1e-4

    def __post_init__(self) -> None:
        from budgetnet.methods.pruning.pools import SCOPES

        _positive(
            "prune", epochs=self.epochs, steps=self.steps, epochs_per_step=self.epochs_per_step, images=self.images
        )
        _not_negative("prune", sparsity=self.sparsity)
        _one_of("prune", "scope", self.scope, SCOPES)


@dataclass(frozen=True)
class SeedNetwork:
    """conf/growth: what growth starts from, and how wide a layer may become (`budgetnet.channels.fresh`)."""

    seed_width: int
    seed_shape: str = "proportional"
    max_width: Any = None
    linear: bool = False


def must_fit(epochs: int, needed: int, *parts: str) -> None:
    """Raises UsageError if `needed` epochs, those of all `parts` ("finetune.epochs=40"), are more than a run's."""
    if needed > epochs:
        raise UsageError(
            f"{', '.join(parts[:-1])} and {parts[-1]} do not fit into epochs={epochs}: "
            f"raise it to {needed} or shorten one of them"
        )


Section = TypeVar("Section")


def options(section: type[Section], name: str, values: Mapping[str, Any]) -> Section:
    """Build one of the value objects above from its part of the configuration, with OmegaConf's type conversion.

    Keys that belong to another object of the same section are left alone. Raises UsageError for a wrong type.
    """
    known = {field.name for field in fields(cast(Any, section))}
    try:
        schema = OmegaConf.structured(section)
        OmegaConf.set_readonly(schema, False)
        merged = OmegaConf.merge(schema, {key: value for key, value in values.items() if key in known})
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "key", None))
        option = f"{name}.{key}".lstrip(".")
        if isinstance(error, MissingMandatoryValue):
            raise UsageError(f"{option} is missing: expected a value, as in conf/{name}") from error
        raise UsageError(f"{option}={values.get(key)}: {str(error).splitlines()[0]}") from error
    assert isinstance(built, section)
    return built
