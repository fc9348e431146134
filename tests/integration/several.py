"""Runs of two processes: started by Lightning or torchrun, and watched until the last process has ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from commands import start
from ranks import FOLDER, TROUBLE, notes
from zygote import MARK, REPOSITORY, marked

DDP = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
WATCHED = ("+callbacks.witness._target_=ranks.Witness", "+callbacks.trouble._target_=ranks.Trouble")
TORCHRUN = ("--standalone", "--nproc_per_node=2", "-m", "src.run")
RANKS = (0, 1)
LOCK = Lock()
"""Held while a process is started: runs are started from several threads."""
SECONDS = 180
"""Within which everything has ended after trouble: by itself, it would wait for half an hour."""


@dataclass
class Ended:
    """How a command ended. seconds: from the trouble to the end of its last process."""

    code: int | None
    output: str
    errors: str
    seconds: float

    @property
    def said(self) -> list[str]:
        """The lines of standard error that are the run's own, without those of the epochs."""
        return [line for line in self.errors.splitlines() if re.match(r"(error|stopped|interrupted)\b", line)]


def variables(folder: Path, trouble: str | None) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "trouble").unlink(missing_ok=True)
    paths = os.pathsep.join(str(REPOSITORY / path) for path in ("src", "tests", "tests/integration"))
    return {FOLDER: str(folder), "PYTHONPATH": paths} | ({} if trouble is None else {TROUBLE: trouble})


def since_trouble(folder: Path) -> float:
    file = folder / "trouble"
    return time.time() - float(file.read_text()) if file.exists() else 0.0


def launched(
    folder: Path,
    *overrides: str,
    launcher: Sequence[str] = (),
    trouble: str | None = None,
    figures: bool = False,
    others: int = 4,
) -> Ended:
    """A run whose other processes Lightning starts, or torchrun all; returns when none is left.

    others: how many of them are forks; any more take the seconds of their imports, as those of a user.
    """
    mark = uuid.uuid4().hex[:15]
    words, extra = [*launcher, *overrides], {**variables(folder, trouble), MARK: mark}
    module = "torch.distributed.run" if launcher else "src.run"
    with LOCK:
        process = start(*words, module=module, variables=extra, figures=figures, others=others)
    try:
        output, errors = process.communicate()
        deadline = time.monotonic() + SECONDS
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        seconds = since_trouble(folder)
    finally:
        for other in marked(mark):
            os.kill(other, signal.SIGKILL)
    assert not left, f"processes {left} are left: {errors}"
    return Ended(process.returncode, output, errors, seconds)


def forked(folder: Path, *overrides: str, trouble: str | None = None, number: int = 2) -> list[Ended]:
    """Processes with the environment that torchrun gives them, and nobody to look after them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none", **variables(folder, trouble),
    }  # fmt: skip
    with LOCK:
        processes = [
            start(*overrides, variables={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(number)
        ]
    ended = []
    for process in processes:
        output, errors = process.communicate()
        ended.append(Ended(process.returncode, output, errors, since_trouble(folder)))
    return ended


def of_each_rank(folder: Path, event: str) -> list[tuple[dict[str, Any], ...]]:
    """What the ranks have noted of one kind of event, side by side."""
    return list(zip(*(notes(folder, rank, event) for rank in RANKS), strict=True))
