"""Runs of the command line without its imports: each is a fork of one process that has imported everything.

`Forked([...])` behaves as `python -m src.run ...` does (test_runs.py compares their bits): it has its own process,
arguments, environment, output and exit code, and gets its own signals. The process that is forked is the standard
library's fork server: it starts with the first run and ends with the process that started it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).parents[2]
IMPORTED = (
    "torch", "pytorch_lightning", "hydra.main", "sklearn.datasets", "matplotlib.pyplot", "rich.table", "onnx",
    "networkx", "sympy.combinatorics", "torch.export._trace", "torch._inductor.ir",
    "torch.onnx._internal.torchscript_exporter.symbolic_opset17", "budgetnet.channels.depth",
    "budgetnet.channels.gradmax", "budgetnet.channels.operations", "budgetnet.channels.tracing",
    "budgetnet.channels.verify", "budgetnet.command.build", "budgetnet.command.explain", "budgetnet.command.job",
    "budgetnet.command.experiment", "budgetnet.command.sweeps", "budgetnet.costs.latency", "budgetnet.backbones.cnf",
    "budgetnet.data.readers", "budgetnet.methods.depth.autogrow", "budgetnet.methods.edges.bsn",
    "budgetnet.methods.growth.adenel", "budgetnet.methods.growth.replay", "budgetnet.methods.pruning.grow_prune",
    "budgetnet.methods.pruning.prune", "budgetnet.methods.train", "budgetnet.reports.comparison",
    "budgetnet.reports.ending", "budgetnet.reports.report", "budgetnet.runs.export",
)  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver")
_LOCK = threading.RLock()
"""multiprocessing asks every child for its exit code when it starts one: two threads must not do so at once."""


class Forked:
    """A running command, with what the tests need of subprocess.Popen.

    before: called in the new process before the command starts, to break something there; picklable.
    """

    running: set[Forked] = set()

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        module: str = "src.run",
        before: Callable[[], object] | None = None,
    ) -> None:
        self.args = [module, *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [str(Path(self._folder.name, name)) for name in ("stdout", "stderr")]
        with _LOCK:
            with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}):
                _CONTEXT.set_forkserver_preload(list(IMPORTED))
                forkserver.ensure_running()
            self._process = _CONTEXT.Process(
                target=_behave_as, args=(self.args, dict(environment), self._outputs, before), daemon=False
            )
            self._process.start()
        Forked.running.add(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        with _LOCK:
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.communicate()

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Standard output and standard error, once it has ended. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        Forked.running.discard(self)
        stdout, stderr = (Path(path).read_text() if Path(path).exists() else "" for path in self._outputs)
        return stdout, stderr


def _behave_as(
    arguments: list[str], environment: dict[str, str], outputs: list[str], before: Callable[[], object] | None
) -> None:
    """In the fork: become `python -m arguments`."""
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    multiprocessing.set_start_method(None, force=True)  # its data workers start as in any other process
    sys.argv = arguments
    mock.patch("hydra._internal.hydra.Hydra.get_mode", return_value=None).start()  # composes all to read hydra.mode
    if before is not None:
        before()
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
