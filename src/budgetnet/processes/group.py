"""The group of processes of one run, which start together, take decisions together, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from budgetnet.errors import Preempted, RunError, UsageError
from budgetnet.internals import process_group_backend
from budgetnet.processes.launch import PARENT, launch
from budgetnet.processes.rendezvous import LOOPBACK, local_store, stay_on_this_machine
from budgetnet.processes.watch import Watch, end_now
from budgetnet.tasks.task import each_of

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.strategies import DDPStrategy

Value = TypeVar("Value")

_CONTINUES = "the last checkpoint is kept, the same command continues"
_AGREED = (130, 143)
"""Exit codes of processes that agreed to end, after a signal to one of them."""
_GRACE = 3.0
"""Seconds that a process without connection to the others waits, so that the failed process can report first."""


def in_rank_order(error: BaseException) -> BaseException:
    """The error for this process to raise; on ranks above 0 it is returned after a delay.

    If rank 0 has the same error, it has reported it by then, and the launcher ends this process.
    """
    rank = launch().rank
    if rank == 0:
        return error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_GRACE)
    return type(error)(f"rank {rank}: {error}") if isinstance(error, (RunError, UsageError)) else error


class Processes:
    """The group of processes of a trainer. With one device it is this process alone, and all methods are free.

    trainer: the trainer, or None for a single process. rank: the number of this process among `count`.
    Raises UsageError if several processes were launched for a trainer of one process.
    """

    def __init__(self, trainer: pl.Trainer | None = None) -> None:
        self.rank, self.count = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        self.several = self.count > 1
        self.children: list[subprocess.Popen[bytes]] = []
        """The processes that this one has launched, by rank from 1."""
        self.watch: Watch | None = None
        if trainer is None:
            return
        self.strategy = trainer.strategy
        others = launch()
        if others.by in ("torchrun", "srun") and others.processes > 1 and not self.several:
            raise UsageError(
                f"{others.by} has started {others.processes} processes for trainer.devices={trainer.num_devices}: give "
                "trainer=ddp and trainer.devices, their number on a machine"
            )

    def join(self, timeout: float = 30.0) -> None:
        """Launch the other processes, unless torchrun or Slurm have done so, and connect all of them.

        Lightning would do so only when training begins. Connecting earlier allows rank 0 to decide for all processes,
        for example about the run directory. timeout: minutes to wait for a process. Raises UsageError if the numbers of
        processes and devices differ.
        """
        if not self.several:
            return
        strategy, longest = cast("DDPStrategy", self.strategy), timedelta(minutes=timeout)
        os.environ.setdefault(PARENT, str(os.getpid()))
        try:
            if self.strategy.launcher is not None:
                self.strategy.launcher.launch(lambda: None)
                children = getattr(self.strategy.launcher, "procs", [])
                self.children = list(children)
                children.clear()  # Lightning would kill this process without a message when one of them fails
                _end_with_children(self.children)
        except ValueError as error:  # raised by cluster environments
            raise UsageError(f"trainer.devices: {' '.join(str(error).split())}") from error
        if strategy.num_nodes == 1:
            stay_on_this_machine()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if launch().by in ("user", "lightning") and strategy.num_nodes == 1:
            environment = strategy.cluster_environment
            assert environment is not None
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = LOOPBACK, str(environment.main_port)
            self._connect(strategy, local_store(environment.main_port, self.rank == 0, longest), longest)
        elif attempt != "0":  # torchrun has restarted all processes: with keys that differ from those in its store
            self._connect(strategy, PrefixStore(f"attempt {attempt}", _store(longest)), longest)
        strategy.setup_environment()
        self.watch = Watch(
            PrefixStore(f"watch {attempt}", _store(longest)), self.rank, self.count, 60 * timeout, self._end_all
        )
        self.watch.start()

    def _connect(self, strategy: DDPStrategy, store: Any, timeout: timedelta) -> None:
        """Connect through a store. Lightning makes its own only for processes that are not connected."""
        assert strategy.accelerator is not None
        strategy.accelerator.setup_device(strategy.root_device)
        backend = process_group_backend(strategy)
        torch.distributed.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.count, timeout=timeout
        )

    def _end_all(self, line: str | None) -> None:
        """End this process and those it has launched, from any thread."""
        _kill(self.children)
        end_now(None if line is None else f"{line}; {_CONTINUES}")

    def kill_children(self) -> None:
        """Kill the processes that this one has launched."""
        _kill(self.children)

    def part(self) -> None:
        """Stop to watch the others, when this process needs them no more."""
        if self.watch is not None:
            self.watch.stop()

    def step(self) -> None:
        """Count a training step, by which the others can tell where this process is."""
        if self.watch is not None:
            self.watch.steps += 1

    def decide(self, question: Callable[[], Value]) -> Value:
        """Call `question` on rank 0 and return its result on every process.

        If it raises, rank 0 raises the same error and the others exit with code 0.
        """
        if not self.several:
            return question()
        refusal, answer = None, None
        if self.rank == 0:
            try:
                answer = question()
            except Exception as error:  # any error must reach the others, which wait for the result
                refusal = error
        refused, answer = self.strategy.broadcast((refusal is not None, answer))
        if refusal is not None:
            raise refusal
        if refused:
            raise SystemExit(0)
        return cast(Value, answer)

    def any(self, here: bool) -> bool:
        """Whether `here` is true on any process. All processes must call."""
        if not self.several:
            return here
        return bool(self.sum(torch.tensor(float(here))).item())

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, on every process."""
        return self.strategy.broadcast(value) if self.several else value

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on the CPU."""
        if not self.several:
            return values
        moved = values.to(self.strategy.root_device, copy=True)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if not self.several:
            return [value]
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def synchronise(self, values: Iterable[Tensor]) -> None:
        """Overwrite the tensors of every process with those of rank 0, in place."""
        if self.several:
            for value in values:
                torch.distributed.broadcast(value, 0)

    def fail(self, error: BaseException, signalled: bool) -> BaseException:
        """End the other processes and return the error for this process to raise.

        signalled: whether this process has received a signal.
        The cause is reported once, by the process that failed. Rank 0 reports before the others, and a process that
        has only lost its connection last. Processes that end by agreement, or are ended by torchrun, report nothing.
        """
        if not self.several or isinstance(error, SystemExit):
            return error
        if lost(error):
            error = self._who_ended(error)
            if self.rank != 0 and signalled:
                return SystemExit(143)
        elif self.rank != 0:
            if isinstance(error, (Preempted, KeyboardInterrupt)):
                return SystemExit(143 if isinstance(error, Preempted) else 130)
            if isinstance(error, UsageError) and not torch.distributed.is_initialized():
                return SystemExit(2)  # every process has the same error, before they are connected
            error = in_rank_order(error)
        if not isinstance(error, Preempted):
            _kill(self.children)
        return error

    def _who_ended(self, error: BaseException) -> RunError:
        """An error that names the process that failed or, if that is not known soon, the lost connection."""
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if ended := _failed(self.children):
                return RunError(ended)
        reason = re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines() or [type(error).__name__]
        return RunError(
            f"rank {self.rank} lost the connection to the others ({reason[0].split('. ')[0]}): one of them has ended; "
            f"{_CONTINUES}"
        )


def _store(timeout: timedelta) -> TCPStore:
    """A connection of its own to the store of the processes."""
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, timeout=timeout)


def order_buckets(wrapped: DistributedDataParallel, shape: Sequence[int]) -> None:
    """Run a backward pass with zero gradients, which only fixes the order in which gradients are summed later.

    shape: (C, H, W) of an image. DistributedDataParallel sums gradients in buckets, which it fills again in the order
    of its first backward pass. With more than two processes the last bit of a sum depends on the buckets. A resumed run
    must sum as the uninterrupted one does, so that the first pass is always this one.
    """
    buffers = [(buffer, buffer.clone()) for buffer in wrapped.buffers()]
    weight = next(wrapped.parameters())
    images = torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device)
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        torch.stack([output.sum() for output in each_of(wrapped(images))]).sum().mul(0).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    wrapped.zero_grad(set_to_none=True)


def lost(error: BaseException) -> bool:
    """Whether the error only says that the connection to another process is lost."""
    distributed = isinstance(error, torch.distributed.DistError)
    return distributed or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _failed(children: list[subprocess.Popen[bytes]]) -> str | None:
    """How the first failed process ended, as a message for the user; None if none has failed."""
    for rank, child in enumerate(children, start=1):
        if (code := child.poll()) and code not in _AGREED:
            what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"the process of rank {rank} {what}; {_CONTINUES}"
    return None


def _kill(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()


def _end_with_children(children: list[subprocess.Popen[bytes]]) -> None:
    """End this process a while after a child has failed, which it cannot notice while it waits for the children."""

    def watch() -> None:
        while any(child.poll() is None for child in children) and not _failed(children):
            time.sleep(0.5)
        if ended := _failed(children):
            time.sleep(2 * _GRACE)
            print(f"error: {ended}", file=sys.stderr, flush=True)
            _kill(children)
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-children").start()
