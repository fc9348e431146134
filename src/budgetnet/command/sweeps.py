"""A sweep of runs: what it is called, which of its jobs failed, and what it needs of the launcher."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from budgetnet.command.explain import explain
from budgetnet.command.job import refuse_several_devices
from budgetnet.command.methods import known_methods, refuse_unread, typed
from budgetnet.command.names import SWEEP as SWEEP
from budgetnet.command.names import run_name, sweep_name
from budgetnet.errors import UsageError
from budgetnet.processes.launch import launch
from budgetnet.runs.locking import exclusive
from budgetnet.runs.records import write_text


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep: its overrides, a log for each job, and a line of text for each that failed."""

    folder: Path

    @classmethod
    def current(cls) -> Sweep:
        """The sweep that this process belongs to."""
        return cls(Path(os.environ[SWEEP]))

    def begin(self, overrides: Sequence[str]) -> None:
        """Make the folder; forget what failed when the sweep was last started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.failed"):
            old.unlink()
        last = {each.partition("=")[0]: each for each in overrides}
        write_text(self.folder / "overrides.txt", "".join(f"{each}\n" for each in last.values()))

    def job_name(self, overrides: Iterable[str]) -> str:
        """What tells a job from the others: its overrides without those that the whole sweep shares."""
        shared = (self.folder / "overrides.txt").read_text().splitlines()
        return run_name(each for each in overrides if each not in shared)

    def log(self, job: str) -> Path:
        """What a job printed, or how it failed."""
        return self.folder / f"{job}.log"

    def failed(self, job: str, error: str) -> None:
        """Keep the one line that says why a job failed."""
        write_text(self.folder / f"{job}.failed", error + "\n")

    @property
    def failures(self) -> dict[str, str]:
        """The jobs that failed, with their error."""
        return {path.stem: path.read_text().strip() for path in sorted(self.folder.glob("*.failed"))}

    def end(self) -> int:
        """Print which jobs failed, why, and where their logs are; the exit code: 1 if there are any, else 0."""
        failures = self.failures
        if not failures:
            return 0
        lines = [f"error: {len(failures)} of the sweep's jobs failed; the same command tries them again"]
        for job, error in failures.items():
            lines += [f"  {job}: {error}", f"    log: {self.log(job)}"]
        print("\n".join(lines), file=sys.stderr)
        return 1


def job_failed(overrides: Sequence[str], error: Exception) -> None:
    """Record that a job of a sweep failed, in the process it ran in: one line on the screen, the traceback in its log.

    Its value for the sweeper is None, which ends neither a grid nor a search.
    """
    sweep, said = Sweep.current(), io.StringIO()
    job = sweep.job_name(overrides)
    with redirect_stderr(said):
        explain(error)
    text = said.getvalue().strip().splitlines()[-1]
    with open(sweep.log(job), "a") as log:
        traceback.print_exception(error, file=log)
        print(text, file=log)
    sweep.failed(job, text.removeprefix("error: "))
    print(f"{job}: {text}", file=sys.stderr)


class SweepStart(Callback):
    """Hydra calls this before a sweep starts. `sweep`: the one that this process leads, if any."""

    sweep: Sweep | None = None
    held = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the sweep for all of its processes, and refuse what its launcher cannot do."""
        try:
            _refuse(config)
            overrides = cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
            _refuse_unread(config, overrides)
            folder = Path(str(config.run.root), ".sweep", sweep_name(str(config.run.experiment), overrides))
            os.environ[SWEEP] = str(folder)
            folder.mkdir(parents=True, exist_ok=True)
            SweepStart.held.enter_context(exclusive(folder / ".lock", patience=1))
            SweepStart.sweep = Sweep(folder)
            SweepStart.sweep.begin(overrides)
        except TimeoutError:
            raise SystemExit(
                explain(UsageError(f"this sweep is running already: wait for it (its logs: {folder})"))
            ) from None
        except (UsageError, OSError, OmegaConfBaseException) as error:
            raise SystemExit(explain(error)) from None


def _refuse(config: DictConfig) -> None:
    """Raises UsageError for a sweep in several processes, jobs that need several and have one, a search downwards."""
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    others = launch()
    if others.processes > 1:
        raise UsageError(f"-m under {others.by} starts the whole sweep in every process; use: {_with_local_launcher()}")
    if "minimize" in str(OmegaConf.select(config, "hydra.sweeper.direction")):
        raise UsageError(
            "hydra.sweeper.direction=minimize would search for the lowest accuracy: use hydra/sweeper=search, or add "
            "hydra.sweeper.direction=maximize"
        )
    tasks = 1
    if launcher == "submitit_slurm":
        tasks = config.hydra.launcher.tasks_per_node * config.hydra.launcher.nodes
    if launcher != "local" and tasks == 1:
        refuse_several_devices(config.trainer, _with_local_launcher())


def _refuse_unread(config: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UsageError for an option that was typed and that none of the sweep's methods reads.

    Nothing is refused where it cannot be told which methods those are.
    """
    if typed(overrides) and (names := methods_of_sweep(config, overrides)) is not None:
        known = known_methods()
        if known.keys() >= set(names):
            refuse_unread(overrides, {name: known[name] for name in names}, lambda: known)


def methods_of_sweep(config: DictConfig, overrides: Sequence[str]) -> list[str] | None:
    """The methods of a sweep by name: those that are typed, or listed in an experiment, or the one that is chosen.

    None where they are not names of conf/method: a `_target_` was typed, or they cannot be counted.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    listed = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*map(str, listed), *overrides])
    if any(each.key_or_group == "method._target_" for each in parsed):
        return None
    swept = [each for each in parsed if each.key_or_group == "method"]
    if not swept:
        return [str(config.hydra.runtime.choices["method"])]
    if not swept[-1].is_sweep_override():
        return [str(swept[-1].value())]
    return list(swept[-1].sweep_string_iterator()) if isinstance(swept[-1].value(), (list, ChoiceSweep)) else None


def _with_local_launcher() -> str:
    """The command that was given, with the launcher that gives every job its own processes."""
    kept = [argument for argument in sys.argv[1:] if not argument.startswith(("hydra/launcher=", "hydra.launcher."))]
    return f"python -m src.run {shlex.join([*kept, 'hydra/launcher=local'])}"
