"""Locks between processes: of one machine by flock, of several by a file that names its owner and is renewed.

flock is released by the system however a process ends, but some file systems that several machines share have none
(NFS without lockd, some FUSE and Lustre mounts), or only one within each machine.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RENEWED = 10.0
"""Seconds between two renewals of an owner's file."""
ABANDONED = 60.0
"""Seconds without a renewal after which an owner on another machine is taken for ended."""
_SETTLED = 0.5
"""Seconds after which the last of several processes that take over an abandoned file has written it."""


@contextmanager
def exclusive(path: Path, patience: float | None = None, remove: bool = False) -> Iterator[None]:
    """A context that holds the lock file `path`, which is created if necessary, and the file of its owner beside it.

    patience: the most seconds to wait for the lock; None waits for ever. remove: whether to remove the file afterwards.
    Raises TimeoutError if another process holds the lock for longer, or one of another machine renews its file, and
    OSError if it cannot be created or is a link.
    """
    deadline = None if patience is None else time.monotonic() + patience
    with _locked(path, deadline) as flocked:
        owner = _Owner(path.with_name(path.name + ".owner"))
        owner.take(deadline, flocked)
        renewing = threading.Event()
        threading.Thread(target=owner.renew, args=(renewing,), daemon=True, name="lock").start()
        try:
            yield
        finally:
            renewing.set()
            owner.release()
            if remove:
                path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, deadline: float | None) -> Iterator[bool]:
    """A context that holds the lock by flock. Yields whether the file system has such locks."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError as error:
                _wait(path, deadline, error)
                continue
            except OSError:
                held = False
            if held and not _is_at(file, path):  # its last holder has removed it
                continue
            yield held
            return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _wait(path: Path, deadline: float | None, error: Exception | None = None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError(f"{path} is held by another process") from error
    time.sleep(0.1)


class _Owner:
    """The file that names the process that holds a lock: its machine, its number, and when it started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = f"{machine()} {os.getpid()} {started(os.getpid())}"

    def take(self, deadline: float | None, flocked: bool) -> None:
        """Write the file, after waiting for another owner. flocked: whether this machine's lock is held.

        Raises TimeoutError if another process keeps the file.
        """
        while not self._create():
            found = self._read()
            if found is None:
                continue
            host, pid, since = (found.split() + ["?"] * 3)[:3]
            if host == machine():
                ended = flocked or started(int(pid) if pid.isdecimal() else 0) != since
                if not ended:
                    _wait(self.path, deadline)
                    continue
            elif not self.path.is_symlink() and not self._is_abandoned(found, deadline):
                continue
            self._replace()
            if not (flocked and host == machine()):  # others may take it over at the same time
                time.sleep(_SETTLED)
            if self._read() == self.text:
                return

    def renew(self, over: threading.Event) -> None:
        """Touch the file until the lock is released. Ends the process if another one has taken it over."""
        while not over.wait(RENEWED):
            if (found := self._read()) != self.text and not over.is_set():
                with suppress(OSError):
                    print(f"error: {self.path} was taken over by {found}: this process was stopped", file=sys.stderr)
                os._exit(1)
            with suppress(OSError):
                os.utime(self.path, follow_symlinks=False)

    def release(self) -> None:
        if self._read() == self.text:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Write the file if there is none."""
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(self.text)
        return True

    def _replace(self) -> None:
        """Take over the file of a process that has ended; of several that do so the last one keeps it."""
        own = self.path.with_name(f"{self.path.name}.{machine()}.{os.getpid()}.tmp")
        own.unlink(missing_ok=True)
        file = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(self.text)
        os.replace(own, self.path)

    def _read(self) -> str | None:
        try:
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
                return file.read(1000)
        except OSError:
            return None if not self.path.is_symlink() else ""

    def _is_abandoned(self, text: str, deadline: float | None) -> bool:
        """Wait until an owner on another machine renews its file, or has not done so for a minute.

        Raises TimeoutError once it is renewed, unless one waits for ever.
        """
        seen, since = self._renewed(), time.monotonic()
        while self._read() == text:
            if self._renewed() != seen:
                if deadline is not None:
                    raise TimeoutError(f"{self.path} is renewed by {text}")
                return False
            if time.monotonic() - since > ABANDONED:
                return True
            time.sleep(min(0.5, ABANDONED / 5))
        return False

    def _renewed(self) -> int:
        try:
            return self.path.stat(follow_symlinks=False).st_mtime_ns
        except OSError:
            return 0


def machine() -> str:
    """The name of this machine, and of its present start, as other machines and containers do not have it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8]
    except OSError:
        boot = "unknown"
    return f"{socket.gethostname() or '?'}-{boot}"


def started(pid: int) -> str:
    """When a process of this machine started, by the system's clock; "" if there is none, or that is unknown."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if facts[0] in "ZX" else facts[19]
    except (OSError, IndexError):
        return ""
