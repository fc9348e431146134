from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from budgetnet.runs.locking import exclusive


def test_a_lock_is_held_against_other_processes_and_let_go_of_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        with exclusive(path):
            os.write(told, b"!")
            signal.pause()
    os.read(ready, 1)
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
