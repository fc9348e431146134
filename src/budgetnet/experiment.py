"""One run, from a resolved configuration to a finished run directory."""

from __future__ import annotations

import errno
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from budgetnet.building import Parts, build
from budgetnet.callbacks.checkpoint import load_checkpoint
from budgetnet.callbacks.preemption import requeue
from budgetnet.data.datamodule import DataModule
from budgetnet.data.folder import worker_death
from budgetnet.errors import Interrupted, Preempted, RunError, UsageError
from budgetnet.loggers import close_loggers, log_images, make_loggers
from budgetnet.methods.base import BudgetedModule
from budgetnet.processes import Processes, after_rank_0
from budgetnet.records import write_json
from budgetnet.summary import describe
from budgetnet.workspace import check_same, occupied

Config = Mapping[str, Any]

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT)


def run(config: Config, directory: Path, command: str) -> dict[str, Any]:
    """Train one configuration (plain, resolved) in `directory` and return its summary.

    A directory with done.json returns its summary at once; one with last.ckpt is continued. Raises UsageError before
    anything is written for a configuration that cannot run.
    """
    try:
        if (directory / "done.json").exists():
            check_same(config, directory)
            summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
            return summary
        parts = build(config, directory)
        processes = Processes(parts.trainer)
    except UsageError as error:
        raise after_rank_0(error) from None
    with ExitStack() as stack:
        stack.enter_context(parts.preemption.listening(parts.trainer))
        try:
            processes.join()
            checkpoint = processes.decide(lambda: stack.enter_context(occupied(config, directory)))
            return _train(config, directory, command, parts, checkpoint)
        except BaseException as error:
            error = processes.fail(worker_death(error) or error, told=lambda: parts.preemption.received is not None)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(_how_to_continue(directory, command)) from error
            if isinstance(error, Preempted):
                name = f"by {parts.preemption.received.name}: " if parts.preemption.received else ""
                requeued = "requeued, " if requeue() else ""
                raise Preempted(f"{name}{requeued}{_how_to_continue(directory, command)}") from error
            if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
                raise RunError(
                    f"{error.filename or directory} cannot be written ({error.strerror}): the last checkpoint is kept; "
                    f"make room and {_how_to_continue(directory, command)}"
                ) from error
            raise error


def _train(config: Config, directory: Path, command: str, parts: Parts, checkpoint: Path | None) -> dict[str, Any]:
    """From here to the finished directory, on every process."""
    trainer, module, data = parts.trainer, parts.module, parts.data
    loggers = make_loggers(config["logger"], config, directory) if trainer.is_global_zero else []
    trainer.loggers = loggers
    try:
        start = time.perf_counter() - _seconds_before(directory, checkpoint)
        _fit(trainer, module, data, checkpoint)
        summary = _evaluate(trainer, module, data, directory)
        seconds = round(time.perf_counter() - start, 2)
        summary = {**describe(config, directory, module, parts.full, command), **summary, "seconds": seconds}
        if trainer.is_global_zero:
            _finish(config, directory, module, data, summary, loggers)
        return summary
    except SystemExit as error:  # the trainer's own end after Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        close_loggers(loggers)


def _fit(trainer: pl.Trainer, module: BudgetedModule, data: DataModule, checkpoint: Path | None) -> None:
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        epochs = state["budgetnet"]["epochs"]
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])
        if not state["budgetnet"]["batches"] and (module.finished(epochs) or epochs >= (trainer.max_epochs or 0)):
            return
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


def _how_to_continue(directory: Path, command: str) -> str:
    if not (directory / "last.ckpt").exists():
        return f"no epoch was finished; start again with: {command}"
    state = load_checkpoint(directory / "last.ckpt")["budgetnet"]
    reached = f"epoch {state['epochs']}" + (f" and {state['batches']} steps" if state["batches"] else "")
    return f"{directory} is complete up to {reached}; continue with the same command: {command}"


def _evaluate(trainer: pl.Trainer, module: BudgetedModule, data: DataModule, directory: Path) -> dict[str, Any]:
    """Test accuracy of the last epoch, then of the validation-selected one, whose weights the module keeps."""
    epochs = load_checkpoint(directory / "last.ckpt")["budgetnet"]["epochs"]
    results: dict[str, Any] = {"epochs": epochs, "best_epoch": epochs, "val_top1": module.results.get("val_top1")}
    trainer.test(module, datamodule=data, verbose=False)
    top1, top5 = module.results["test_top1"], module.results["test_top5"]
    results |= {"test_top1_last": top1, "test_top5_last": top5, "test_top1": top1, "test_top5": top5}
    best = directory / "best.ckpt"
    if best.exists():
        state = load_checkpoint(best)
        selected = state["callbacks"]["Checkpoint"]
        results["best_epoch"] = selected["best_epoch"]
        results["val_top1"] = selected["best_top1"] if data.splits.validation is not None else None
        if state["budgetnet"]["epochs"] != epochs:
            module.load_state_dict(state["state_dict"])
            trainer.test(module, datamodule=data, verbose=False)
            results |= {"test_top1": module.results["test_top1"], "test_top5": module.results["test_top5"]}
    return results


def _seconds_before(directory: Path, checkpoint: Path | None) -> float:
    """Seconds that training took before an interruption, as far as it was kept."""
    if checkpoint is None:
        return 0.0
    from budgetnet.reports.run_directory import RunDirectory

    state = load_checkpoint(checkpoint)
    epochs, finished = state["budgetnet"]["epochs"], 0.0
    if epochs:  # in the first there is no metrics.csv yet
        finished = sum(float(row["seconds"]) for row in RunDirectory(directory).metrics if row["epoch"] <= epochs)
    return finished + float(state["callbacks"]["Recorder"]["elapsed"])


def _finish(
    config: Config,
    directory: Path,
    module: BudgetedModule,
    data: DataModule,
    summary: dict[str, Any],
    loggers: list[Any],
) -> None:
    from budgetnet.reports.report import write_report

    if config["export"]:
        from budgetnet.export import export_model

        export_model(module.net, data.input_shape, directory)
    write_json(directory / "summary.json", summary)
    write_report(directory)
    log_images(loggers, directory / "figures", summary)
    write_json(directory / "done.json", {"epochs": summary["epochs"], "test_top1": summary["test_top1"]})


def command_line(overrides: Sequence[str] | None = None) -> str:
    """The command that runs this again: the one that started this process, or that of one job of a sweep."""
    return shlex.join(["python", "-m", "src.run", *(sys.argv[1:] if overrides is None else overrides)])
