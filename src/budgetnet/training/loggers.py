"""Weights & Biases, or another logger, beside the files of the run directory. None is needed, and none fails a run."""

from __future__ import annotations

import hashlib
import netrc
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra.utils import instantiate
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger

from budgetnet.errors import UsageError, in_one_line
from budgetnet.runs.warnings import Warnings
from budgetnet.sections import Logging

_ANSWER, _UPLOAD = 30.0, 300.0
"""The most seconds to wait for W&B to take some numbers, and to upload them at the end."""


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

    @property
    def folder(self) -> Path | None:
        """Where W&B keeps what was logged, or None if its run has not begun."""
        return None if self._experiment is None else Path(self._experiment.dir).parent

    @property
    def offline_folder(self) -> Path | None:
        """`folder` if the W&B run is offline and can be synced later, else None."""
        return self.folder if getattr(self._experiment, "offline", False) else None

    def send(self, figures: Path, summary: Mapping[str, Any]) -> None:
        """Send the summary, the figures of the report, and with `artifacts` the exported network."""
        import wandb

        self.experiment.log({f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted(figures.glob("*.png"))})
        self.experiment.summary.update({k: v for k, v in summary.items() if isinstance(v, (int, float, str))})
        if self.artifacts:
            self.experiment.log_artifact(_artifact(figures.parent))

    def finish(self, failed: bool) -> None:
        """End the W&B run, if it has begun."""
        if wandb := sys.modules.get("wandb"):
            wandb.finish(exit_code=int(failed))

    def abandon(self) -> None:
        """Let go of a W&B run that does not answer, so that nothing waits for it when this process ends."""
        import wandb

        with suppress(AttributeError):
            wandb.run = None
        with suppress(Exception, SystemExit):
            _within(1.0, wandb.teardown)


class Unfailing(Logger):
    """Another logger, of which the first error, or a wait for longer than `patience` seconds, ends the logging alone.

    The error becomes a warning of the run. After it, nothing is logged. patience: None waits for ever.
    """

    def __init__(self, logger: Logger, warnings: Warnings, patience: float | None = None) -> None:
        super().__init__()
        self.logger, self.warnings, self.patience = logger, warnings, patience
        self.stopped = False

    def ask(self, action: Callable[..., Any], *arguments: Any, patience: float | None = None, **options: Any) -> Any:
        """Call a function of the logger and return its result, or None if it fails or logging has stopped."""
        if self.stopped:
            return None
        longest = self.patience if self.patience is None or patience is None else patience
        try:
            call = partial(action, *arguments, **options)
            return call() if longest is None else _within(longest, call)
        except (Exception, SystemExit) as error:
            self.stopped = True
            wandb = self.logger if isinstance(self.logger, Wandb) else None
            name = "W&B" if wandb is not None else type(self.logger).__name__
            folder = None if wandb is None else wandb.folder
            later = "" if folder is None else f"; what was logged before: wandb sync {folder}"
            self.warnings.add(
                f"logging to {name} stopped ({in_one_line(error)}); the run goes on, and its own files have every "
                f"number{later}"
            )
            if wandb is not None:
                wandb.abandon()
            return None

    def begin(self) -> None:
        """Begin the run of W&B, which other loggers do by themselves."""
        if isinstance(self.logger, Wandb):
            self.ask(lambda: self.experiment_of_logger, patience=_UPLOAD)

    @property
    def experiment_of_logger(self) -> Any:
        """The experiment of the logger itself."""
        return self.logger.experiment  # type: ignore[attr-defined]

    @property
    def experiment(self) -> Any:
        """The experiment of the logger, or one that does nothing after logging has stopped."""
        found = self.ask(lambda: self.experiment_of_logger, patience=_UPLOAD)
        return DummyLogger().experiment if self.stopped else found

    @property
    def name(self) -> str | None:
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        return self.logger.save_dir

    @property
    def log_dir(self) -> str | None:
        return self.logger.log_dir

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.ask(self.logger.log_metrics, dict(metrics), step)

    def log_hyperparams(self, params: Any, *arguments: Any, **options: Any) -> None:
        self.ask(self.logger.log_hyperparams, params, *arguments, **options)

    def log_graph(self, *arguments: Any, **options: Any) -> None:
        self.ask(self.logger.log_graph, *arguments, **options)

    def save(self) -> None:
        self.ask(self.logger.save)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.ask(self.logger.after_save_checkpoint, checkpoint_callback)

    def finalize(self, status: str) -> None:
        self.ask(self.logger.finalize, status)

    def __getattr__(self, name: str) -> Any:
        """Further attributes of the logger; its methods stop the logging alone when they fail, too."""
        found = getattr(self.__dict__["logger"], name)
        return partial(self.ask, found) if callable(found) else found


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """The result of an action, or its error. Raises TimeoutError if it takes longer; it then goes on in its thread."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="logger")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def make_loggers(
    options: Logging, config: Mapping[str, Any], directory: Path, warnings: Warnings | None = None
) -> list[Any]:
    """The loggers of the trainer for conf/logger, for the first process of a run. Each is `Unfailing`.

    There is no logger for "csv", since the CSV files are always written. With `_target_` there is a logger of that
    class, else one of W&B. W&B is online if a key is found, else offline. If it does not answer within `init_timeout`
    seconds, it continues offline with a warning. The W&B id is a hash of the run directory, so that a resumed run
    continues in W&B too. The W&B group is `group`, or else the name of the sweep, or else `run.experiment`.

    Raises UsageError for a `_target_` that cannot be built or is no logger.
    """
    warnings = warnings or Warnings()
    if options._target_ is not None:
        return [Unfailing(_own_logger(config["logger"], directory), warnings)]
    if options.name == "csv" or options.mode == "disabled":
        return []
    wandb = Wandb(lambda: _start_run(options, config, directory, warnings), options.artifacts)
    return [Unfailing(wandb, warnings, _ANSWER)]


def _start_run(options: Logging, config: Mapping[str, Any], directory: Path, warnings: Warnings) -> Any:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    sweep = os.environ.get("BUDGETNET_SWEEP")
    group = options.group or (Path(sweep).name if sweep else config["run"]["experiment"])
    mode = options.mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")

    def start(mode: Any) -> Any:
        return wandb.init(
            project=options.project,
            entity=options.entity,
            group=group[:_LONGEST_NAME],
            tags=list(options.tags),
            name=directory.name[:_LONGEST_NAME],
            id=hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16],
            resume="allow" if mode == "online" else None,
            dir=str(directory),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(init_timeout=options.init_timeout, silent=True, console="off"),
        )

    try:
        experiment = start(mode)
    except Exception as error:  # whatever it is, W&B may still be able to write files
        if mode == "offline":
            raise
        warnings.add(f"W&B cannot be reached ({in_one_line(error)}); logging offline, to be uploaded by wandb sync")
        experiment = start("offline")
    experiment.define_metric("train_cost_flops")
    experiment.define_metric("*", step_metric="train_cost_flops")
    return experiment


_LONGEST_NAME = 128
"""Characters of a name that W&B takes."""


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
    """Send the numbers of the summary to all loggers, and to W&B the figures of the report and the exported network."""
    numbers = {f"summary/{key}": float(value) for key, value in summary.items() if isinstance(value, (int, float))}
    for logger in loggers:
        if isinstance(logger.logger, Wandb):
            logger.ask(logger.logger.send, figures, summary, patience=_UPLOAD)
            if (folder := logger.logger.offline_folder) is not None:
                several = len(list(folder.parent.glob("offline-run-*"))) > 1  # of a run that was continued
                every = folder.parent / "offline-run-*" if several else folder
                print(f"{'W&B':9}offline in {folder}; to sync it: wandb sync {every}", flush=True)
        else:
            logger.log_metrics(numbers)


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
        if isinstance(logger.logger, Wandb):
            logger.ask(logger.logger.finish, failed, patience=_UPLOAD)
        else:
            logger.finalize("failed" if failed else "success")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
