"""Weights & Biases beside the files of the run directory. It is never needed, and never fails a run."""

from __future__ import annotations

import hashlib
import logging
import netrc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger

from budgetnet.sections import Logging

log = logging.getLogger(__name__)


class Wandb(WandbLogger):
    """The run of `start`, which is called when the run is first needed: W&B takes seconds to import and to begin."""

    def __init__(self, start: Callable[[], Any]) -> None:
        super().__init__()
        self.start = start

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self.start()
        return self._experiment


def make_loggers(options: Logging, config: Mapping[str, Any], directory: Path) -> list[Any]:
    """The trainer's loggers for conf/logger: none for "csv" (the files are always written), else W&B.

    W&B is online where a key is found, else offline; the run's id is a hash of its directory, so that a continued run
    continues there too. Without an answer within `init_timeout` seconds it goes on offline, with one line. Its group is
    `group`, else the name of the sweep that it belongs to, else `run.experiment`. Only for the first process of a run.
    """
    if options.name == "csv" or options.mode == "disabled":
        return []
    return [Wandb(lambda: _start_run(options, config, directory))]


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


def log_images(loggers: list[Any], figures: Path, summary: Mapping[str, Any]) -> None:
    """Send the report's figures and the summary's numbers."""
    for logger in loggers:
        import wandb

        logger.experiment.log({f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted(figures.glob("*.png"))})
        logger.experiment.summary.update(
            {key: value for key, value in summary.items() if isinstance(value, (int, float, str))}
        )


def close_loggers(loggers: list[Any]) -> None:
    """End the W&B run, as a failed one while an error is on its way: a second job must not log into it."""
    if loggers and (wandb := sys.modules.get("wandb")):  # else no run has started
        wandb.finish(exit_code=int(sys.exc_info()[0] is not None))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
