"""Locks among processes: a file that one of them holds, and that the system lets go of however that process ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, patience: float | None = None, remove: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which is created; wait at most `patience` seconds for it; `remove` it afterwards.

    Raises TimeoutError if another process holds it for longer, and OSError if it cannot be created. On a file system
    without locks nothing is held.
    """
    deadline = None if patience is None else time.monotonic() + patience
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"{path} is held by another process") from error
                time.sleep(0.1)
            except OSError:
                break
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)
