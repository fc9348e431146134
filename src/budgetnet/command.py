"""What the command line adds to a run: where it is kept, and errors in one line."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetnet.errors import Interrupted, Preempted, RunError, UsageError, nearest

CONF = Path(__file__).parents[2] / "conf"
_UNNAMED = ("run.", "logger", "trainer", "hydra", "export", "experiment")
_LONGEST_NAME = 120


def run_directory(config: Mapping[str, Any], overrides: Sequence[str]) -> Path:
    """root/experiment/name, or `run.dir`. The name is made of the overrides, so the same command finds it again."""
    run = config["run"]
    if run["dir"] is not None:
        return Path(run["dir"])
    return Path(run["root"], run["experiment"], run["name"] or run_name(overrides))


def run_name(overrides: Iterable[str]) -> str:
    """A file name for a list of overrides, whatever their order.

    >>> run_name(["seed=1", "backbone=vgg16", "budget.flops=50%", "logger=csv"])
    'backbone=vgg16,budget.flops=50%,seed=1'
    """
    named = sorted(o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith(_UNNAMED))
    name = re.sub(r"[^\w.,=%+@-]+", "_", ",".join(named)) or "default"
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def refuse_multirun(devices: Any, nodes: int, overrides: Sequence[str]) -> None:
    """Several devices and several jobs do not go together in one process. Raises UsageError with the command to use."""
    if devices != 1 or nodes != 1:
        raise UsageError(
            f"-m with trainer.devices={devices}: a job on several devices needs a process of its own; run the jobs one "
            f"by one, the first as: python -m src.run {' '.join(overrides)}"
        )


def run_job(config: Mapping[str, Any], overrides: Sequence[str], multirun: bool) -> float:
    """Run one resolved configuration; prints the final table and where the report is, returns the test accuracy."""
    from budgetnet import experiment

    if multirun:
        trainer = config["trainer"]
        refuse_multirun(trainer["devices"], trainer["num_nodes"], overrides)
    directory = run_directory(config, overrides)
    summary = experiment.run(config, directory, experiment.command_line(overrides if multirun else None))
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once for all processes of a run
        show(directory)
    return float(summary["test_top1"])


def show(directory: Path) -> None:
    """Print the final table and where the report is."""
    from budgetnet.reports.run_directory import RunDirectory
    from budgetnet.reports.tables import final_row, print_table

    print_table([final_row(RunDirectory(directory))])
    print(f"report: {directory / 'report.md'}")


def explain(error: BaseException) -> int:
    """Print an error as one line on standard error and return the exit code; a bug keeps its traceback."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (UsageError, RunError)):
        cause = cause.__cause__
    if cause is not None:
        return _say(str(cause), 2 if isinstance(cause, UsageError) else 1)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        text = str(error) if isinstance(error, Interrupted) else "nothing was started"
        return _say(f"interrupted: {text}", 130, "")
    if isinstance(error, Preempted):
        return _say(f"stopped: {str(error) or 'nothing was started'}", 143, "")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return _say(f"{group}={name} is unknown{nearest(name, error.options or [])}", 2)
    if isinstance(error, ConfigCompositionException) and (key := re.search(r"override '([^']+)'", str(error))):
        return _say(f"no option is called {key[1]!r}{nearest(key[1], known_options())}", 2)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _say(" ".join(str(error).split()), 2)
    traceback.print_exception(error)
    return 1


def known_options() -> list[str]:
    """Every option and group of conf/, as it is written on the command line."""
    from omegaconf import OmegaConf

    found = set()
    for file in CONF.rglob("*.yaml"):
        group = ".".join(file.relative_to(CONF).parts[:-1])
        if group in ("experiment", "debug"):
            continue
        found |= {group} - {""}
        tree = OmegaConf.to_container(OmegaConf.load(file))
        found |= set(_keys(tree, f"{group}." if group else ""))
    return sorted(key for key in found if not key.startswith(("hydra", "defaults")) and "_target_" not in key)


def _keys(tree: Any, prefix: str) -> Iterable[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _say(text: str, code: int, prefix: str = "error: ") -> int:
    print(prefix + " ".join(text.split()), file=sys.stderr)
    return code
