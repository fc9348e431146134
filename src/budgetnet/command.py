"""What the command line adds to a run: where it is kept, and errors in one line."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetnet.errors import Interrupted, Preempted, RunError, UsageError, nearest
from budgetnet.started import end_with_parent, started

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = Path(__file__).parents[2] / "conf"
_UNNAMED = (
    *("run.", "logger", "hydra", "export", "experiment", "launcher.", "checkpoint."),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "progress")),
)
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
    return _file_name(",".join(named)) or "default"


def sweep_name(experiment: str, overrides: Iterable[str]) -> str:
    """The name of a sweep, made of its experiment and overrides, so that the same command finds its folder again.

    >>> sweep_name("default", ["seed=0,1,2", "backbone=vgg16"])
    'default,backbone=vgg16,seed=0,1,2'
    """
    name = run_name(overrides)
    return _file_name(experiment if name == "default" else f"{experiment},{name}")


def _file_name(text: str) -> str:
    name = re.sub(r"[^\w.,=%+@-]+", "_", text)
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 9] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]


def plain(config: DictConfig) -> dict[str, Any]:
    """A run's configuration as plain resolved values, without what is about a sweep. Raises OmegaConf's errors."""
    from omegaconf import OmegaConf

    names = [str(name) for name in config if name not in ("hydra", "launcher")]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def refuse_several_devices(trainer: Mapping[str, Any], command: str) -> None:
    """A job on several devices needs processes of its own, as Slurm or hydra/launcher=local make them.

    Raises UsageError with the command to use.
    """
    several = trainer["devices"] not in (1, "1") or trainer["num_nodes"] != 1
    if several and started().by != "srun":
        raise UsageError(
            f"-m with trainer.devices={trainer['devices']}: with this launcher a job is a single process and cannot "
            f"have several devices; use: {command}"
        )


def run_job(config: Mapping[str, Any], overrides: Sequence[str], multirun: bool) -> float:
    """Run one resolved configuration; prints the final table and where the report is, returns its `objective`."""
    from budgetnet import experiment

    end_with_parent()
    from budgetnet.configuration import checked

    if multirun:
        refuse_several_devices(config["trainer"], experiment.command_line(["-m", *overrides, "hydra/launcher=local"]))
    config = checked(config)
    directory = run_directory(config, overrides)
    summary = experiment.run(config, directory, experiment.command_line(overrides if multirun else None))
    if started().rank == 0:  # once for all processes of a run
        show(directory)
    return objective(summary)


def objective(summary: Mapping[str, Any]) -> float:
    """What a sweeper maximises: validation accuracy (%). The test accuracy only where nothing is held out."""
    validation = summary.get("val_top1")
    return float(summary["test_top1"] if validation is None else validation)


def show(directory: Path) -> None:
    """Print the final table and where the report is."""
    from budgetnet.reports.run_directory import RunDirectory
    from budgetnet.reports.tables import final_row, print_table

    print_table([final_row(RunDirectory(directory))])
    print(f"report: {directory / 'report.md'}")


def explain(error: BaseException) -> int:
    """Print an error as one line on standard error and return the exit code; a bug keeps its traceback."""
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )
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
        return _say(f"stopped {error}", 143, "")
    if started().rank and isinstance(error, (HydraException, OmegaConfBaseException)):
        return 2  # every process finds the same, and rank 0 says it
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return _say(f"{group}={name} is unknown{nearest(name, error.options or [])}", 2)
    if isinstance(error, OverrideParseException):
        reason = error.message.splitlines()[0].removesuffix(f": {error.override}")
        return _say(
            f"{error.override!r} is not an override such as optim.lr=0.1 ({reason}); quote special characters", 2
        )
    if isinstance(error, ConfigCompositionException) and (key := re.search(r"override '([^']+)'", str(error))):
        if key[1] in (known := known_options()):
            group = key[1].partition(".")[0]
            return _say(f"{key[1]} does not go with the {group} chosen: to add it, write +{key[1]}=", 2)
        return _say(f"no option is called {key[1]!r}{nearest(key[1], known)}", 2)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _say(str(error), 2)
    if isinstance(error, ValueError) and str(error) == "No trials are completed yet.":
        return _say("every trial of the search failed", 1)  # what Optuna says then
    if type(error).__module__.startswith(("joblib.", "submitit.")):
        return _say(f"a job of the sweep died: {error}", 1)
    if isinstance(error, Exception) and not _is_ours(error):
        reason = str(error) or str(traceback.extract_tb(error.__traceback__)[-1].line)
        return _say(f"hydra does not take these overrides ({reason}): {' '.join(sys.argv[1:])}", 2)
    traceback.print_exception(error)
    return 1


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package was running: if not, it was hydra putting the configuration together."""
    package = str(Path(__file__).parent)
    return any(frame.filename.startswith(package) for frame in traceback.extract_tb(error.__traceback__))


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
    return sorted(
        key for key in found if not key.startswith("hydra") and not {"defaults", "_target_"} & {*key.split(".")}
    )


def _keys(tree: Any, prefix: str) -> Iterable[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _say(text: str, code: int, prefix: str = "error: ") -> int:
    """Print one line that can be read, whatever was typed: no control characters, and no error without end."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    if prefix and len(line) > 700:
        line = f"{line[:400]} ... {line[-250:]}"
    print(prefix + line, file=sys.stderr)
    return code
