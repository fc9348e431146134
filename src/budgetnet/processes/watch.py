"""Notices a process of the group that is stopped or stuck, for which the others would wait."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

EVERY = 2.0
"""Seconds between two signs of life, or less if the patience is short."""


class Watch:
    """Gives signs of life of this process to the others, and ends it if one of them gives none.

    A process that is stopped does not close its connections, so that the others wait for it. They do so within torch,
    where no Python runs but in other threads, as here.

    store: connects the processes (torch.distributed.TCPStore), as rank 0 keeps it. patience: the most seconds without a
    sign of life. end: called with a line that names the process that is late, on the first process that is not.
    """

    def __init__(self, store: Any, rank: int, count: int, patience: float, end: Callable[[str | None], None]) -> None:
        self.store, self.rank, self.patience, self.end = store, rank, patience, end
        self.others = [other for other in range(count) if other != rank]
        self.steps = 0
        """Training steps of this process so far."""
        self.last: dict[int, tuple[bytes, float]] = {}
        """The last sign of life of each other process, and when it was seen first."""
        self.answered = time.monotonic()
        """When the store answered last, which the first process keeps."""
        self.every = min(EVERY, patience / 5)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin in threads of their own."""
        self.last = {other: (b"", time.monotonic()) for other in self.others}
        for name, action in (("signs of life", self._exchange), ("watch", self._look)):
            threading.Thread(target=action, daemon=True, name=name).start()

    def stop(self) -> None:
        """End the watch, when this process needs the others no more."""
        self._stopped.set()

    def late(self, now: float) -> tuple[int, float] | None:
        """The process that has given no sign of life for the longest time, and for how many seconds, if too long."""
        since = {other: now - seen for other, (sign, seen) in self.last.items() if sign != b"done"}
        if self.rank != 0 and since.get(0) is not None:  # it keeps the store: without it no sign arrives
            since = {0: now - self.answered} if now - self.answered > self.patience else since
        if not since:
            return None
        rank = max(since, key=lambda other: since[other])
        return (rank, since[rank]) if since[rank] > self.patience else None

    def _exchange(self) -> None:
        number = 0
        while not self._stopped.wait(self.every):
            number += 1
            try:
                self._tell(f"{number} {self.steps}")
                for other in self.others:
                    if self.store.check([f"alive {other}"]):
                        sign = self.store.get(f"alive {other}")
                        if sign != self.last[other][0]:
                            self.last[other] = sign, time.monotonic()
                self.answered = time.monotonic()
            except RuntimeError:  # the process that keeps the store has ended: the others notice that by themselves
                return
        try:
            self._tell("done")
        except RuntimeError:
            return

    def _tell(self, sign: str) -> None:
        self.store.set(f"alive {self.rank}", sign)

    def _look(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self.every):
            now = time.monotonic()
            if now - before > self.every + self.patience / 2:  # this process itself has been stopped for a while
                self.answered = now
                self.last = {other: (sign, now) for other, (sign, _) in self.last.items()}
            before = now
            if (found := self.late(now)) is not None and not self._stopped.is_set():
                self._end(*found)

    def _end(self, late: int, seconds: float) -> None:
        speaks = min(rank for rank in (self.rank, *self.others) if rank != late)
        if self.rank != speaks:
            time.sleep(3)  # the one that speaks ends the others
            self.end(None)
        self.end(
            f"the process of rank {late} is late: it has given no sign of life for {seconds:.0f} s "
            f"(trainer.timeout={self.patience / 60:g} minutes), while rank {self.rank} is at step {self.steps}"
        )


def end_now(line: str | None, code: int = 1) -> None:
    """End this process from any thread, whatever its main thread waits for. line: an error message, or None."""
    if line is not None:
        with suppress(OSError):
            print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(code)
