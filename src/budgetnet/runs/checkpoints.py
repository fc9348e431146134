"""Checkpoint files, which are read as plain values."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from budgetnet.errors import RunError

CHECKPOINT_FORMAT = 4


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of plain values and tensors on the CPU.

    Raises RunError for a file that is missing, damaged, foreign or of another format.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["budgetnet"]["format"]
    except FileNotFoundError as error:
        raise RunError(f"{path} is not there: all nodes of a run must see its directory") from error
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, IndexError, ValueError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        best = path.with_name("best.ckpt")
        other = f"put {best.name}, of an earlier epoch, in its place, or " if path != best and best.exists() else ""
        raise RunError(
            f"{path} is damaged or not a checkpoint of this project ({reason}): {other}remove it to start again"
        ) from error
    if found != CHECKPOINT_FORMAT:
        raise RunError(
            f"{path} is of checkpoint format {found}, and this version reads {CHECKPOINT_FORMAT}: continue it with the "
            "version that wrote it, or start in a new directory (run.dir=)"
        )
    return state
