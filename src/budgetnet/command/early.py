"""Checks of a configuration that need neither torch nor Lightning, so that a refusal takes no seconds.

`command.configuration.parse` checks everything, these sections too, with what the method reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetnet.command.declared import declared
from budgetnet.command.methods import known_sections, refuse_unread, refuse_without_effect, sections_read
from budgetnet.costs.budget import KINDS, Budget
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError
from budgetnet.options import check_values, names_of, read
from budgetnet.sections import Checkpoints, Logging, Place, TrainerOptions, WholeRun

_SECTIONS: Mapping[str, type] = {
    "run": Place,
    "logger": Logging,
    "checkpoint": Checkpoints,
    "trainer": TrainerOptions,
}


def check_early(config: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Raises UsageError for values of the sections that no method changes, for those that the method reads, for an
    override of what it does not read or what has no effect, and for a missing budget.

    What has another form than conf/ gives it is left to `parse`.
    """
    check_values(config)
    read(WholeRun, "", config)
    dataset, budget, method = (config.get(name) for name in ("dataset", "budget", "method"))
    if isinstance(dataset, Mapping):
        DatasetOptions(**{name: value for name, value in dataset.items() if name in names_of(DatasetOptions)})
    if isinstance(budget, Mapping) and {*budget} <= {*KINDS, "machines"}:
        stated = Budget(**budget)
        if isinstance(method, Mapping) and (its := declared(str(method.get("_target_")))) and its.needs_budget:
            _require(stated, config)
    if (kinds := sections_read(config)) is not None:
        refuse_unread(overrides, {str(config["method"].get("name")): kinds}, known_sections)
        for name, kind in kinds.items():
            if isinstance(section := config.get(name), Mapping):
                refuse_without_effect(overrides, name, read(kind, name, section))
    for name, kind in _SECTIONS.items():
        section = config.get(name)
        if isinstance(section, Mapping) and {*section} <= names_of(kind):
            read(kind, name, section)


def _require(budget: Budget, config: Mapping[str, Any]) -> None:
    """Raises UsageError if no limit is stated; for a directory that was to be continued, it says that there is none."""
    try:
        budget.require()
    except UsageError as error:
        place = config.get("run")
        directory = place.get("dir") if isinstance(place, Mapping) else None
        if directory is None or Path(str(directory), "config.yaml").exists():
            raise
        raise UsageError(f"run.dir={directory} holds no run to continue, and for a new one there is {error}") from error
