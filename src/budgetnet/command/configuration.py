"""Parsing of the whole configuration: every section of conf/ becomes a value object once, before anything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from budgetnet.command.compose import CONF
from budgetnet.command.methods import method_class, method_sections, refuse_unmet
from budgetnet.costs.budget import KINDS, Budget
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError, nearest
from budgetnet.options import as_mapping, check_values, names_of, read, reads
from budgetnet.sections import REPLACED, Checkpoints, Logging, Place, TrainerOptions, WholeRun
from budgetnet.tasks.distilled import Distillation

_PARSED: Mapping[str, type] = {
    "run": Place,
    "logger": Logging,
    "checkpoint": Checkpoints,
    "trainer": TrainerOptions,
    "distill": Distillation,
}
_BUILT = {"method": ("_target_", "name"), "backbone": ("_target_",), "dataset": ("_target_", "name")}
"""Sections from which an object is built, and the text options that each must have."""


@dataclass(frozen=True)
class Configuration:
    """The configuration of a run, with each section as its value object.

    backbone, task, callbacks, method: plain sections with `_target_`. task is None if the dataset decides it.
    sections: the arguments of the method's constructor by name.
    plain: the whole configuration as plain values, with defaults for omitted options. It is saved as config.yaml.
    """

    start_from: str | None
    seed: int
    epochs: int
    threads: int | None
    export: bool
    plan: bool
    run: Place
    logger: Logging
    checkpoint: Checkpoints
    trainer: TrainerOptions
    distill: Distillation
    callbacks: Mapping[str, Mapping[str, Any]]
    budget: Budget
    dataset: DatasetOptions
    backbone: Mapping[str, Any]
    task: Mapping[str, Any] | None
    method: Mapping[str, Any]
    sections: Mapping[str, Any]
    plain: Mapping[str, Any]


def parse(config: Mapping[str, Any], method: type | None = None) -> Configuration:
    """Parse a plain, resolved configuration into value objects.

    Sections and options that the method does not read stay plain values. Options that must fit the network or the data
    are checked when those are built.

    method: the class of the method, by default that of `method._target_`.
    Raises UsageError for a missing section, an option that is missing, unknown, of a wrong type or out of range, and a
    kind of budget that the method cannot meet.
    """
    check_values(config)
    method = method_class(config) if method is None else method
    read_by_method = reads(method)
    others = {*method_sections(), *read_by_method} - {"method"}
    known = {*names_of(WholeRun), *_PARSED, *others, *_BUILT, "budget", "callbacks", "start", "task"}
    _refuse_unknown("", config, known)
    whole = read(WholeRun, "", config)
    _refuse_replaced(_section(config, "trainer"))
    own = {name: _parsed(config, name, kind, _known(config, name, kind)) for name, kind in _PARSED.items()}
    for name, texts in _BUILT.items():
        _check_texts(name, _section(config, name), texts)
    plain = {**config, **as_mapping(whole)}
    for name in others:
        plain[name] = _with_defaults(config, name, read_by_method.get(name))
    sections = {name: _parsed(plain, name, kind, plain[name]) for name, kind in read_by_method.items()}
    options = names_of(read_by_method["method"]) if "method" in read_by_method else ()
    _refuse_unknown("method.", config["method"], {*options, "_target_", "name"})
    budget = _budget(config, method)
    dataset = _dataset(config["dataset"])
    for name in _section(config, "callbacks"):
        _check_texts(f"callbacks.{name}", _section(config["callbacks"], name), ("_target_",))
    task = None if config.get("task") is None else _section(config, "task")
    for name, values in {**own, **sections, "dataset": dataset}.items():
        plain[name] = {**plain[name], **as_mapping(values)}
    check_values(plain)  # text that was converted to numbers
    return Configuration(
        start_from=_start(config),
        **as_mapping(whole),
        **own,
        callbacks=config["callbacks"],
        budget=budget,
        dataset=dataset,
        backbone=config["backbone"],
        task=task,
        method=config["method"],
        sections=sections,
        plain=plain,
    )


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a configuration with all defaults (see `parse`). Raises UsageError as `parse` does."""
    return dict(parse(config).plain)


def _parsed(config: Mapping[str, Any], name: str, kind: type, known: Iterable[str]) -> Any:
    """The value object of a section. Raises UsageError for options that are not known."""
    _refuse_unknown(f"{name}.", _section(config, name), known)
    return read(kind, name, config[name])


def _known(config: Mapping[str, Any], name: str, kind: type) -> frozenset[str]:
    """The options that a section may contain, which are arbitrary if its `_target_` names a class of the user."""
    section = _section(config, name)
    return names_of(kind) | (frozenset(map(str, section)) if section.get("_target_") else frozenset())


def _with_defaults(config: Mapping[str, Any], name: str, kind: type | None) -> dict[str, Any]:
    """A section that methods read, with defaults from conf/ for omitted options that the method does not read.

    kind: the value object that the method reads of the section, or None.
    """
    defaults = _defaults(name)
    section = config.get(name, {}) if kind is None else _section(config, name)
    if not isinstance(section, Mapping):
        section = _section(config, name)
    options = () if kind is None else names_of(kind)
    _refuse_unknown(f"{name}.", section, {*defaults, *options})
    return {**{key: value for key, value in defaults.items() if key not in options}, **section}


@cache
def _defaults(name: str) -> Mapping[str, Any]:
    """The options in conf/<name>/default.yaml, or none if there is no such file."""
    path = CONF / name / "default.yaml"
    values = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _budget(config: Mapping[str, Any], method: type) -> Budget:
    _refuse_unknown("budget.", _section(config, "budget"), (*KINDS, "machines"))
    budget = Budget(**config["budget"])
    if getattr(method, "needs_budget", False):
        budget.require()
    refuse_unmet(budget, config["method"]["name"], method)
    return budget


def _start(config: Mapping[str, Any]) -> str | None:
    section = _section(config, "start") if "start" in config else {}
    _refuse_unknown("start.", section, ("from",))
    run = section.get("from")
    if run is not None and (not isinstance(run, str) or not run.isprintable()):
        raise UsageError(f"start.from={run!r}: expected the directory of a run")
    return run


def _dataset(section: Mapping[str, Any]) -> DatasetOptions:
    options = names_of(DatasetOptions)
    _refuse_unknown("dataset.", section, {*options, "_target_", "source"})
    return DatasetOptions(**{name: value for name, value in section.items() if name in options})


def _refuse_replaced(trainer: Mapping[str, Any]) -> None:
    for option in trainer.keys() & REPLACED.keys():
        instead = REPLACED[option]
        raise UsageError(f"trainer.{option} would go around the run's own clock and cost: use {instead} instead")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(config.get(name), Mapping):
        raise UsageError(f"{name}={config.get(name)!r}: expected a section of options, as in conf/")
    section: Mapping[str, Any] = config[name]
    return section


def _refuse_unknown(prefix: str, section: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in section.keys() - set(known):
        rest, value = "", section[key]
        while isinstance(value, Mapping) and value:  # the whole name, as it was typed
            name, value = next(iter(value.items()))
            rest += f".{name}"
        near = nearest(f"{prefix}{key}", [prefix + option for option in known])
        raise UsageError(f"no option is called '{prefix}{key}{rest}'{near}")


def _check_texts(name: str, section: Mapping[str, Any], options: Sequence[str]) -> None:
    for option in options:
        value = section.get(option)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise UsageError(f"{name}.{option}={value!r}: expected a name, as in conf/{name}")
