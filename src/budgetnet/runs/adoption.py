"""The directory of a run: created, or adopted from an earlier run of the same configuration."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from budgetnet.errors import RunError, UsageError
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.locking import exclusive
from budgetnet.runs.records import Records, write_text
from budgetnet.sections import affects_result

Config = Mapping[str, Any]

_LOCK = ".lock"
_PATIENCE = 5.0
"""Seconds to wait for the directory: data workers of a process that was killed hold the lock until they end too."""


@contextmanager
def occupied(config: Config, directory: Path) -> Iterator[Path | None]:
    """Create or adopt the directory and keep others out; yields what there is to go on from.

    That is its last.ckpt; its done.json, if nothing is left to do; or None. Raises UsageError for a directory of
    something else, of another configuration, in use, or that cannot be written.
    """
    _check_ours(config, directory)  # before anything is written there
    last, done = directory / "last.ckpt", directory / "done.json"
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(directory / _LOCK, _PATIENCE))
        except TimeoutError as error:
            raise UsageError(
                f"run.dir={directory} is in use by another process: wait for it, or choose another directory"
            ) from error
        except OSError as error:
            raise UsageError(f"run.dir={directory}: cannot be written ({error.strerror})") from error
        _check_ours(config, directory)  # another process may have begun a run there since
        if done.exists():
            yield done
            return
        epochs = -1  # what was written before the first checkpoint is written again
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
    elif directory.is_dir() and any(not _passing(path) for path in directory.iterdir()):
        raise UsageError(f"run.dir={directory} holds files of something else: choose another directory")


def _passing(path: Path) -> bool:
    """Whether a run that had only just begun may have left this file."""
    return path.name == _LOCK or path.suffix == ".tmp"


def check_same(config: Config, directory: Path) -> None:
    """Raises UsageError, naming the keys, if the run in `directory` is of another configuration; RunError if broken.

    Options that cannot affect what is learned may differ (`budgetnet.sections.affects_result`).
    """
    path = directory / "config.yaml"
    try:
        saved = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} is damaged ({reason}): choose another run.dir or run.name") from error
    old, new = _flat(saved), _flat(config)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and affects_result(key))
    if differing:
        raise UsageError(
            f"{directory} holds a run of another configuration (differing: {', '.join(differing)}); "
            "choose another run.dir or run.name"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}".strip(".")).items()}
    return {prefix: list(tree) if isinstance(tree, (list, tuple)) else tree}
