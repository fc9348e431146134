"""One run, from a resolved configuration to a finished run directory."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from hydra.utils import get_method, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from budgetnet.callbacks.checkpoint import Checkpoint
from budgetnet.callbacks.growth import Growth
from budgetnet.callbacks.progress import Progress
from budgetnet.callbacks.record import Recorder
from budgetnet.channels import ChannelGraph
from budgetnet.costs import CostModel, TrainCostLedger
from budgetnet.data.datamodule import DataModule
from budgetnet.errors import Interrupted, UsageError
from budgetnet.loggers import close_loggers, log_images, make_loggers
from budgetnet.methods.base import BudgetedModule
from budgetnet.methods.options import WholeRun, options
from budgetnet.records import Records, write_json, write_text

Config = Mapping[str, Any]

_FREE = ("trainer", "logger", "run", "export")
"""Sections that may differ when a run is continued: they do not change what is learned."""


def run(config: Config, directory: Path, command: str) -> dict[str, Any]:
    """Train one configuration (plain, resolved) in `directory` and return its summary.

    A directory with done.json returns its summary at once; one with last.ckpt is continued. Raises UsageError before
    anything is written for a configuration that cannot run.
    """
    if (directory / "done.json").exists():
        _check_same(config, directory)
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
        return summary
    quiet()
    with _configuration_errors():
        whole = options(WholeRun, "", config)
        pl.seed_everything(whole.seed, workers=True, verbose=False)
        if whole.threads is not None:
            torch.set_num_threads(whole.threads)
        data: DataModule = instantiate(config["dataset"])
        data.prepare_data()
        module, full = build(config, data)
    checkpoint = _prepare(config, directory)
    loggers = make_loggers(config["logger"], config, directory)
    try:
        records = Records(directory)
        with _configuration_errors():
            trainer = make_trainer(config, directory, module, records, loggers)
        start = time.perf_counter()
        _fit(trainer, module, data, checkpoint, records)
        summary = _evaluate(trainer, module, data, directory)
        summary = {
            **_describe(config, directory, module, full, command),
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


def build(config: Config, data: DataModule) -> tuple[BudgetedModule, dict[str, Any]]:
    """The method's module, and facts of the full backbone it started from (widths and costs)."""
    net = instantiate(config["backbone"], num_classes=data.num_classes, in_channels=data.input_shape[0])
    graph = ChannelGraph.trace(net, torch.empty(1, *data.input_shape))
    costs, widths = CostModel(graph).costs(), graph.widths
    images = data.images_per_epoch(1)
    ledger = TrainCostLedger(images, data.baseline_epochs, costs["flops"])
    method = get_method(config["method"]["_target_"])
    module: BudgetedModule = method(config, net, data.num_classes, ledger)
    full = {
        "full_widths": widths,
        "seed_widths": graph.widths,
        "full_params": costs["params"],
        "full_flops": costs["flops"],
    }
    return module, full


def make_trainer(
    config: Config, directory: Path, module: BudgetedModule, records: Records, loggers: list[Any]
) -> pl.Trainer:
    """The Lightning trainer of conf/trainer with the project's callbacks, in the order they must run in."""
    options = dict(config["trainer"])
    channels_last, progress = options.pop("channels_last"), options.pop("progress")
    if channels_last:
        module.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    limit = module.budget.limits.get("flops")
    callbacks: list[pl.Callback] = [Recorder(records)]
    callbacks += [Progress(limit)] if progress else []
    callbacks += [Growth(records)] if hasattr(module, "plan_round") else []
    callbacks += [Checkpoint(directory)]
    return pl.Trainer(
        **options,
        max_epochs=config["epochs"],
        logger=loggers,
        callbacks=callbacks,
        default_root_dir=directory,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@contextmanager
def _configuration_errors() -> Iterator[None]:
    """Whatever a wrong option breaks while the run is put together is the option's fault: one line."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError, HydraException, MisconfigurationException) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        if isinstance(cause, UsageError):
            raise cause from error
        raise UsageError(f"this configuration cannot be built: {str(cause).splitlines()[0]}") from error


def quiet() -> None:
    """Leave the terminal to the run: Lightning's notices about devices and workers say nothing here."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*smaller than the logging interval.*", ".*LeafSpec.*",
                 ".*Deterministic behavior was enabled.*", ".*treespec.*"):  # fmt: skip
        warnings.filterwarnings("ignore", text)


def _prepare(config: Config, directory: Path) -> Path | None:
    """Create or adopt the run directory; returns the checkpoint to continue from, if there is one."""
    last = directory / "last.ckpt"
    if last.exists():
        _check_same(config, directory)
        return last
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    except OSError as error:
        raise UsageError(f"run.dir={directory}: cannot be written ({error.strerror})") from error
    Records(directory).cut(0)
    return None


def _check_same(config: Config, directory: Path) -> None:
    saved = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    old, new = _flat(saved), _flat(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    differing = [key for key in differing if key.split(".")[0] not in _FREE]
    if differing:
        raise UsageError(
            f"{directory} holds a run of another configuration (differing: {', '.join(differing)}); "
            "choose another run.dir or run.name"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: list(tree) if isinstance(tree, (list, tuple)) else tree}


def _fit(
    trainer: pl.Trainer, module: BudgetedModule, data: DataModule, checkpoint: Path | None, records: Records
) -> None:
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
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


def _how_to_continue(directory: Path, command: str) -> str:
    if not (directory / "last.ckpt").exists():
        return f"no epoch was finished; start again with: {command}"
    epochs = torch.load(directory / "last.ckpt", map_location="cpu", weights_only=True)["epoch"] + 1
    return f"{directory} is complete up to epoch {epochs}; continue with the same command: {command}"


def _evaluate(trainer: pl.Trainer, module: BudgetedModule, data: DataModule, directory: Path) -> dict[str, Any]:
    """Test accuracy of the last epoch, then of the validation-selected one, whose weights the module keeps."""
    last = torch.load(directory / "last.ckpt", map_location="cpu", weights_only=True)
    epochs = last["epoch"] + 1
    results: dict[str, Any] = {"epochs": epochs, "best_epoch": epochs, "val_top1": module.results.get("val_top1")}
    trainer.test(module, datamodule=data, verbose=False)
    top1, top5 = module.results["test_top1"], module.results["test_top5"]
    results |= {"test_top1_last": top1, "test_top5_last": top5, "test_top1": top1, "test_top5": top5}
    best = directory / "best.ckpt"
    if best.exists():
        state = torch.load(best, map_location="cpu", weights_only=True)
        selected = state["callbacks"]["Checkpoint"]
        results["best_epoch"] = selected["best_epoch"]
        results["val_top1"] = selected["best_top1"] if data.splits.validation is not None else None
        if state["epoch"] + 1 != epochs:
            module.load_state_dict(state["state_dict"])
            trainer.test(module, datamodule=data, verbose=False)
            results |= {"test_top1": module.results["test_top1"], "test_top5": module.results["test_top5"]}
    return results


def _describe(
    config: Config, directory: Path, module: BudgetedModule, full: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """What the run was and what its network costs: everything of summary.json but the accuracies."""
    costs, ledger = module.costs(), module.ledger
    spent = {**costs, "train_cost": ledger.spent}
    used = module.budget.used(spent)
    return {
        "format": 1,
        "name": directory.name,
        "experiment": config["run"]["experiment"],
        "method": config["method"]["name"],
        "backbone": config["backbone"].get("name", config["backbone"]["_target_"]),
        "dataset": config["dataset"]["name"],
        "seed": config["seed"],
        **costs,
        "budget": {
            kind: {"limit": limit, "used": spent[kind], "percent": 100 * used[kind]}
            for kind, limit in module.budget.limits.items()
        },
        "train_cost_flops": ledger.spent,
        "train_cost_baseline_percent": ledger.percent_of_baseline(),
        "train_cost_final_percent": ledger.percent_of_final(costs["flops"]),
        "widths": module.graph.widths,
        **full,
        "stop_reason": module.stop_reason,
        "rounds": module.round,
        "growth_seconds": round(ledger.growth_seconds, 3),
        "compile_seconds": round(ledger.compile_seconds, 3),
        "versions": {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "hydra-core", "numpy")}
        | {"python": platform.python_version()},
        "hardware": _hardware(module),
        "command": command,
    }


def _hardware(module: BudgetedModule) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "devices": module.trainer.world_size}


def _seconds_before(directory: Path, checkpoint: Path | None) -> float:
    """Seconds that the epochs before an interruption took."""
    if checkpoint is None:
        return 0.0
    from budgetnet.reports.run_directory import RunDirectory

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
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
