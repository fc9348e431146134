"""File locks between processes, which the system releases however the process ends that holds one."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: Path, patience: float | None = None, remove: bool = False) -> Iterator[None]:
    """A context that holds the lock file `path`, which is created if necessary.

    patience: the most seconds to wait for the lock; None waits for ever. remove: whether to remove the file afterwards.
    Raises TimeoutError if another process holds the lock for longer, and OSError if it cannot be created. On a file
    system without locks nothing is held.
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
