"""What breaks a run at an exact place, from within, and what is the same of two runs."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pkgutil
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from budgetnet.runs.checkpoints import load_checkpoint

CLOCKS = ("seconds", "pause_ms", "growth_seconds", "compile_seconds", "elapsed", "name", "command")


@dataclass(frozen=True)
class At:
    """Send this process a signal at a call of a function: just before it, or when it returns.

    function: its full name. call: counts from 1. file: count only calls with an argument of this file name.
    """

    function: str
    call: int = 1
    after: bool = False
    file: str | None = None
    number: signal.Signals = signal.SIGKILL

    def __call__(self) -> None:
        original, calls = pkgutil.resolve_name(self.function), 0

        def watched(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += self.file is None or self.file in [getattr(argument, "name", None) for argument in args]
            now, calls = calls == self.call, calls + (calls == self.call)  # a signal is sent once
            if now and not self.after:
                os.kill(os.getpid(), self.number)
            result = original(*args, **options)
            if now and self.after:
                os.kill(os.getpid(), self.number)
            return result

        mock.patch(self.function, watched).start()


@dataclass(frozen=True)
class SmallFiles:
    """From a call of a function on, no file of this process gets longer than `size` bytes.

    A longer write fails, as on a full disk; if `deadly`, it writes what fits and the process is killed there.
    """

    function: str
    call: int
    size: int
    deadly: bool = False

    def __call__(self) -> None:
        original, calls = pkgutil.resolve_name(self.function), 0

        def limited(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.deadly else signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
            return original(*args, **options)

        mock.patch(self.function, limited).start()


@dataclass(frozen=True)
class Replaced:
    """A value of a module is another one."""

    name: str
    value: Any

    def __call__(self) -> None:
        mock.patch(self.name, self.value).start()


@dataclass(frozen=True)
class InTurn:
    """Several of these."""

    each: tuple[Callable[[], object], ...]

    def __call__(self) -> None:
        for change in self.each:
            change()


@dataclass(frozen=True)
class Steps:
    """Write a line "epoch batch", from 0, to `path` for every training step."""

    path: Path

    def __call__(self) -> None:
        from budgetnet.training.learner import Learner

        original = Learner.training_step

        def counted(learner: Learner, batch: Any, batch_idx: int) -> None:
            with open(self.path, "a") as file:
                file.write(f"{learner.current_epoch} {batch_idx}\n")
            original(learner, batch, batch_idx)

        mock.patch.object(Learner, "training_step", counted).start()


@dataclass(frozen=True)
class Facts:
    """Write to `path` what the process that this one was forked from has imported, and how many threads it has."""

    path: Path

    def __call__(self) -> None:
        status = Path(f"/proc/{os.getppid()}/status").read_text()
        threads = int(status.partition("Threads:")[2].split()[0])
        self.path.write_text(json.dumps({"imported": sorted(sys.modules), "threads": threads}))


def rows(path: Path, *without: str) -> list[dict[str, str]]:
    if not path.exists():
        return []  # methods that do not grow have no saturation, those of fixed networks no rounds
    with open(path) as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def rounds(directory: Path) -> list[dict[str, Any]]:
    path = directory / "growth.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kept(directory: Path) -> tuple[int, int]:
    """(epochs, steps of the next) that the checkpoint to continue from has behind it."""
    if not (directory / "last.ckpt").exists():
        return 0, 0
    state = load_checkpoint(directory / "last.ckpt")["budgetnet"]
    return state["epochs"], state["batches"]


def learned(directory: Path) -> dict[str, str]:
    """SHA-256 of each thing that a run learned and recorded, without what the clock says."""
    last, best = (torch.load(directory / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    return {
        name: digest(value)
        for name, value in {
            "weights": last["state_dict"],
            "optimizer": last["optimizer_states"],
            "best weights": best["state_dict"],
            "best epoch": best["callbacks"]["Checkpoint"],
            "state": last["budgetnet"],
            "metrics": rows(directory / "metrics.csv"),
            "saturation": rows(directory / "saturation.csv"),
            "edges": rows(directory / "edges.csv"),
            "rounds": rounds(directory),
            "summary": json.loads((directory / "summary.json").read_text()),
        }.items()
    }


def digest(value: Any) -> str:
    """SHA-256 of nested containers of tensors and plain values; entries that tell the time are left out."""
    found = hashlib.sha256()
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, entry in sorted(value.items(), key=lambda item: str(item[0])):
            if key not in CLOCKS:
                found.update(f"{key}:{digest(entry)};".encode())
    elif isinstance(value, (list, tuple)):
        for entry in value:
            found.update(f"{digest(entry)};".encode())
    else:
        found.update(repr(value).encode())
    return found.hexdigest()
