"""The methods of conf/method: what each reads, and the options that are refused because a method does not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from budgetnet.command.compose import CONF
from budgetnet.costs.budget import KINDS, Budget
from budgetnet.errors import UsageError
from budgetnet.options import names_of, reads

KEPT = ("flops", "params", "train_cost")
"""The kinds of budget that a method keeps unless its class has an attribute `keeps`."""

RENAMED: Mapping[str, str] = {
    "prune.epochs": "method.search_epochs",
    "prune.images": "method.images",
}
"""Options by the name they had, where a method reads the new one instead; docs/changes.md lists them."""

_OWN = ("budget", "trainer")
"""Folders of conf/ with a default.yaml that belong to no method."""


def method_class(config: Mapping[str, Any]) -> type | None:
    """The class that `method._target_` names; None if it names something else.

    Raises UsageError for what cannot be imported.
    """
    section = config.get("method")
    target = section.get("_target_") if isinstance(section, Mapping) else None
    if not isinstance(target, str):
        return None
    try:
        found = resolve_name(target)
    except Exception as error:  # whatever importing it raises
        text = " ".join(str(error).split())
        raise UsageError(f"method._target_={target} cannot be built ({type(error).__name__}: {text})") from error
    return found if isinstance(found, type) else None


def known_methods() -> dict[str, type]:
    """The classes of conf/method by the name of their file."""
    from omegaconf import OmegaConf

    found = {}
    for path in sorted((CONF / "method").glob("*.yaml")):
        section = OmegaConf.to_container(OmegaConf.load(path))
        kind = method_class({"method": section})
        if kind is not None:
            found[path.stem] = kind
    return found


def method_sections() -> list[str]:
    """The sections of conf/ that methods read, beside the one of their own."""
    return sorted(path.parent.name for path in CONF.glob("*/default.yaml") if path.parent.name not in _OWN)


def refuse_unread(overrides: Sequence[str], chosen: Mapping[str, type], known: Mapping[str, type]) -> None:
    """Raises UsageError if an option that was typed is read by none of the methods that were chosen.

    overrides: as typed on the command line, such as "growth.policy=random"; those of other sections than methods read
    are left alone. chosen: the class of the run's method by name, or of every method of a sweep. known: all that can be
    chosen, of which those that do read the option are named.
    """
    sections = {
        "method",
        *method_sections(),
        *(name for kind in [*chosen.values(), *known.values()] for name in reads(kind)),
    }
    readers = {name: _options(kind) for name, kind in {**known, **chosen}.items()}
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        section, _, name = key.partition(".")
        option = f"{section}.{name.partition('.')[0]}"
        if section not in sections or not name or option in ("method.name", "method._target_"):
            continue
        if any(option in readers[method] for method in chosen):
            continue
        new = RENAMED.get(option)
        if renamed := [method for method in chosen if new in readers[method]]:
            raise UsageError(f"{option} is now {new} {_of(renamed)}: write {new}=")
        others = [method for method in known if option in readers[method]]
        instead = f"; {_of(others)} does" if others else ", and no other method does"
        raise UsageError(f"{override}: {_of(chosen)} does not read {option}{instead}")


def refuse_unkept(budget: Budget, name: str, method: type) -> None:
    """Raises UsageError for a stated kind of budget that a method does not keep, with the methods that do."""
    kept = getattr(method, "keeps", KEPT)
    for kind in KINDS:
        if getattr(budget, kind) is None or kind in kept:
            continue
        others = [each for each, its in known_methods().items() if kind in getattr(its, "keeps", KEPT)]
        use = f"use {_of(others)}, or state " if others else "state "
        raise UsageError(
            f"budget.{kind} is not kept by method={name}: {use}{' or '.join(f'budget.{each}' for each in kept)}"
        )


def _options(method: type) -> frozenset[str]:
    """Every option that a method reads, such as "growth.policy"."""
    return frozenset(f"{section}.{name}" for section, kind in reads(method).items() for name in names_of(kind))


def _of(methods: Collection[str]) -> str:
    return f"method={', '.join(methods)}"
