"""Creation of a run directory, or its adoption from an earlier run of the same configuration."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from budgetnet.errors import RunError, UsageError
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.locking import exclusive
from budgetnet.runs.reading import Unreadable, read_json, read_text, read_yaml
from budgetnet.runs.records import Records, write_text
from budgetnet.sections import affects_result

Config = Mapping[str, Any]

_LOCK = ".lock"
_PATIENCE = 5.0
"""Seconds to wait for the lock, which the data workers of a killed process hold until they end too."""


def finished(directory: Path) -> bool:
    """Whether a run has nothing left to do: done.json is there, and names no step after it that is still pending."""
    try:
        pending = read_json(read_text(directory / "done.json")).get("pending")
    except OSError:
        return False
    except (ValueError, AttributeError):
        return True  # damaged: what it was is in the summary
    return not pending


@contextmanager
def occupied(config: Config, directory: Path) -> Iterator[Path | None]:
    """Create or adopt the directory and lock it. Yields the file from which the run continues.

    That file is done.json if the run is finished, else last.ckpt, else None.

    Raises UsageError for a directory with other files or of another configuration, in use, or that cannot be written,
    and RunError for damaged files.
    """
    _check_ours(config, directory)  # before anything is written
    last, done = directory / "last.ckpt", directory / "done.json"
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(directory / _LOCK, _PATIENCE))
        except TimeoutError as error:
            raise UsageError(
                f"run.dir={directory} is in use by another process ({error}): wait for it, or choose another directory"
            ) from error
        except OSError as error:
            raise UsageError(f"run.dir={directory}: cannot be written ({error.strerror})") from error
        _check_ours(config, directory)  # another process may have begun a run in the meantime
        if finished(directory):
            yield done
            return
        epochs = -1  # rows from before the first checkpoint are written again
        if last.exists():
            epochs = load_checkpoint(last)["budgetnet"]["epochs"]
        else:
            write_text(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
            (directory / "best.ckpt").unlink(missing_ok=True)
        for unfinished in directory.glob(".export-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        Records(directory).cut(epochs)
        yield last if last.exists() else None


def _check_ours(config: Config, directory: Path) -> None:
    if (directory / "config.yaml").exists():
        check_same(config, directory)
    elif directory.is_dir() and any(not _transient(path) for path in directory.iterdir()):
        raise UsageError(f"run.dir={directory} holds files of something else: choose another directory")


def _transient(path: Path) -> bool:
    """Whether the file may be left from a run that was killed as it began."""
    return path.name.startswith(_LOCK) or path.suffix == ".tmp"


def check_same(config: Config, directory: Path) -> None:
    """Check that the run in `directory` has the same configuration.

    Options that cannot affect what is learned may differ (`budgetnet.sections.affects_result`). Raises UsageError,
    naming the options that differ, and RunError if config.yaml is damaged.
    """
    path = directory / "config.yaml"
    try:
        saved = read_yaml(path)
    except (OSError, Unreadable) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} is damaged ({reason}): choose another run.dir or run.name") from error
    old, new = _flat(saved), _flat(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and affects_result(key))
    if differing:
        raise UsageError(
            f"{directory} holds a run of another configuration (differing: {', '.join(differing)}); "
            f"choose another run.dir or run.name, or continue it by run.dir={directory} alone"
        )


def of_another_folder(config: Config, directory: Path) -> str | None:
    """A line that says so if the run in `directory` is of another dataset.root; None if there is no such run."""
    now = config["dataset"]["root"]
    try:
        before = read_yaml(directory / "config.yaml")["dataset"]["root"]
        if Path(before).resolve() == Path(now).resolve():
            return None
    except (OSError, Unreadable, KeyError, TypeError, ValueError):  # as it is damaged, it is refused later
        return None
    return (
        f"note: {directory} is of dataset.root={before}; if {now} holds other data, choose another run.dir or run.name"
    )


def finished_summary(config: Config, directory: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises UsageError if it is of another configuration, RunError if damaged."""
    check_same(config, directory)
    try:
        run = RunDirectory(directory)
        for name in ("epochs", "best_epoch", f"test_{run.task_metrics[0].name}"):
            run.fact(name)
    except UsageError as error:
        raise RunError(
            f"{error}; without {directory / 'done.json'} the same command makes the summary again"
        ) from error
    return run.summary or {}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: list(tree) if isinstance(tree, (list, tuple)) else tree}
