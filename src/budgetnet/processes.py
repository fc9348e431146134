"""The processes of one run: they start together, decide together, and end together."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from budgetnet.errors import RunError, UsageError

Value = TypeVar("Value")

_GRACE = 3.0
"""Seconds that a process which lost the others waits, so that the one with the cause can say it first."""


def global_rank() -> int:
    """This process's place among all of the run, by what torchrun, Slurm or Lightning's launcher have told it."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ and (name != "SLURM_PROCID" or int(os.environ.get("SLURM_NTASKS", "1")) > 1):
            return int(os.environ[name])
    return 0


class Processes:
    """The processes of a trainer. With one device it is this one, and nothing here costs anything."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.strategy = trainer.strategy
        self.several = trainer.world_size > 1
        self.rank = trainer.global_rank

    def join(self) -> None:
        """Start the other processes, unless torchrun or Slurm have, and connect them all.

        Lightning would do so when training begins; here it comes first, so that what happens before, such as adopting
        the run directory, is decided once.
        """
        if not self.several:
            return
        if self.rank != 0 or "TORCHELASTIC_RUN_ID" in os.environ:
            _end_with_parent()
        if self.strategy.launcher is not None:
            self.strategy.launcher.launch(lambda: None)
        assert isinstance(self.strategy, DDPStrategy)
        self.strategy.setup_environment()

    def decide(self, question: Callable[[], Value]) -> Value:
        """What `question` answers on rank 0, on every process; so does what it raises."""
        if not self.several:
            return question()
        answer: Value | UsageError | RunError | None = None
        if self.rank == 0:
            try:
                answer = question()
            except (UsageError, RunError) as refusal:
                answer = refusal
        answer = self.strategy.broadcast(answer)
        if isinstance(answer, (UsageError, RunError)):
            raise answer
        return cast(Value, answer)

    def any(self, here: bool) -> bool:
        """Whether it is so on any process. All must ask."""
        if not self.several:
            return here
        return bool(self.sum(torch.tensor(float(here))).item())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if not self.several:
            return values
        moved = values.to(self.strategy.root_device, copy=True)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, by rank."""
        if not self.several:
            return [value]
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def fail(self, error: BaseException) -> BaseException:
        """End the others and return what this process is to raise.

        One that only lost the connection leaves it to the process with the cause to explain itself.
        """
        if not self.several:
            return error
        if _lost(error):
            error = self._who_ended(error)
        elif self.rank != 0:
            if isinstance(error, RunError):
                error = RunError(f"rank {self.rank}: {error}")
            time.sleep(_GRACE / 3)  # rank 0 may say the same, and ends this one then
        if self.strategy.launcher is not None:
            self.strategy.launcher.kill(signal.SIGKILL)
        return error

    def _who_ended(self, error: BaseException) -> RunError:
        children = getattr(self.strategy.launcher, "procs", [])
        deadline = time.monotonic() + _GRACE
        ended: list[tuple[int, int]] = []
        while time.monotonic() < deadline and not ended:
            time.sleep(0.05)
            ended = [(rank, child.returncode) for rank, child in enumerate(children, start=1) if child.poll()]
        if ended:
            rank, code = ended[0]
            what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return RunError(
                f"the process of rank {rank} {what}; the last checkpoint is kept, the same command continues"
            )
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return RunError(
            f"rank {self.rank} lost the connection to the others: one of them has ended ({reason}); the last "
            "checkpoint is kept, the same command continues"
        )


def _lost(error: BaseException) -> bool:
    """Whether it says no more than that another process is gone."""
    distributed = isinstance(error, torch.distributed.DistError)
    return distributed or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _end_with_parent() -> None:
    """End this process soon after the one that started it, however that ended: one in a collective would wait on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
