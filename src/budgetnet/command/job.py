"""One job of the command line: a run, its table, and its value for a sweeper."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from budgetnet.command.names import SWEEP, run_directory
from budgetnet.errors import UsageError
from budgetnet.processes.launch import end_with_parent, launch

if TYPE_CHECKING:
    from budgetnet.tasks import Metric


class Ending(Protocol):
    """What is done at the end of a run (`budgetnet.reports.ending`)."""

    def write(self, directory: Path) -> None:
        """Write its report."""

    def show(self, directory: Path) -> None:
        """Print its table."""


def refuse_several_devices(trainer: Mapping[str, Any], command: str) -> None:
    """A job on several devices needs processes of its own, as Slurm or hydra/launcher=local make them.

    Raises UsageError with the command to use.
    """
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] != 1
    if several and launch().by != "srun":
        raise UsageError(
            f"-m with trainer.devices={trainer['devices']}: with this launcher a job is a single process and cannot "
            f"have several devices; use: {command}"
        )


def run_job(config: Mapping[str, Any], overrides: Sequence[str], multirun: bool, ending: Ending) -> float:
    """Run one resolved configuration to its end, with its report, and return its `objective`."""
    from budgetnet.command import experiment

    end_with_parent()
    from budgetnet.command.configuration import parse
    from budgetnet.command.methods import method_class, refuse_unread

    if multirun:
        refuse_several_devices(config["trainer"], experiment.command_line(["-m", *overrides, "hydra/launcher=local"]))
    method = method_class(config)
    if SWEEP not in os.environ:  # those of a sweep are checked where it starts
        refuse_unread(overrides, {str(config["method"].get("name")): method})
    configuration = parse(config, method)
    directory = run_directory(configuration.plain, overrides)
    command = experiment.command_line(overrides if multirun else None)
    summary = experiment.run(configuration, directory, command, ending.write)
    if launch().rank == 0:  # once for all processes of a run
        ending.show(directory)
    return objective(directory, summary)


def objective(directory: Path, summary: Mapping[str, Any] | None = None) -> float:
    """What a sweeper maximises: the task's first metric on the validation set, negative where lower is better.

    On the test set only where nothing is held out. summary: as `experiment.run` returned it; of several processes the
    first may not have written it yet.
    """
    metric, value, _ = score(directory, summary)
    return metric.gain(value)


def score(directory: Path, summary: Mapping[str, Any] | None = None) -> tuple[Metric, float, str]:
    """The metric by which a finished run is judged, its value, and the set that it is of: "validation" or "test"."""
    from budgetnet.runs.directory import RunDirectory

    run = RunDirectory(directory)
    metric, summary = run.task_metrics[0], summary or run.summary or {}
    validation = summary.get(f"val_{metric.name}")
    if validation is not None:
        return metric, float(validation), "validation"
    return metric, float(summary[f"test_{metric.name}"]), "test"
