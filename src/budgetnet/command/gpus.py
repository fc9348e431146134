"""The GPUs of a machine, each of which one job uses at a time, whoever has started it."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Room for one job on a GPU. number: counts the places on the same GPU, from 0."""

    gpu: str
    number: int

    def occupy(self) -> int | None:
        """The open lock file of the place, or None if a job uses it.

        A job inherits the file, and with it the lock, which ends with the last process of the job.
        """
        folder = Path(tempfile.gettempdir(), f"budgetnet-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return os.open(os.devnull, os.O_RDONLY)  # somebody else's: there is no safe place for locks
        name = re.sub(r"[^\w-]", "_", f"gpu-{self.gpu}-{self.number}")
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError:  # without locks there are those of this sweep alone
            return file
        return file


def places(gpus: Sequence[str]) -> list[Place]:
    """A place for every id, of which one may occur several times."""
    seen: Counter[str] = Counter()
    found = []
    for gpu in gpus:
        found.append(Place(gpu, seen[gpu]))
        seen[gpu] += 1
    return found
