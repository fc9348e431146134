"""A second signal to end, which ends a process at once, whatever it waits for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_ASKING: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""The signals that ask a process to end, and its exit code then."""
_APART = 1.0
"""Seconds between two signals that are two requests: launchers send one to a process and to its group."""


@contextmanager
def second_signal_ends(before: Callable[[], None]) -> Iterator[None]:
    """A context in which a second SIGINT or SIGTERM, at least a second after the first, ends the process at once.

    The first is left to the handlers that are installed. They run in the main thread, and only when it comes back from
    what it waits for, such as another process that is stopped; the second is noticed by a thread. before: called before
    the end. Without effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    owner = os.getpid()
    os.register_at_fork(after_in_child=lambda: _forget(writing))

    def listen() -> None:
        first: float | None = None
        while number := os.read(reading, 1):
            code, now = _ASKING.get(number[0]), time.monotonic()
            if code is None or os.getpid() != owner:
                continue
            if first is None:
                first = now
            elif now - first >= _APART:
                with suppress(Exception):
                    before()
                with suppress(OSError):
                    print("stopped at once; the last checkpoint is kept, the same command continues", file=sys.stderr)
                os._exit(code)
        os.close(reading)

    threading.Thread(target=listen, daemon=True, name="second-signal").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writing)  # ends the thread


def _forget(writing: int) -> None:
    """In a forked process: let its signals not be taken for those of its parent."""
    with suppress(ValueError):
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, writing):
            signal.set_wakeup_fd(current)
