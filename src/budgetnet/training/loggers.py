"""Weights & Biases, or another logger, beside the files of the run directory. None is needed, and none fails a run."""

from __future__ import annotations

import hashlib
import logging
import netrc
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra.utils import instantiate
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger, WandbLogger

from budgetnet.errors import UsageError
from budgetnet.sections import Logging

log = logging.getLogger(__name__)


class Wandb(WandbLogger):
    """A W&B logger whose run is made by `start` when it is first needed, since W&B takes seconds to begin."""

    def __init__(self, start: Callable[[], Any], artifacts: bool = False) -> None:
        super().__init__()
        self.start, self.artifacts = start, artifacts

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at the step of the run, so that one that is continued goes on at its step."""
        self.experiment.log(dict(metrics), step=step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self.start()
        return self._experiment


def make_loggers(options: Logging, config: Mapping[str, Any], directory: Path) -> list[Any]:
    """The loggers of the trainer for conf/logger, for the first process of a run.

    There is no logger for "csv", since the CSV files are always written. With `_target_` there is a logger of that
    class, else one of W&B. W&B is online if a key is found, else offline. If it does not answer within `init_timeout`
    seconds, it continues offline with a warning. The W&B id is a hash of the run directory, so that a resumed run
    continues in W&B too. The W&B group is `group`, or else the name of the sweep, or else `run.experiment`.

    Raises UsageError for a `_target_` that cannot be built or is no logger.
    """
    if options._target_ is not None:
        return [_own_logger(config["logger"], directory)]
    if options.name == "csv" or options.mode == "disabled":
        return []
    return [Wandb(lambda: _start_run(options, config, directory), options.artifacts)]


def _start_run(options: Logging, config: Mapping[str, Any], directory: Path) -> Any:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    sweep = os.environ.get("BUDGETNET_SWEEP")
    group = options.group or (Path(sweep).name if sweep else config["run"]["experiment"])
    mode = options.mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")

    def start(mode: Any) -> Any:
        return wandb.init(
            project=options.project,
            entity=options.entity,
            group=group,
            tags=list(options.tags),
            name=directory.name,
            id=hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16],
            resume="allow" if mode == "online" else None,
            dir=str(directory),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(init_timeout=options.init_timeout, silent=True, console="off"),
        )

    try:
        experiment = start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.warning("W&B cannot be reached (%s); logging offline", str(error).splitlines()[0])
        experiment = start("offline")
    experiment.define_metric("train_cost_flops")
    experiment.define_metric("*", step_metric="train_cost_flops")
    return experiment


def _own_logger(section: Mapping[str, Any], directory: Path) -> Logger:
    """The logger of `logger._target_`. Raises UsageError if it cannot be built or is no logger."""
    target, standard = section["_target_"], {field.name for field in fields(Logging)} - {"_target_"}
    options = {name: value for name, value in section.items() if name not in standard}
    try:
        takes = signature(resolve_name(target)).parameters
        places = {"save_dir": str(directory), "name": "tensorboard" if "tensorboard" in target.lower() else "logger"}
        places |= {"version": ""}
        logger = instantiate({**{name: value for name, value in places.items() if name in takes}, **options})
    except Exception as error:  # the import and the constructor may raise anything
        cause = error.__cause__ or error
        text = " ".join(str(cause).split())
        raise UsageError(f"logger._target_={target} cannot be built ({type(cause).__name__}: {text})") from error
    if not isinstance(logger, Logger):
        raise UsageError(f"logger._target_={target} made a {type(logger).__name__}: expected a logger of Lightning's")
    return logger


def log_summary(loggers: list[Any], figures: Path, summary: Mapping[str, Any]) -> None:
    """Send the numbers of the summary to all loggers, and the figures of the report to W&B."""
    numbers = {key: value for key, value in summary.items() if isinstance(value, (int, float))}
    for logger in loggers:
        if isinstance(logger, Wandb):
            import wandb

            logger.experiment.log({f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted(figures.glob("*.png"))})
            texts = {key: value for key, value in summary.items() if isinstance(value, str)}
            logger.experiment.summary.update({**texts, **numbers})
            if logger.artifacts:
                logger.experiment.log_artifact(_artifact(figures.parent))
            if getattr(logger.experiment, "offline", False):
                folder = Path(logger.experiment.dir).parent
                print(f"{'W&B':9}offline in {folder}; to sync it: wandb sync {folder}", flush=True)
        else:
            logger.log_metrics({f"summary/{key}": float(value) for key, value in numbers.items()})


def _artifact(directory: Path) -> Any:
    """The exported network of a run directory and what says how it is used, as an artifact of W&B."""
    import wandb

    artifact = wandb.Artifact(f"network-{hashlib.sha256(directory.name.encode()).hexdigest()[:8]}", type="model")
    for name in ("model.pt2", "model.onnx", "preprocessing.json", "predict.py", "summary.json"):
        if (directory / name).exists():
            artifact.add_file(str(directory / name))
    return artifact


def close_loggers(loggers: list[Any]) -> None:
    """End all loggers, as failed ones if an exception is being handled, so that the next job does not log to them."""
    failed = sys.exc_info()[0] is not None
    for logger in loggers:
        if not isinstance(logger, Wandb):
            logger.finalize("failed" if failed else "success")
    if loggers and (wandb := sys.modules.get("wandb")):  # otherwise no W&B run has begun
        wandb.finish(exit_code=int(failed))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
