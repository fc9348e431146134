"""Standard output and error that may close, be full, be absent, or lack a character: no run ends by what it says."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Lasting:
    """A text stream that loses what cannot be written. After the first failure it writes into os.devnull."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Let the file descriptor be that of os.devnull, which takes what the buffer still holds."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)


def keep_output() -> None:
    """Make sys.stdout and sys.stderr streams that last, in this process. It is called before any file is opened.

    Where one is closed, the next file that is opened would take its number, and what libraries print would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if isinstance(stream, Lasting):
            continue
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace")
        setattr(sys, name, Lasting(stream))
