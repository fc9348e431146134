"""One run, from a resolved configuration to a finished run directory."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from hydra.utils import get_method, instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from budgetnet.callbacks.checkpoint import Checkpoint, load_checkpoint
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
from budgetnet.summary import describe

Config = Mapping[str, Any]

_FREE = (
    "logger.",
    "run.",
    "export",
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "progress")),
)
"""Options that may differ when a run is continued: they do not change what is learned."""

_REPLACED = {
    **dict.fromkeys(("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"), "epochs"),
    **dict.fromkeys(("limit_train_batches", "overfit_batches"), "dataset.limit_train"),
    "limit_val_batches": "dataset.validation",
    "limit_test_batches": "dataset.limit_test",
    "fast_dev_run": "debug=quick",
    "gradient_clip_val": "a smaller optim.lr",
    "accumulate_grad_batches": "dataset.batch_size",
}
"""Options of Lightning's trainer that a growing run cannot have, and what serves instead."""


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
        records = Records(directory)
        trainer = make_trainer(config, directory, module, records)
    checkpoint = _prepare(config, directory)
    loggers = make_loggers(config["logger"], config, directory)
    trainer.loggers = loggers
    try:
        start = time.perf_counter()
        _fit(trainer, module, data, checkpoint, records)
        summary = _evaluate(trainer, module, data, directory)
        summary = {
            **describe(config, directory, module, full, command),
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
    net = make_network(config["backbone"], data)
    graph = ChannelGraph.of(net)
    reference = graph
    if config["method"]["name"] == "train" and config["backbone"].get("multiplier") is not None:
        reference = ChannelGraph.of(make_network({**config["backbone"], "multiplier": None}, data))
    costs, widths = CostModel(reference).costs(), reference.widths
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


def make_network(backbone: Config, data: DataModule) -> torch.nn.Module:
    """The network of conf/backbone for a dataset, traced; one that is not the project's own is also proven."""
    section = dict(backbone)
    frozen = section.pop("frozen", [])
    net: torch.nn.Module = instantiate(section, num_classes=data.num_classes, in_channels=data.input_shape[0])
    graph = ChannelGraph.trace(net, torch.empty(1, *data.input_shape), frozen)
    if section["_target_"] != "budgetnet.backbones.build":
        graph.verify()
    return net


def make_trainer(config: Config, directory: Path, module: BudgetedModule, records: Records) -> pl.Trainer:
    """The Lightning trainer of conf/trainer with the project's callbacks, in the order they must run in."""
    section = dict(config["trainer"])
    for name in section.keys() & _REPLACED.keys():
        raise UsageError(f"trainer.{name} would go around the run's own clock and cost: use {_REPLACED[name]} instead")
    channels_last, progress = section.pop("channels_last"), section.pop("progress")
    if channels_last:
        module.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    limit = module.budget.limits.get("flops")
    callbacks: list[pl.Callback] = [Recorder(records)]
    callbacks += [Progress(limit)] if progress else []
    callbacks += [Growth(records)] if hasattr(module, "plan_round") else []
    callbacks += [Checkpoint(directory)]
    return pl.Trainer(
        **section,
        max_epochs=config["epochs"],
        logger=False,
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
        text = (str(cause).splitlines() or [""])[0]
        raise UsageError(f"this configuration cannot be built: {type(cause).__name__}: {text}") from error


def quiet() -> None:
    """Leave the terminal to the run: Lightning's notices about devices and workers say nothing here."""
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        "does not have many workers",
        "smaller than the logging interval",
        "Total length of `list` across ranks is zero",
        "Deterministic behavior was enabled",
        "LeafSpec",
        "treespec",
    ):
        warnings.filterwarnings("ignore", f".*{text}.*")


def _prepare(config: Config, directory: Path) -> Path | None:
    """Create or adopt the run directory; returns the checkpoint to continue from, if there is one."""
    last = directory / "last.ckpt"
    if (directory / "config.yaml").exists():
        _check_same(config, directory)
    elif directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"run.dir={directory} holds files of something else: choose another directory")
    if last.exists():
        return last
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    except OSError as error:
        raise UsageError(f"run.dir={directory}: cannot be written ({error.strerror})") from error
    Records(directory).cut(0)
    (directory / "best.ckpt").unlink(missing_ok=True)
    return None


def _check_same(config: Config, directory: Path) -> None:
    saved = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    old, new = _flat(saved), _flat(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    differing = [key for key in differing if not key.startswith(_FREE)]
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
