"""The methods of conf/method, the options that they read, and the refusal of options that they do not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from budgetnet.command.compose import CONF
from budgetnet.command.declared import declared
from budgetnet.costs.budget import KINDS, Budget
from budgetnet.errors import UsageError
from budgetnet.options import names_of, reads
from budgetnet.runs.reading import read_yaml

if TYPE_CHECKING:
    from budgetnet.methods.method import Method

Reading = type | Mapping[str, type]
"""The class of a method, or what it reads."""

BUDGETS = ("flops", "params", "train_cost")
"""The kinds of budget that a method keeps unless its class has an attribute `keeps`."""

RENAMED: Mapping[str, str] = {
    "prune.epochs": "method.search_epochs",
    "prune.images": "method.images",
}
"""New names of renamed options, which docs/changes.md lists too."""

_OF_NO_METHOD = ("budget", "distill", "trainer")
"""Folders of conf/ with a default.yaml that no method reads."""


def method_class(config: Mapping[str, Any]) -> type[Method]:
    """The class that `method._target_` names. Raises UsageError for anything that is no subclass of Method."""
    from budgetnet.methods.method import Method

    section = config.get("method")
    target = section.get("_target_") if isinstance(section, Mapping) else None
    if not isinstance(target, str) or not target.isprintable():
        raise UsageError(f"method._target_={target!r}: expected a name, as in conf/method")
    try:
        found = resolve_name(target)
    except Exception as error:  # the import may raise anything
        text = " ".join(str(error).split())
        raise UsageError(f"method._target_={target} cannot be built ({type(error).__name__}: {text})") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"method._target_={target}: expected a subclass of budgetnet.methods.method.Method")
    return found


def known_methods() -> dict[str, type[Method]]:
    """The classes of conf/method by the name of their file, without the file for a class of the user.

    Raises UsageError for a class that cannot be imported.
    """
    return {name: method_class({"method": section}) for name, section in _known().items()}


def sections_read(config: Mapping[str, Any]) -> dict[str, type] | None:
    """The value objects of the sections that the method reads, as `reads` finds them, without importing torch.

    None for a class that is not of this project.
    """
    section = config.get("method")
    found = declared(str(section.get("_target_"))) if isinstance(section, Mapping) else None
    return None if found is None else {name: resolve_name(kind) for name, kind in found.reads.items()}


def known_sections() -> dict[str, dict[str, type]]:
    """What the methods of conf/method read by the name of their file, without importing torch."""
    found = {name: sections_read({"method": section}) for name, section in _known().items()}
    return {name: kinds for name, kinds in found.items() if kinds is not None}


def _known() -> dict[str, dict[str, Any]]:
    """The files of conf/method by their name, without the one for a class of the user."""
    sections = {path.stem: read_yaml(path) for path in sorted((CONF / "method").glob("*.yaml"))}
    return {name: section for name, section in sections.items() if section["_target_"] != "???"}


def method_sections() -> list[str]:
    """The sections of conf/ that methods read, apart from conf/method."""
    return sorted(path.parent.name for path in CONF.glob("*/default.yaml") if path.parent.name not in _OF_NO_METHOD)


def typed(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides on the command line of options that methods read, by option such as "growth.policy"."""
    sections, found = {"method", *method_sections()}, {}
    for override in overrides:
        section, _, name = override.lstrip("+~").partition("=")[0].partition("@")[0].partition(".")
        option = f"{section}.{name.partition('.')[0]}"
        if section in sections and name and option not in ("method.name", "method._target_"):
            found[option] = override
    return found


def refuse_unread(
    overrides: Sequence[str],
    chosen: Mapping[str, Reading],
    known: Callable[[], Mapping[str, Reading]] = known_methods,
) -> None:
    """Refuse overrides of options that only other methods read.

    overrides: the arguments of the command line, such as "growth.policy=random". Sections that no method reads are
    ignored. chosen: the run's method by name, or every method of a sweep. known: returns all methods.
    Raises UsageError, naming the methods that read the option.
    """
    read_by = {name: _options(kind) for name, kind in chosen.items()}
    for option, override in typed(overrides).items():
        new = RENAMED.get(option)
        if renamed := [name for name, options in read_by.items() if new in options and option not in options]:
            raise UsageError(f"{override}: with {_named(renamed)} it is called {new}; write {new}=")
        if any(option in options for options in read_by.values()):
            continue
        if others := [name for name, kind in known().items() if option in _options(kind)]:  # else it is unknown
            raise UsageError(f"{override}: {_named(chosen)} does not read {option}; read by {_named(others)}")


def refuse_without_effect(overrides: Sequence[str], section: str, *values: Any) -> None:
    """Refuse overrides of options of a section that its other options leave without effect.

    values: the value object of the section, in every run if there are several; such options are the keys of its
    attribute `unread`, if it has one, and who reads them the values. Raises UsageError.
    """
    unread = [getattr(each, "unread", {}) for each in values]
    for name, reader in unread[0].items() if unread else ():
        if (override := typed(overrides).get(f"{section}.{name}")) and all(name in each for each in unread):
            raise UsageError(f"{override} has no effect here: it is read by {reader}")


def refuse_unmet(budget: Budget, name: str, method: type) -> None:
    """Raises UsageError for a stated kind of budget that a method cannot meet, naming the methods that can."""
    met = getattr(method, "budgets", BUDGETS)
    for kind in KINDS:
        if getattr(budget, kind) is None or kind in met:
            continue
        others = [each for each, its in known_methods().items() if kind in getattr(its, "budgets", BUDGETS)]
        use = f"use {_named(others)}, or state " if others else "state "
        raise UsageError(
            f"budget.{kind} is not kept by method={name}: {use}{' or '.join(f'budget.{each}' for each in met)}"
        )


def _options(method: Reading) -> frozenset[str]:
    """All options that a method reads, such as "growth.policy"."""
    sections = reads(method) if isinstance(method, type) else method
    return frozenset(f"{section}.{name}" for section, kind in sections.items() for name in names_of(kind))


def _named(methods: Iterable[str]) -> str:
    return f"method={', '.join(methods)}"
