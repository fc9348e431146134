"""best.ckpt, compared with what last.ckpt tells of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from budgetnet.errors import RunError, in_one_line
from budgetnet.runs.checkpoints import load_checkpoint
from budgetnet.runs.files import replacing


def fingerprint(state: Mapping[str, Any]) -> str:
    """SHA-256 of the names, tensors and plain values of a state dict, by which weights are recognised."""
    found = hashlib.sha256()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):  # of `get_extra_state`
            found.update(f"{name} {value!r}\n".encode())
            continue
        tensor = value.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def best_epoch(last: Mapping[str, Any]) -> int | None:
    """The epoch whose weights best.ckpt holds, by what last.ckpt tells; None if there is none yet."""
    return last["callbacks"]["Checkpoint"]["best_epoch"] or None


def lost_best(directory: Path, last: Mapping[str, Any]) -> str | None:
    """What is lost with best.ckpt, as a warning; None if nothing is.

    last: the contents of last.ckpt. If best.ckpt is not what it tells, but last.ckpt has these weights itself, as after
    a process that ended between the two files, best.ckpt is made of it again.
    Raises RunError for a best.ckpt that is damaged or of another run and cannot be made again.
    """
    epoch, expected = best_epoch(last), last["callbacks"]["Checkpoint"].get("best_weights")
    if epoch is None:
        return None
    path = directory / "best.ckpt"
    problem = _problem(path, epoch, expected)
    if problem is None:
        return None
    if expected is not None and fingerprint(last["state_dict"]) == expected:
        with open(directory / "last.ckpt", "rb") as whole, replacing(path) as file:
            shutil.copyfileobj(whole, file)
        return None
    value = last["callbacks"]["Checkpoint"]["best_value"]
    measured = "" if value is None else f", whose validation metric was {value:.2f}"
    epochs = last["budgetnet"]["epochs"]
    if path.exists():
        raise RunError(
            f"{path} {problem}: it should hold the weights of epoch {epoch}{measured}, which last.ckpt, of epoch "
            f"{epochs}, does not have; restore it, or remove it to go on without them: the result is then selected "
            f"among the epochs from {epochs} on"
        )
    return (
        f"best.ckpt with the weights of epoch {epoch}{measured}, is lost: the result is selected among the epochs from "
        f"{epochs} on"
    )


def _problem(path: Path, epoch: int, expected: str | None) -> str | None:
    """Why a file is not the best.ckpt of an epoch with the expected fingerprint, or None if it is."""
    if not path.exists():
        return "is not there"
    try:
        state = load_checkpoint(path)
        found = fingerprint(state["state_dict"]), best_epoch(state)
    except (RunError, KeyError, TypeError, AttributeError) as error:
        return f"is damaged ({in_one_line(error.__cause__ or error, 100)})"
    return None if found == (expected or found[0], epoch) else "is of another run"
