"""Who started this process, and as which of how many, by what torchrun, srun and Lightning's launcher tell it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

PARENT = "BUDGETNET_PARENT"
"""The environment variable by which a process that was started for others knows whom to end with."""

LAUNCH_VARIABLES = ("LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_STEP_")
"""Beginnings of variables that say of a process that it is one of several."""


@dataclass(frozen=True)
class Launch:
    """by: "torchrun", "srun", "lightning" (a process above the first), or "user". rank: among all of the run."""

    by: str
    processes: int
    rank: int


def launch() -> Launch:
    """How this process was started. In a batch script of Slurm, outside srun, it is the user's only one."""
    known = os.environ
    if "RANK" in known and "WORLD_SIZE" in known:
        return Launch("torchrun", int(known["WORLD_SIZE"]), int(known["RANK"]))
    tasks = int(known.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and "SLURM_PROCID" in known:
        return Launch("srun", tasks, int(known["SLURM_PROCID"]))
    if rank := int(known.get("LOCAL_RANK", "0")):  # Lightning takes WORLD_SIZE away in the end
        return Launch("lightning", int(known.get("WORLD_SIZE", rank + 1)), rank)
    return Launch("user", 1, 0)


def single_process_environment() -> dict[str, str]:
    """The environment for a process that starts anew, as if the user had started it."""
    single = ("RANK", "WORLD_SIZE", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", PARENT)
    return {
        name: value
        for name, value in os.environ.items()
        if name not in single and not name.startswith(LAUNCH_VARIABLES)
    }


def end_with_parent() -> None:
    """End this process soon after the one that started it for a run, however that ended: it might wait for it for ever.

    Called first of all. Does nothing in a process that the user has started.
    """
    if launch().by == "user" or (launch().by == "srun" and PARENT not in os.environ):
        return
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def requeue() -> bool:
    """Under Slurm, ask for this job to be run again; not if it is ending, as one that the user cancels is."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=20)
        state = re.search(r"JobState=(\w+)", shown.stdout)
        if state is not None and state[1] != "RUNNING":
            return False
        return subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
