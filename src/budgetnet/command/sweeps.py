"""Sweeps of runs: their folder, their failed jobs, and checks before they begin."""

from __future__ import annotations

import io
import math
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from budgetnet.command.explain import explain
from budgetnet.command.job import refuse_several_devices
from budgetnet.command.methods import known_sections, refuse_unread, refuse_without_effect, typed
from budgetnet.command.names import SWEEP as SWEEP
from budgetnet.command.names import program, run_name, sweep_name
from budgetnet.errors import UsageError
from budgetnet.options import read
from budgetnet.processes.launch import launch
from budgetnet.runs.files import append_to
from budgetnet.runs.locking import exclusive
from budgetnet.runs.records import write_text

_OF_ALL = ("experiment", "recipe", "debug")
"""Groups of conf/ whose choice changes any section."""
_MOST_JOBS = 200


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep, with its overrides, a log for each job, and an error message for each failed job.

    runs: the folder of its jobs' run directories, if they have one and the report is at hand, in a checkout.
    """

    folder: Path
    runs: Path | None = None

    @classmethod
    def current(cls) -> Sweep:
        """The sweep of this process."""
        return cls(Path(os.environ[SWEEP]))

    def begin(self, overrides: Sequence[str]) -> None:
        """Create the folder, and remove the error messages of an earlier attempt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.failed"):
            old.unlink()
        last = {each.partition("=")[0]: each for each in overrides}
        write_text(self.folder / "overrides.txt", "".join(f"{each}\n" for each in last.values()))

    def job_name(self, overrides: Iterable[str]) -> str:
        """The name of a job within the sweep: its overrides without those of the whole sweep."""
        common = (self.folder / "overrides.txt").read_text(encoding="utf-8").splitlines()
        return run_name(each for each in overrides if each not in common)

    def log(self, job: str) -> Path:
        """The file with the output of a job, or its traceback."""
        return self.folder / f"{job}.log"

    def failed(self, job: str, error: str) -> None:
        """Write the error message of a failed job, which is one line."""
        write_text(self.folder / f"{job}.failed", error + "\n")

    @property
    def failures(self) -> dict[str, str]:
        """The error messages of failed jobs by their names."""
        return {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(self.folder.glob("*.failed"))}

    def end(self, code: int = 0) -> int:
        """Print the failed jobs with their errors and logs, or the command that compares the jobs.

        code: the exit code so far. Returns it, or 1 if it is lower and a job failed.
        """
        failures = self.failures
        if not failures:
            if code == 0 and self.runs is not None and self.runs.is_dir():
                print(f"compare  python -m src.report {shlex.quote(str(self.runs))} --out report", flush=True)
            return code
        lines = [f"error: {len(failures)} of the sweep's jobs failed; the same command tries them again"]
        for job, error in failures.items():
            lines += [f"  {job}: {error}", f"    log: {self.log(job)}"]
        print("\n".join(lines), file=sys.stderr)
        return max(code, 1)


def job_failed(overrides: Sequence[str], error: Exception) -> None:
    """Record that a job of a sweep failed: one line on the screen, and the traceback in its log.

    It is called in the process of the job. The job's objective is None, which ends neither a grid nor a search.
    """
    sweep, printed = Sweep.current(), io.StringIO()
    job = sweep.job_name(overrides)
    with redirect_stderr(printed):
        explain(error)
    text = printed.getvalue().strip().splitlines()[-1]
    with append_to(sweep.log(job)) as log:
        traceback.print_exception(error, file=log)
        print(text, file=log)
    sweep.failed(job, text.removeprefix("error: "))
    print(f"{job}: {text}", file=sys.stderr)


class SweepStart(Callback):
    """A callback that Hydra calls before a sweep. sweep: the sweep that this process leads, if any."""

    sweep: Sweep | None = None
    held = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the sweep for all of its processes, and refuse options that its launcher does not support.

        Raises SystemExit after it has printed a UsageError.
        """
        try:
            _refuse(config)
            overrides = cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
            check_overrides(config, overrides)
            folder = Path(str(config.run.root), ".sweep", sweep_name(str(config.run.experiment), overrides))
            os.environ[SWEEP] = str(folder)
            folder.mkdir(parents=True, exist_ok=True)
            SweepStart.held.enter_context(exclusive(folder / ".lock", patience=1))
            SweepStart.sweep = Sweep(folder, _runs_of(config, overrides))
            SweepStart.sweep.begin(overrides)
        except TimeoutError:
            raise SystemExit(
                explain(UsageError(f"this sweep is running already: wait for it (its logs: {folder})"))
            ) from None
        except (UsageError, OSError, OmegaConfBaseException) as error:
            raise SystemExit(explain(error)) from None


def _refuse(config: DictConfig) -> None:
    """Raises UsageError for a sweep in several processes, jobs that need several processes, and a minimising search."""
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    others = launch()
    if others.processes > 1:
        raise UsageError(f"-m under {others.by} starts the whole sweep in every process; use: {_with_local_launcher()}")
    if "minimize" in str(OmegaConf.select(config, "hydra.sweeper.direction")):
        raise UsageError(
            "hydra.sweeper.direction=minimize would search for the worst network: use hydra/sweeper=search, or add "
            "hydra.sweeper.direction=maximize"
        )
    tasks = 1
    if launcher == "submitit_slurm":
        tasks = config.hydra.launcher.tasks_per_node * config.hydra.launcher.nodes
    if launcher != "local" and tasks == 1:
        refuse_several_devices(config.trainer, _with_local_launcher())


def _runs_of(config: DictConfig, overrides: Sequence[str]) -> Path | None:
    """The folder of the run directories of a sweep, unless it has several, is planned, or is not of a checkout."""
    own = any(each.startswith("run.dir=") for each in overrides)
    several = any(each.startswith(("run.experiment=", "experiment=")) and "," in each for each in overrides)
    if own or several or config.plan or program() == ["budgetnet"]:
        return None
    return Path(str(config.run.root), str(config.run.experiment))


def check_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UsageError for an override that none of the sweep's methods reads, if it is known which those are.

    Of one method: for an override, too, that has no effect in any of the sweep's jobs.
    """
    if typed(overrides) and (names := methods_of_sweep(config, overrides)) is not None:
        known = known_sections()
        if known.keys() >= set(names):
            refuse_unread(overrides, {name: known[name] for name in names}, lambda: known)
            if len(names) == 1:
                with_unread = {name: kind for name, kind in known[names[0]].items() if hasattr(kind, "unread")}
                for section, kind in with_unread.items():
                    refuse_without_effect(overrides, section, *values_of_jobs(config, overrides, section, kind))


def values_of_jobs(config: DictConfig, overrides: Sequence[str], section: str, kind: type) -> list[Any]:
    """A section as each job of a sweep has it, as value objects of a class.

    It is empty if the jobs cannot be listed or are many, or if one of them will fail by a value out of range.
    """
    swept = [each for each in _parsed(config, overrides) if each.is_sweep_override()]
    if section not in config or any(each.key_or_group in (*_OF_ALL, section) for each in swept):
        return []
    swept = [each for each in swept if each.key_or_group.startswith(f"{section}.")]
    if not all(isinstance(each.value(), (list, ChoiceSweep, RangeSweep)) for each in swept):
        return []
    names = [each.key_or_group.partition(".")[2] for each in swept]
    values_of = [list(each.sweep_iterator()) for each in swept]
    if math.prod(map(len, values_of)) > _MOST_JOBS:
        return []
    jobs = product(*values_of)
    try:
        values = OmegaConf.to_container(config[section], resolve=True)
        return [read(kind, section, cast(dict[str, Any], values) | dict(zip(names, job, strict=True))) for job in jobs]
    except (UsageError, OmegaConfBaseException):
        return []


def methods_of_sweep(config: DictConfig, overrides: Sequence[str]) -> list[str] | None:
    """The names of the methods of a sweep, from overrides, the sweep of an experiment, or the configuration.

    None if they are unknown: there is an override of `_target_`, or they cannot be listed.
    """
    parsed = _parsed(config, overrides)
    if any(each.key_or_group == "method._target_" for each in parsed):
        return None
    swept = [each for each in parsed if each.key_or_group == "method"]
    if not swept:
        return [str(config.hydra.runtime.choices["method"])]
    if not swept[-1].is_sweep_override():
        return [str(swept[-1].value())]
    return list(swept[-1].sweep_string_iterator()) if isinstance(swept[-1].value(), (list, ChoiceSweep)) else None


def _parsed(config: DictConfig, overrides: Sequence[str]) -> list[Override]:
    """What the sweep of an experiment lists, then the overrides."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *overrides])


def _with_local_launcher() -> str:
    """The command of this process with hydra/launcher=local, which launches processes for every job."""
    others = [argument for argument in sys.argv[1:] if not argument.startswith(("hydra/launcher=", "hydra.launcher."))]
    return shlex.join([*program(), *others, "hydra/launcher=local"])
