"""Writing files of a run directory: in UTF-8 whatever the locale, and through no link that somebody has put there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def not_followed(path: str, flags: int) -> int:
    """An opener for `open` that does not follow a symbolic link. Raises OSError if the path is one."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def append_to(path: Path) -> IO[str]:
    """Open a text file at its end."""
    return open(path, "a", encoding="utf-8", opener=not_followed)


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[Any]]:
    """A context with a new binary file that takes the place of `path` at the end: readers see the old one or the new.

    temporary: its path until then.
    """
    temporary = temporary or path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "xb", opener=not_followed) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def folder_within(path: Path) -> Path:
    """Create a folder of a run directory. Raises OSError for a link to one elsewhere."""
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return path
