"""How this process was launched, and as which of how many, from the environment of torchrun, srun and Lightning."""

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
"""The environment variable with the id of the process that launched the others, with which they end."""

GRACE = 30.0
"""Seconds in which a job that is told to end can write a checkpoint, before it is killed."""

LEADER = "BUDGETNET_LEADER"
"""The environment variable with the id of the process of a sweep that has started this job, with which it ends."""

LAUNCH_VARIABLES = ("LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_STEP_")
"""Prefixes of the environment variables of a process that was launched as one of several."""


@dataclass(frozen=True)
class Launch:
    """How a process was launched.

    by: "torchrun", "srun", "lightning" (for a process above rank 0), or "user". processes: their number.
    rank: the rank among all processes of the run.
    """

    by: str
    processes: int
    rank: int


def launch() -> Launch:
    """How this process was launched. In a batch script of Slurm, outside srun, it is the user's single process."""
    known = os.environ
    if "RANK" in known and "WORLD_SIZE" in known:
        return Launch("torchrun", int(known["WORLD_SIZE"]), int(known["RANK"]))
    tasks = int(known.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and "SLURM_PROCID" in known:
        return Launch("srun", tasks, int(known["SLURM_PROCID"]))
    if rank := int(known.get("LOCAL_RANK", "0")):  # Lightning removes WORLD_SIZE at the end of training
        return Launch("lightning", int(known.get("WORLD_SIZE", rank + 1)), rank)
    return Launch("user", 1, 0)


def single_process_environment() -> dict[str, str]:
    """The environment for a new process, as if the user had launched it."""
    single = ("RANK", "WORLD_SIZE", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", PARENT, LEADER)
    return {
        name: value
        for name, value in os.environ.items()
        if name not in single and not name.startswith(LAUNCH_VARIABLES)
    }


def end_with_parent() -> None:
    """End this process soon after the one that launched it, for which it might wait for ever.

    It is called first of all, and does nothing in a process that the user has launched. A job of a sweep whose leader
    is gone ends as by SIGTERM, with a checkpoint, before its GPUs are given to another.
    """
    if launch().by == "user" and LEADER in os.environ:
        threading.Thread(target=_end_without_leader, args=(int(os.environ[LEADER]),), daemon=True).start()
    if launch().by == "user" or (launch().by == "srun" and PARENT not in os.environ):
        return
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _end_without_leader(leader: int) -> None:
    while os.getppid() == leader:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def requeue() -> bool:
    """Requeue this job under Slurm, unless it is ending because the user has cancelled it.

    Returns whether it was requeued.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, encoding="utf-8", errors="replace", timeout=20
        )
        state = re.search(r"JobState=(\w+)", shown.stdout)
        if state is not None and state[1] != "RUNNING":
            return False
        return subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
