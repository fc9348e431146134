"""Errors that a library raises because of an option of the user, wherever they surface, as a line that names it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning_fabric
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.plugins.precision.precision import Precision
from pytorch_lightning.profilers import Profiler

from budgetnet.command.configuration import Configuration
from budgetnet.errors import RunError, UsageError, in_one_line
from budgetnet.processes.group import lost

_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (pl, lightning_fabric, torch))
_NO_KERNEL = re.compile(r"not implemented for '(Half|BFloat16|Double|Float8\w*)'")


def refusal(error: BaseException, options: Configuration) -> UsageError | None:
    """The line for an error that a library has raised because of an option, or None for any other error.

    An error that is raised in code of the user or of this project is none, and keeps its traceback; nor is the lost
    connection to another process.
    """
    if not isinstance(error, Exception) or isinstance(error, (UsageError, RunError)) or lost(error):
        return None
    text = in_one_line(error)
    frames = list(_frames(error.__traceback__))
    if not frames or not frames[-1][0].startswith(_LIBRARIES):
        return None
    if option := _of_precision(str(error), options):
        return UsageError(f"{option}: {text}")
    if "does not have a deterministic implementation" in str(error):
        return UsageError(f"trainer.deterministic={options.trainer.deterministic}: {text}")
    file, owner = frames[-1]  # others are passed by every error of a training step
    if owner is None and len(frames) > 1 and frames[-2][0] == file:  # a function beside the class
        owner = frames[-2][1]
    if option := _option_of(owner, options):
        return UsageError(f"{option}: {text}")
    if isinstance(error, MisconfigurationException):
        return UsageError(f"trainer with {', '.join(options.trainer.stated) or 'its defaults'}: {text}")
    return None


def _frames(trace: TracebackType | None) -> list[tuple[str, Any]]:
    """The file of each frame, outermost first, and the object whose method it runs."""
    return [(frame.f_code.co_filename, frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(trace)]


def _of_precision(text: str, options: Configuration) -> str | None:
    precision = options.trainer.precision
    return f"trainer.precision={precision}" if precision != "32-true" and _NO_KERNEL.search(text) else None


def _option_of(owner: Any, options: Configuration) -> str | None:
    """The option by which the user has asked for an object of a library."""
    if isinstance(owner, Precision):
        return f"trainer.precision={options.trainer.precision}"
    if isinstance(owner, Profiler):
        return f"trainer.profiler={options.trainer.profiler}"
    if isinstance(owner, pl.Callback):
        return next((f"callbacks.{name}" for name, each in options.callbacks.items() if _makes(each, owner)), None)
    return None


def _makes(section: Mapping[str, Any], owner: Any) -> bool:
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(owner).__mro__]
    return str(section.get("_target_", "")).rpartition(".")[2] in [name.rpartition(".")[2] for name in names]
