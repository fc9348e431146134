"""One run, from a resolved configuration to a finished run directory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException

from budgetnet.building import build
from budgetnet.callbacks.checkpoint import load_checkpoint
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import Interrupted, UsageError
from budgetnet.loggers import close_loggers, log_images, make_loggers
from budgetnet.methods.base import BudgetedModule
from budgetnet.records import Records, write_json
from budgetnet.summary import describe
from budgetnet.workspace import check_same, prepare

Config = Mapping[str, Any]


def run(config: Config, directory: Path, command: str) -> dict[str, Any]:
    """Train one configuration (plain, resolved) in `directory` and return its summary.

    A directory with done.json returns its summary at once; one with last.ckpt is continued. Raises UsageError before
    anything is written for a configuration that cannot run.
    """
    if (directory / "done.json").exists():
        check_same(config, directory)
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
        return summary
    parts = build(config, directory)
    trainer, module, data = parts.trainer, parts.module, parts.data
    checkpoint = prepare(config, directory)
    loggers = make_loggers(config["logger"], config, directory)
    trainer.loggers = loggers
    try:
        start = time.perf_counter()
        _fit(trainer, module, data, checkpoint, Records(directory))
        summary = _evaluate(trainer, module, data, directory)
        summary = {
            **describe(config, directory, module, parts.full, command),
            **summary,
            "seconds": round(_seconds_before(directory, checkpoint) + time.perf_counter() - start, 2),
        }
        if trainer.is_global_zero:
            _finish(config, directory, module, data, summary, loggers)
        return summary
    except KeyboardInterrupt as error:
        raise Interrupted(_how_to_continue(directory, command)) from error
    finally:
        close_loggers(loggers)


def _fit(
    trainer: pl.Trainer, module: BudgetedModule, data: DataModule, checkpoint: Path | None, records: Records
) -> None:
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        epochs = state["epoch"] + 1
        if trainer.is_global_zero:
            records.cut(epochs)
        module.on_load_checkpoint(state)
        module.load_state_dict(state["state_dict"])
        if module.finished(epochs) or epochs >= (trainer.max_epochs or 0):
            return
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # the trainer's own end after Ctrl-C
        raise KeyboardInterrupt from error
    except MisconfigurationException as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


def _how_to_continue(directory: Path, command: str) -> str:
    if not (directory / "last.ckpt").exists():
        return f"no epoch was finished; start again with: {command}"
    epochs = load_checkpoint(directory / "last.ckpt")["epoch"] + 1
    return f"{directory} is complete up to epoch {epochs}; continue with the same command: {command}"


def _evaluate(trainer: pl.Trainer, module: BudgetedModule, data: DataModule, directory: Path) -> dict[str, Any]:
    """Test accuracy of the last epoch, then of the validation-selected one, whose weights the module keeps."""
    epochs = load_checkpoint(directory / "last.ckpt")["epoch"] + 1
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
        if state["epoch"] + 1 != epochs:
            module.load_state_dict(state["state_dict"])
            trainer.test(module, datamodule=data, verbose=False)
            results |= {"test_top1": module.results["test_top1"], "test_top5": module.results["test_top5"]}
    return results


def _seconds_before(directory: Path, checkpoint: Path | None) -> float:
    """Seconds that the epochs before an interruption took."""
    if checkpoint is None:
        return 0.0
    from budgetnet.reports.run_directory import RunDirectory

    state = load_checkpoint(checkpoint)
    return sum(float(row["seconds"]) for row in RunDirectory(directory).metrics if row["epoch"] <= state["epoch"] + 1)


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
    return " ".join(["python -m src.run", *(sys.argv[1:] if overrides is None else overrides)])
