"""One run from a parsed configuration to a finished run directory."""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from budgetnet.command.build import Components, build
from budgetnet.command.configuration import Configuration
from budgetnet.command.header import header
from budgetnet.command.made import imported_from
from budgetnet.data.folder import worker_death
from budgetnet.errors import Interrupted, Preempted, RunError, UsageError
from budgetnet.processes.group import Processes, in_rank_order
from budgetnet.processes.launch import requeue
from budgetnet.runs.adoption import finished_summary, occupied
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.records import Records, write_json
from budgetnet.tasks import described
from budgetnet.training.callbacks.preemption import Signals
from budgetnet.training.loggers import close_loggers, log_summary
from budgetnet.training.summary import best_test_epoch, describe, validation_at

Config = Mapping[str, Any]

_PREDICTED = ("classification", "segmentation")
"""The tasks for which there is a predict.py."""
_MOST_CLASSES = 2000
"""The most classes whose confusion matrix is kept, of millions of counts."""
_EXAMPLES = 6
"""The number of test images that a report shows."""
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT)


def run(
    options: Configuration, directory: Path, command: str, report: Callable[[Path], None] | None = None
) -> dict[str, Any]:
    """Train one configuration in `directory` and return its summary.

    If there is done.json, its summary is returned at once; if there is last.ckpt, the run continues from it.

    report: writes the report of a run directory, before done.json is written.
    Raises UsageError for a configuration that cannot run, before anything is written; RunError for a run that fails;
    and Preempted or Interrupted after a signal.
    """
    config, signals = options.plain, Signals()
    with ExitStack() as stack, signals.handled():
        processes: Processes | None = None
        try:
            if (directory / "done.json").exists():
                return finished_summary(config, directory)
            components = build(options, directory, signals)
            processes = components.processes
            processes.join()
            checkpoint = processes.decide(lambda: stack.enter_context(occupied(config, directory)))
            if checkpoint is not None and checkpoint.name == "done.json":
                return finished_summary(config, directory)
            if options.trainer.progress and components.trainer.is_global_zero:
                print(*header(components, options, directory, _reached(checkpoint)), sep="\n", flush=True)
            return _train(config, directory, command, components, checkpoint, report)
        except BaseException as raised:
            error = _explained(worker_death(raised) or raised, directory, command)
            signalled = signals.received is not None
            error = in_rank_order(error) if processes is None else processes.fail(error, signalled)
            if isinstance(error, Preempted) and signals.received is signal.SIGINT:
                error = Interrupted(_how_to_continue(directory, command))
            elif isinstance(error, Preempted):
                name = f"by {signals.received.name}: " if signals.received else ""
                requeued = "requeued, " if requeue() else ""
                error = Preempted(f"{name}{requeued}{_how_to_continue(directory, command)}")
            if error is raised:
                raise
            raise error from raised


def _explained(error: BaseException, directory: Path, command: str) -> BaseException:
    """The error with a message that says what the user can do, if that is known, or else the error itself."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(_how_to_continue(directory, command))
    if isinstance(error, torch.OutOfMemoryError):
        return RunError(
            f"the device is out of memory ({' '.join(str(error).split())[:120]}): divide batches with "
            f"trainer.micro_batches, or make dataset.batch_size smaller; {_how_to_continue(directory, command)}"
        )
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return RunError(
            f"{error.filename or directory} cannot be written ({error.strerror}): the last checkpoint is kept; "
            f"make room and {_how_to_continue(directory, command)}"
        )
    return error


def _train(
    config: Config,
    directory: Path,
    command: str,
    components: Components,
    checkpoint: Path | None,
    report: Callable[[Path], None] | None,
) -> dict[str, Any]:
    """Train, evaluate and write the results, on every process."""
    trainer, learner = components.trainer, components.learner
    try:
        start = time.perf_counter() - _seconds_before(directory, checkpoint)
        if trainer.is_global_zero:
            Records(directory).task({**described(learner.task), "imports": imported_from(config)})
            Records(directory).about(_about(components))
            if components.warning is not None:
                print(f"warning: {components.warning}", file=sys.stderr, flush=True)
        _fit(components, checkpoint)
        _say(components, "test", f"{len(components.data.splits.test):,} images")
        summary = _evaluate(components, directory)
        seconds = round(time.perf_counter() - start, 2)
        summary = {**describe(config, directory, learner, components.full, command), **summary, "seconds": seconds}
        if trainer.is_global_zero:
            _finish(config, directory, components, summary, report)
        return summary
    except SystemExit as error:  # raised by the trainer after Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        close_loggers(trainer.loggers)


def _say(components: Components, name: str, what: str) -> None:
    """A line about what comes after training, as it begins."""
    if components.trainer.is_global_zero and components.trainer.progress_bar_callback is not None:
        print(f"{name:9}{what}", flush=True)


def _fit(components: Components, checkpoint: Path | None) -> None:
    trainer, learner = components.trainer, components.learner
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        epochs = state["budgetnet"]["epochs"]
        learner.on_load_checkpoint(state)
        learner.load_state_dict(state["state_dict"])
        if not state["budgetnet"]["batches"] and (learner.finished(epochs) or epochs >= (trainer.max_epochs or 0)):
            return
    try:
        trainer.fit(learner, datamodule=components.data, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


def _how_to_continue(directory: Path, command: str) -> str:
    try:
        state = load_checkpoint(directory / "last.ckpt")["budgetnet"]
    except RunError:
        return f"start again with: {command}"
    return f"{directory} is complete up to {_epoch(state)}; continue with the same command: {command}"


def _reached(checkpoint: Path | None) -> str | None:
    """Up to where the run is complete that is continued, as text, if one is."""
    return None if checkpoint is None else _epoch(load_checkpoint(checkpoint)["budgetnet"])


def _epoch(state: Mapping[str, Any]) -> str:
    return f"epoch {state['epochs']}" + (f" and {state['batches']} steps" if state["batches"] else "")


def _evaluate(components: Components, directory: Path) -> dict[str, Any]:
    """The metrics of summary.json; the learner then has the weights of the epoch that validation selects.

    They are the test metrics of the last epoch and of the selected one, the validation metrics of the selected one, and
    the best test metric of an epoch, which selects nothing, if the test set was evaluated after every epoch.
    """
    learner, processes = components.learner, components.processes
    task = learner.task
    epochs, best_epoch = processes.decide(lambda: _selected(directory))
    results = _test(components, directory, best_epoch not in (None, epochs))
    validated: dict[str, Any] = {}
    if (
        best_epoch is None and components.data.splits.validation is not None
    ):  # the network changed after the last validation
        components.trainer.validate(learner, datamodule=components.data, verbose=False)
        validated = {f"val_{metric.name}": learner.results[f"val_{metric.name}"] for metric in task.metrics}
    first = epochs if learner.final_from is None else learner.final_from + 1  # the same epochs as in Checkpoint

    def recorded() -> dict[str, Any]:
        metrics = RunDirectory(directory).metrics
        at_best = validation_at(metrics, best_epoch or epochs, task)
        return {**(validated or at_best), **best_test_epoch(metrics, first, task.metric)}

    return {"epochs": epochs, "best_epoch": best_epoch or epochs, **results, **processes.decide(recorded)}


def _test(components: Components, directory: Path, selected: bool) -> dict[str, float]:
    """The test metrics of the last epoch, and then of best.ckpt if it is `selected` and not the last epoch."""
    trainer, learner = components.trainer, components.learner
    names = [f"test_{metric.name}" for metric in learner.task.metrics]
    trainer.test(learner, datamodule=components.data, verbose=False)
    results = {f"{name}_last": learner.results[name] for name in names}
    if selected:
        if trainer.is_global_zero:  # the trainer broadcasts the weights to the other processes
            learner.load_state_dict(load_checkpoint(directory / "best.ckpt")["state_dict"])
        trainer.test(learner, datamodule=components.data, verbose=False)
    return results | {name: learner.results[name] for name in names}


def _selected(directory: Path) -> tuple[int, int | None]:
    """The number of epochs of the run, and the epoch of best.ckpt if there is one."""
    epochs = load_checkpoint(directory / "last.ckpt")["budgetnet"]["epochs"]
    if not (directory / "best.ckpt").exists():
        return epochs, None
    return epochs, load_checkpoint(directory / "best.ckpt")["callbacks"]["Checkpoint"]["best_epoch"]


def _seconds_before(directory: Path, checkpoint: Path | None) -> float:
    """The seconds of training up to the checkpoint from which the run continues."""
    if checkpoint is None:
        return 0.0
    state = load_checkpoint(checkpoint)
    epochs, finished = state["budgetnet"]["epochs"], 0.0
    if epochs:  # metrics.csv does not exist before the end of the first epoch
        finished = sum(float(row["seconds"]) for row in RunDirectory(directory).metrics if row["epoch"] <= epochs)
    return finished + float(state["callbacks"]["Recorder"]["elapsed"])


def _finish(
    config: Config,
    directory: Path,
    components: Components,
    summary: dict[str, Any],
    report: Callable[[Path], None] | None,
) -> None:
    if config["export"]:
        _say(components, "export", "model.pt2 and model.onnx")
        summary |= _exported(components, directory)
    if components.learner.task.has_examples:
        Records(directory).examples(_examples(components))
    if (counts := components.learner.confusion) is not None and len(counts) <= _MOST_CLASSES:
        Records(directory).confusion(counts.numpy(), components.data.class_names)
    for name, rows in components.method.tables().items():
        Records(directory).table(name, rows)
    write_json(directory / "summary.json", summary)
    if report is not None:
        _say(components, "report", "figures and report.md")
        report(directory)
    log_summary(components.trainer.loggers, directory / "figures", summary)
    tested = f"test_{components.learner.task.metric.name}"
    write_json(directory / "done.json", {"epochs": summary["epochs"], tested: summary[tested]})


def _about(components: Components) -> dict[str, Any]:
    """preprocessing.json: how the network of a run is used."""
    data, task = components.data, components.learner.task
    return {
        "format": 1,
        "task": task.name,
        "classes": list(data.class_names),
        "num_classes": data.num_classes,
        "input": "images",
        "layout": "NCHW",
        "scale": 1 / 255,
        **data.preprocessing.as_mapping(),
    }


def _exported(components: Components, directory: Path) -> dict[str, Any]:
    """Export the network. A format that fails is named in a warning, and in the result, an entry of summary.json."""
    from budgetnet.runs.export import export_model, write_predictor

    learner, about, failed = components.learner, _about(components), {}
    try:
        export_model(learner.net, components.data.input_shape, directory, about)
    except RunError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
        failed = {"export_failed": str(error)}
    if (directory / "model.onnx").exists() and about["mode"] and about["task"] in _PREDICTED:
        write_predictor(directory)
    return failed


@torch.no_grad()
def _examples(components: Components) -> dict[str, np.ndarray]:
    """A few test images as pixels in 0..1, and the examples of the task for the network's outputs (`Task.examples`)."""
    learner, data = components.learner.eval(), components.data
    images, targets = next(iter(data.test_dataloader()))
    device = next(learner.net.parameters()).device
    images, targets = images[:_EXAMPLES].to(device), targets[:_EXAMPLES].to(device)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (data.mean, data.std))
    shown = {"input": (images.float() * std + mean).clamp(0, 1)}
    shown |= learner.task.examples(learner.method.evaluate(images), targets)
    return {
        name: values.float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
        for name, values in shown.items()
    }
