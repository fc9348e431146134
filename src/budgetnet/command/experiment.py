"""One run from a parsed configuration to a finished run directory."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from budgetnet.command.build import Components, build
from budgetnet.command.configuration import Configuration
from budgetnet.command.finishing import Ending, about, finish, say
from budgetnet.command.header import header
from budgetnet.command.made import imported_from, own_files
from budgetnet.command.refusals import refusal
from budgetnet.data.folder import worker_death
from budgetnet.errors import Interrupted, Preempted, RunError, UsageError
from budgetnet.processes.group import Processes, in_rank_order
from budgetnet.processes.insisting import second_signal_ends
from budgetnet.processes.launch import requeue
from budgetnet.runs.adoption import finished, finished_summary, occupied
from budgetnet.runs.best import best_epoch, lost_best
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.origin import changed_code, check_facts, write_origin
from budgetnet.runs.records import Records
from budgetnet.tasks import described
from budgetnet.training.callbacks.checkpoint import Checkpoint
from budgetnet.training.callbacks.preemption import Signals
from budgetnet.training.loggers import close_loggers
from budgetnet.training.summary import best_test_epoch, describe, validation_at

Config = Mapping[str, Any]

_CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
    errno.ENOENT,
    errno.ELOOP,
)


def run(options: Configuration, directory: Path, command: str, ending: Ending | None = None) -> dict[str, Any]:
    """Train one configuration in `directory` and return its summary.

    If there is done.json, its summary is returned at once; if there is last.ckpt, the run continues from it.

    ending: draws the figures and writes the report, after summary.json and done.json.
    Raises UsageError for a configuration that cannot run, before anything is written; RunError for a run that fails;
    and Preempted or Interrupted after a signal.
    """
    config, signals = options.plain, Signals()
    processes: Processes | None = None
    with (
        ExitStack() as stack,
        signals.handled(),
        second_signal_ends(lambda: None if processes is None else processes.kill_children()),
    ):
        try:
            if finished(directory):
                return finished_summary(config, directory)
            components = build(options, directory, signals)
            processes = components.processes
            processes.join(options.trainer.timeout)
            checkpoint = processes.decide(lambda: stack.enter_context(occupied(config, directory)))
            if checkpoint is not None and checkpoint.name == "done.json":
                return finished_summary(config, directory)
            if options.trainer.progress and components.trainer.is_global_zero:
                print(*header(components, options, directory, _reached(checkpoint)), sep="\n", flush=True)
            return _train(config, directory, command, components, checkpoint, ending)
        except BaseException as raised:
            error = worker_death(raised) or refusal(raised, options) or raised
            error = _explained(error, directory, command)
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
        finally:
            if processes is not None:
                processes.part()


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
    ending: Ending | None,
) -> dict[str, Any]:
    """Train, evaluate and write the results, on every process."""
    trainer, learner = components.trainer, components.learner
    try:
        start = time.perf_counter() - _seconds_before(directory, checkpoint)
        facts = _facts(components)
        if checkpoint is not None:
            components.processes.decide(lambda: check_facts(directory, facts))
        elif trainer.is_global_zero:
            write_origin(directory, facts, own_files(config))
        if trainer.is_global_zero:
            of_task = {"section": components.data.own_task, "imports": imported_from(config)}
            Records(directory).task({**described(learner.task), **of_task})
            Records(directory).about(about(components))
            for line in components.data.warnings:
                learner.warnings.add(line)
            if components.warning is not None:
                learner.warnings.add(components.warning)
            if checkpoint is not None and (code := changed_code(directory)) is not None:
                learner.warnings.add(f"{code}: it goes on with what is there now")
        if checkpoint is not None:
            lost = components.processes.decide(lambda: lost_best(directory, load_checkpoint(checkpoint)))
            if lost is not None:
                _forget_best(components, lost)
        _fit(components, checkpoint)
        say(components, "test", f"{len(components.data.splits.test):,} images")
        summary = _evaluate(components, directory)
        _check_budget(components)
        seconds = round(time.perf_counter() - start, 2)
        summary = {**describe(config, directory, learner, components.full, command), **summary, "seconds": seconds}
        components.processes.part()
        if trainer.is_global_zero:
            finish(config, directory, components, summary, ending)
        return summary
    except SystemExit as error:  # raised by the trainer after Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        close_loggers(trainer.loggers)


def _facts(components: Components) -> dict[str, Any]:
    """What must be as it was when a run is continued: the costs of the full network, and the data."""
    data, full = components.data, components.full
    train, held_out, test = data.splits
    return {
        "FLOPs of the full network": full["full_flops"],
        "parameters of the full network": full["full_params"],
        "training images": len(train),
        "validation images": 0 if held_out is None else len(held_out),
        "test images": len(test),
        "classes": list(data.class_names) or data.num_classes,
    }


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
    epochs, selected = processes.decide(lambda: _selected(directory))
    results = _test(components, directory, selected not in (None, epochs))
    validated: dict[str, Any] = {}
    if (
        selected is None and components.data.splits.validation is not None
    ):  # the network changed after the last validation
        components.trainer.validate(learner, datamodule=components.data, verbose=False)
        validated = {f"val_{metric.name}": learner.results[f"val_{metric.name}"] for metric in task.metrics}
    first = epochs if learner.final_from is None else learner.final_from + 1  # the same epochs as in Checkpoint

    def recorded() -> dict[str, Any]:
        metrics = RunDirectory(directory).metrics
        at_best = validation_at(metrics, selected or epochs, task)
        return {**(validated or at_best), **best_test_epoch(metrics, first, task.metric)}

    return {"epochs": epochs, "best_epoch": selected or epochs, **results, **processes.decide(recorded)}


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
    results |= {name: learner.results[name] for name in names}
    for own, loader in components.data.further_tests().items():
        trainer.test(learner, dataloaders=loader, verbose=False)
        results |= {f"{name}_{own}": learner.results[name] for name in names}
    return results


def _check_budget(components: Components) -> None:
    """Raises RunError for a network, or a training, that exceeds a limit: there is no result above its budget."""
    training = components.method.training
    spent = {**components.method.costs(), "train_cost": training.ledger.spent}
    training.budget.require_kept(spent, "the trained network")


def _forget_best(components: Components, lost: str) -> None:
    """Select among the epochs to come, since best.ckpt is lost."""
    if components.processes.rank == 0:
        components.learner.warnings.add(lost)
    for callback in components.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            callback.forgotten = True


def _selected(directory: Path) -> tuple[int, int | None]:
    """The number of epochs of the run, and the epoch of best.ckpt if there is one."""
    last = load_checkpoint(directory / "last.ckpt")
    return last["budgetnet"]["epochs"], best_epoch(last) if (directory / "best.ckpt").exists() else None


def _seconds_before(directory: Path, checkpoint: Path | None) -> float:
    """The seconds of training up to the checkpoint from which the run continues."""
    if checkpoint is None:
        return 0.0
    state = load_checkpoint(checkpoint)
    epochs, finished = state["budgetnet"]["epochs"], 0.0
    if epochs:  # metrics.csv does not exist before the end of the first epoch
        finished = sum(float(row["seconds"]) for row in RunDirectory(directory).metrics if row["epoch"] <= epochs)
    return finished + float(state["callbacks"]["Recorder"]["elapsed"])
