"""One job of the command line: a run, its table, and its objective for a sweeper."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.command.names import SWEEP, command_line, named_after_folder, run_directory
from budgetnet.errors import UsageError
from budgetnet.processes.launch import end_with_parent, launch

if TYPE_CHECKING:
    from budgetnet.command.finishing import Ending
    from budgetnet.tasks import Metric


def refuse_several_devices(trainer: Mapping[str, Any], command: str) -> None:
    """Raises UsageError, with the command to use, for a job on several devices in a single process.

    Such a job needs processes of its own, which Slurm or hydra/launcher=local launch.
    """
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] != 1
    if several and launch().by != "srun":
        raise UsageError(
            f"-m with trainer.devices={trainer['devices']}: with this launcher a job is a single process and cannot "
            f"have several devices; use: {command}"
        )


def run_job(
    config: Mapping[str, Any], overrides: Sequence[str], multirun: bool, ending: Ending, begun: bool = False
) -> float:
    """Run one resolved configuration to its end, with its report, and return its `objective`.

    begun: whether it is that of a run which has begun already, with all that it took from another one.
    Raises the errors of `experiment.run`, and UsageError for options that the method does not read and for a job of a
    sweep that needs several processes.
    """
    end_with_parent()
    from budgetnet.command.configuration import parse
    from budgetnet.command.methods import method_class, refuse_unread
    from budgetnet.runs.adoption import finished, finished_summary, of_another_folder
    from budgetnet.runs.origin import changed_code

    if multirun:
        refuse_several_devices(config["trainer"], command_line(["-m", *overrides, "hydra/launcher=local"]))
    if not begun and (config.get("start") or {}).get("from") is not None:
        from budgetnet.command.start import inherited

        config = inherited(config, list(overrides))
    method = method_class(config)
    if SWEEP not in os.environ:  # the options of a sweep are checked before it begins
        refuse_unread(overrides, {str(config["method"].get("name")): method})
    configuration = parse(config, method)
    directory = run_directory(configuration.plain, overrides)
    if configuration.plan:
        from budgetnet.internals import quick_imports

        with quick_imports():
            from budgetnet.command.plan import show_plan

        return show_plan(configuration, directory)
    note = of_another_folder(configuration.plain, directory) if named_after_folder(overrides) else None
    if note is not None and launch().rank == 0:
        print(note, file=sys.stderr)
    if finished(directory):
        summary = finished_summary(configuration.plain, directory)
        if launch().rank == 0:
            print(f"done     {directory} was finished before, and nothing is trained")
            if (line := changed_code(directory)) is not None:
                print(f"note: {line}: choose another run.name to train it", file=sys.stderr)
    else:
        from budgetnet.internals import quick_imports

        with quick_imports():
            from budgetnet.command import experiment  # Lightning takes seconds to import

        summary = experiment.run(configuration, directory, command_line(overrides if multirun else None), ending)
    if launch().rank == 0:  # once for all processes of a run
        ending.show(directory)
    return objective(directory, summary)


def objective(directory: Path, summary: Mapping[str, Any] | None = None) -> float:
    """The objective that a sweeper maximises: the first metric of the task, with its sign changed if lower is better.

    The metric is that on the validation set, or on the test set if no images are held out.

    summary: the result of `experiment.run`, for a process other than the first, which may not have written it yet.
    """
    metric, value, _ = score(directory, summary)
    return metric.gain(value)


def score(directory: Path, summary: Mapping[str, Any] | None = None) -> tuple[Metric, float, str]:
    """The metric by which a finished run is judged, its value, and the set it is measured on, "validation" or "test".

    summary: as in `objective`. Raises UsageError if files of the run are damaged.
    """
    from budgetnet.runs.directory import RunDirectory

    run = RunDirectory(directory)
    metric, summary = run.task_metrics[0], summary or run.summary or {}
    validation = summary.get(f"val_{metric.name}")
    if validation is not None:
        return metric, float(validation), "validation"
    if summary.get(f"test_{metric.name}") is None:
        run.fact(f"test_{metric.name}")
    return metric, float(summary[f"test_{metric.name}"]), "test"
