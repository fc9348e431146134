"""Runs the jobs of a sweep on this machine, a few at a time, each in a process with GPUs of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from budgetnet.command.gpus import Place, places
from budgetnet.command.job import score
from budgetnet.command.names import program, program_module, run_directory
from budgetnet.command.sweeps import Sweep
from budgetnet.errors import Interrupted, Preempted, UsageError
from budgetnet.processes.launch import GRACE, LEADER, requeue, single_process_environment
from budgetnet.runs.adoption import finished
from budgetnet.runs.directory import RunDirectory
from budgetnet.runs.files import append_to
from budgetnet.runs.locking import started
from budgetnet.runs.origin import changed_code
from budgetnet.runs.records import write_text


@dataclass(frozen=True)
class Job:
    """One run of a sweep. gpus: the number of GPUs that it needs. arguments: the arguments of `python -m src.run`."""

    number: int
    name: str
    config: Mapping[str, Any]
    directory: Path
    arguments: Sequence[str]
    gpus: int

    @classmethod
    def of(
        cls, number: int, config: Mapping[str, Any], overrides: Sequence[str], arguments: Sequence[str], gpus: int
    ) -> Job:
        """The job of a resolved configuration, on a machine with `gpus` GPUs. Raises UsageError if it needs more."""
        name = Sweep.current().job_name(overrides)
        needed = gpus_needed(config["trainer"], gpus)
        return cls(number, name, config, run_directory(config, overrides), arguments, needed)


def visible_gpus(given: Any = None) -> list[str]:
    """The ids of the GPUs for jobs: `launcher.gpus`, or else CUDA_VISIBLE_DEVICES, or else all that torch finds.

    An id is a number, a UUID or a MIG name. An id that occurs twice takes two jobs at the same time.
    Raises UsageError if `given` is not a list of ids.
    """
    if given is not None:
        if isinstance(given, (str, int)) or not all(isinstance(gpu, (str, int)) for gpu in given):
            raise UsageError(f"launcher.gpus={given}: expected a list of ids, such as [0,1]")
        return [str(gpu) for gpu in given]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [gpu.strip() for gpu in visible.split(",")]
        hidden = [place for place, gpu in enumerate(ids) if gpu in ("", "-1")]
        return ids[: hidden[0]] if hidden else ids
    import torch

    return [str(gpu) for gpu in range(torch.cuda.device_count())]


def gpus_needed(trainer: Mapping[str, Any], there: int) -> int:
    """The number of GPUs that a job needs: `trainer.devices`, all of them for "auto", or 0 to run on the CPU.

    there: the number of GPUs of the sweep. Raises UsageError for several nodes, a list of devices, and too many GPUs.
    """
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    if nodes != 1:
        raise UsageError(
            f"trainer.num_nodes={nodes}: hydra/launcher=local starts jobs on this machine alone; use "
            f"hydra/launcher=submitit_slurm hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node={devices}"
        )
    if there == 0 or trainer["accelerator"] not in ("auto", "gpu", "cuda"):
        return 0
    if devices in ("auto", -1, "-1"):
        return there
    if not str(devices).isdigit():
        raise UsageError(
            f"trainer.devices={devices}: a job of a sweep states how many devices it takes, such as 2; launcher.gpus "
            "says which there are"
        )
    if int(devices) > there:
        raise UsageError(f"trainer.devices={devices}: the sweep has {there} GPUs; see launcher.gpus")
    return int(devices)


def source(config: Mapping[str, Any]) -> Path | None:
    """The directory of the run from which a run of this configuration takes its widths or schedule, if any."""
    method = config.get("method", {})
    path = next((Path(method[key]) for key in ("widths_from", "schedule_from") if method.get(key)), None)
    return path.parent if path is not None and path.name == "summary.json" else path


def teacher(config: Mapping[str, Any]) -> Path | None:
    """The directory of the run that teaches a run of this configuration, if any."""
    run = (config.get("distill") or {}).get("teacher")
    return Path(run) if run else None


def run_jobs(jobs: Sequence[Job], gpus: Sequence[str], n_jobs: Any = None) -> list[float | None]:
    """Run the jobs, at most `n_jobs` at the same time, and return the `objective` of each, or None if it failed.

    A GPU is used by one job at a time. A job whose run is finished is skipped. The output of a job goes to its log.
    After SIGINT, SIGTERM, SIGHUP or SIGUSR1, the running jobs write a checkpoint and end, and this function raises
    Interrupted or Preempted.

    n_jobs: by default as many as there are GPUs if every job uses one, else 1.
    Raises UsageError for n_jobs below 1.
    """
    if n_jobs is None:
        n_jobs = len(gpus) if gpus and all(job.gpus for job in jobs) else 1
    if not isinstance(n_jobs, int) or n_jobs < 1:
        raise UsageError(f"launcher.n_jobs={n_jobs}: expected 1 or more, or null")
    if jobs and jobs[0].number == 0:
        print(f"at most {n_jobs} at a time; logs in {Sweep.current().folder}", flush=True)
    return _Jobs(jobs, gpus, n_jobs).run()


@dataclass
class _Process:
    """A running job, in a process group of its own."""

    job: Job
    gpus: list[Place]
    process: subprocess.Popen[bytes]
    log_start: int

    def kill(self) -> None:
        """Kill all processes of the job that still run."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class _Jobs:
    """The jobs of one batch, waiting and running."""

    def __init__(self, jobs: Sequence[Job], gpus: Sequence[str], n_jobs: int) -> None:
        self.sweep = Sweep.current()
        self.jobs, self.free, self.n_jobs = jobs, places(gpus), n_jobs
        self.waits_for_gpus = False
        self.waiting = list(jobs)
        self.running: list[_Process] = []
        self.values: dict[int, float | None] = {}
        self.noted = False
        """Whether it was said that code of skipped jobs has changed."""

    def run(self) -> list[float | None]:
        with _signals() as received:
            try:
                self._end_orphans(received)
                while self.waiting or self.running:
                    if received():
                        raise self._stopped(received()[0])
                    while (found := self._next()) is not None:
                        self._begin(*found)
                    for process in list(self.running):
                        if process.process.poll() is not None:
                            self._end(process)
                    time.sleep(0.05)
            finally:
                self._stop_all(received)
                if received() and received()[0] in (signal.SIGTERM, signal.SIGUSR1):
                    requeue()  # the jobs do not, since they do not know the Slurm job
        return [self.values[job.number] for job in self.jobs]

    def _end_orphans(self, received: Callable[[], list[signal.Signals]]) -> None:
        """Wait for the jobs of an earlier leader of this sweep that was killed, which end by themselves."""
        left = {path: process for path in self.sweep.folder.glob("*.pid") if (process := _running(path)) is not None}
        if left:
            print(f"waits for {len(left)} jobs that an earlier process of this sweep has left running", flush=True)
        deadline = time.monotonic() + GRACE
        while left and not received():
            for path, process in list(left.items()):
                if _running(path) is None:
                    del left[path]
                elif time.monotonic() > deadline:
                    with suppress(ProcessLookupError):
                        os.killpg(process, signal.SIGKILL)
            time.sleep(0.05)
        for path in self.sweep.folder.glob("*.pid"):
            if path not in left:
                path.unlink(missing_ok=True)

    def _reserve(self, count: int) -> dict[Place, int] | None:
        """So many free places with their locks, or None if jobs of others use them."""
        reserved: dict[Place, int] = {}
        for place in self.free:
            if len(reserved) == count:
                break
            if (lock := place.occupy()) is not None:
                reserved[place] = lock
        if len(reserved) == count:
            self.waits_for_gpus = False
            return reserved
        for lock in reserved.values():
            os.close(lock)
        if not self.waits_for_gpus:
            print("waits for GPUs that jobs of another sweep use", flush=True)
            self.waits_for_gpus = True
        return None

    def _next(self) -> tuple[Job, dict[Place, int]] | None:
        """The first job that can begin now, with the locks of its places on GPUs, or None.

        It must find enough GPUs, no other job may run in its directory, and the run from which it takes its widths and
        the one that teaches it must have ended.
        """
        if len(self.running) >= self.n_jobs:
            return None
        busy = {each.job.directory for each in self.running}
        unfinished = busy | {job.directory for job in self.waiting}
        for job in self.waiting:
            waits = not {source(job.config), teacher(job.config)}.isdisjoint(unfinished - {job.directory})
            if job.gpus > len(self.free) or job.directory in busy or waits:
                continue
            if finished(job.directory):
                return job, {}
            if (reserved := self._reserve(job.gpus)) is not None:
                return job, reserved
        return None

    def _begin(self, job: Job, reserved: Mapping[Place, int]) -> None:
        self.waiting.remove(job)
        if finished(job.directory):
            self._skip(job)
            return
        self.free = [place for place in self.free if place not in reserved]
        gpus = [place.gpu for place in reserved]
        command = [sys.executable, "-m", program_module(), *job.arguments]
        environment = {**single_process_environment(), LEADER: str(os.getpid())}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        with append_to(self.sweep.log(job.name)) as log:
            print("$", shlex.join(["python", *command[1:]]), file=log, flush=True)
            start = log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                pass_fds=list(reserved.values()),
            )  # fmt: skip
        for lock in reserved.values():
            os.close(lock)  # the job has it
        write_text(self._pid_file(job), f"{process.pid} {started(process.pid)}\n")
        self.running.append(_Process(job, list(reserved), process, start))
        how = "continues" if (job.directory / "last.ckpt").exists() else "starts"
        self._say(job, how, f"on GPU {','.join(gpus)}" if gpus else "")

    def _skip(self, job: Job) -> None:
        """Take the objective of a finished run, if it has the same configuration."""
        from budgetnet.command.configuration import checked
        from budgetnet.runs.adoption import check_same

        try:
            check_same(checked(job.config), job.directory)
        except UsageError as error:
            with append_to(self.sweep.log(job.name)) as log:
                print(f"error: {error}", file=log)
            self._fail(job, str(error))
        else:
            if not self.noted and (line := changed_code(job.directory)) is not None:
                print(f"note: {line}, and others of this sweep may be too: choose another run.experiment", flush=True)
                self.noted = True
            self._succeed(job, "skipped, done:")

    def _pid_file(self, job: Job) -> Path:
        return self.sweep.folder / f"{job.name}.pid"

    def _end(self, ended: _Process) -> None:
        ended.kill()
        self._pid_file(ended.job).unlink(missing_ok=True)
        self.running.remove(ended)
        self.free += ended.gpus
        code = ended.process.returncode
        if code == 0 and (ended.job.directory / "done.json").exists():
            self._succeed(ended.job, "done:")
        else:
            self._fail(ended.job, _why(self.sweep.log(ended.job.name), ended.log_start, code))

    def _succeed(self, job: Job, how: str) -> None:
        try:
            metric, value, split = score(job.directory)
            seconds = RunDirectory(job.directory).fact("seconds")
        except UsageError as error:
            self._fail(job, str(error))
            return
        self.values[job.number] = metric.gain(value)
        self._say(job, how, f"{split} {metric.title} {metric.text(value)}, {seconds:.0f} s")

    def _fail(self, job: Job, error: str) -> None:
        self.values[job.number] = None
        self.sweep.failed(job.name, error)
        self._say(job, "failed:", error)

    def _say(self, job: Job, *words: str) -> None:
        print(f"#{job.number + 1} {job.name}", *filter(None, words), flush=True)

    def _stopped(self, number: signal.Signals) -> BaseException:
        done = sum(value is not None for value in self.values.values())
        unfinished = len(self.waiting) + len(self.running)
        text = f"jobs done: {done}, not done: {unfinished}; continue with the same command: "
        text += shlex.join([*program(), *sys.argv[1:]])
        return Interrupted(text) if number == signal.SIGINT else Preempted(f"by {number.name}: {text}")

    def _stop_all(self, received: Callable[[], list[signal.Signals]]) -> None:
        """End the running jobs with a signal and time to write a checkpoint; a second signal kills them at once."""
        for each in self.running:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGINT if received()[:1] == [signal.SIGINT] else signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self.running and time.monotonic() < deadline and len(received()) < 2:
            for each in [each for each in self.running if each.process.poll() is not None]:
                each.kill()
                self.running.remove(each)
            time.sleep(0.05)
        for each in self.running:
            each.kill()
            each.process.wait()
        for path in self.sweep.folder.glob("*.pid"):
            if _running(path) is None:
                path.unlink(missing_ok=True)


def _running(path: Path) -> int | None:
    """The process that a file names, if it still runs: its number, and when it started."""
    try:
        number, start = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return int(number) if number.isdecimal() and started(int(number)) == start else None


@contextmanager
def _signals() -> Iterator[Callable[[], list[signal.Signals]]]:
    """Collect the signals that ask to stop, except those that this process ignores (nohup)."""
    received: list[signal.Signals] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in asked}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _why(log: Path, start: int, code: int) -> str:
    """The reason why a job failed, on one line: its last error message or the last line of its output."""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return lines[-1] if lines else f"it ended with exit code {code} and without output"
