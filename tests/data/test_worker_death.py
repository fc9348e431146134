"""Decoding processes die by themselves, or are left alone: the run ends, and none of them stays."""

from __future__ import annotations

import collections
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from budgetnet.data import FolderLoader
from budgetnet.data.class_folders import scan
from budgetnet.data.folder import IMAGENET_MEAN, IMAGENET_STD, worker_death
from budgetnet.errors import RunError

ENDLESS = """
import multiprocessing, sys
from budgetnet.data import FolderLoader
from budgetnet.data.class_folders import scan
loader = FolderLoader(scan(sys.argv[1], 200), 2, mean=[0] * 3, std=[1] * 3, workers=2)
for epoch in range(1000):
    for batch in loader:
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs that take some milliseconds each."""
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    (tmp_path / "class").mkdir()
    Image.fromarray(pixels).save(tmp_path / "class" / "0.jpg")
    for number in range(1, 3000):
        os.link(tmp_path / "class" / "0.jpg", tmp_path / "class" / f"{number}.jpg")
    return tmp_path


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_worker_that_is_killed_ends_the_epoch_with_its_cause_and_leaves_none_behind(folder: Path) -> None:
    loader = FolderLoader(scan(folder, 200), 4, mean=IMAGENET_MEAN, std=IMAGENET_STD, workers=2)
    killed: list[int] = []

    def kill_one() -> None:
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        killed.extend(sorted(process.pid or 0 for process in multiprocessing.active_children()))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_one, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(RunError) as error:
        collections.deque(loader, maxlen=0)  # nothing else runs here that the death of a worker could interrupt
    assert time.monotonic() - begin < 300
    for part in (str(killed[0]), "dataset.workers", "memory"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    del error
    gc.collect()
    assert gone(killed, seconds=300)


def test_torchs_own_words_for_a_dead_worker_are_translated_and_nothing_else_is() -> None:
    killed = RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
    assert str(worker_death(killed)).startswith("DataLoader worker (pid 17) is killed by signal: Killed: most likely")
    gone = RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly")
    assert "17, 18" in str(worker_death(gone))
    assert worker_death(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert worker_death(ValueError("DataLoader worker (pid 17)")) is None
    assert worker_death(RunError("DataLoader worker (pid 17) is killed, as was said already")) is None


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_when_the_main_process_is_killed(folder: Path) -> None:
    main = subprocess.Popen([sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    workers = [int(pid) for pid in main.stdout.readline().split()]
    main.kill()
    main.wait()
    main.stdout.close()
    assert len(workers) == 2
    assert gone(workers, seconds=300)
