from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from budgetnet.runs import locking
from budgetnet.runs.locking import exclusive


def process_that_holds(path: Path) -> int:
    """The id of a process that has the lock until it is killed."""
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        with exclusive(path):
            os.write(told, b"!")
            signal.pause()
    os.read(ready, 1)
    return holder


def test_a_lock_is_held_against_other_processes_and_let_go_of_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = process_that_holds(path)
    with pytest.raises(TimeoutError, match="held by another process"), exclusive(path, patience=0.2):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with exclusive(path, patience=0.2):
        assert path.exists()


def test_a_lock_that_serves_once_leaves_no_file(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", remove=True):
        pass
    assert not list(tmp_path.iterdir())


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_where_there_is_no_flock_a_file_names_the_owner_and_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking.fcntl, "flock", no_flock)
    path = tmp_path / "lock"
    holder = process_that_holds(path)
    assert (tmp_path / "lock.owner").read_text().split()[:2] == [locking.machine(), str(holder)]
    with pytest.raises(TimeoutError, match="held by another process"), exclusive(path, patience=0.2):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    monkeypatch.setattr(locking, "_SETTLED", 0.0)
    with exclusive(path, patience=0.2):  # the owner of the same machine has ended
        assert (tmp_path / "lock.owner").read_text().split()[1] == str(os.getpid())
    assert not (tmp_path / "lock.owner").exists()


@pytest.mark.parametrize("flock", [True, False])
def test_an_owner_on_another_machine_is_waited_for_as_long_as_it_renews_its_file(
    flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flock:
        monkeypatch.setattr(locking.fcntl, "flock", no_flock)
    monkeypatch.setattr(locking, "ABANDONED", 0.3)
    monkeypatch.setattr(locking, "_SETTLED", 0.0)
    owner = tmp_path / "lock.owner"
    owner.write_text("elsewhere-1 12 345")
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.02):
            os.utime(owner)

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(TimeoutError, match="renewed by elsewhere-1 12 345"), exclusive(tmp_path / "lock", patience=1):
        pass
    over.set()
    renewing.join()
    with exclusive(tmp_path / "lock", patience=1):  # it renews it no longer
        assert owner.read_text().startswith(locking.machine())


def test_a_lock_that_is_removed_while_others_wait_lets_in_one_at_a_time(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", [], []

    def enter() -> None:
        with exclusive(path, remove=True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    workers = [threading.Thread(target=enter) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == [1] * 6 and not list(tmp_path.iterdir())


def test_a_lock_is_no_way_to_another_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), exclusive(tmp_path / "lock", patience=0.2):
        pass
    (tmp_path / "other.owner").symlink_to(victim)
    with exclusive(tmp_path / "other", patience=0.2):
        pass
    assert victim.read_text() == "precious"
