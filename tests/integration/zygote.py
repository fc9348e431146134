"""Runs of the command line without its imports: each is a fork of one process that has imported everything.

`Forked([...])` behaves as `python -m src.run ...` does (test_runs.py compares their bits): it has its own process,
arguments, environment, output and exit code, and gets its own signals. The process that is forked is the standard
library's fork server: it starts with the first run and ends with the process that started it.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from reserve import Command, keep

REPOSITORY = Path(__file__).parents[2]
MARK = "MARK"
"""Environment variable by whose value processes are found: see `marked`."""
LONGEST = float(os.environ.get("LONGEST_RUN", "1200"))
"""Seconds for a run that ends by itself: many times what it takes. `make test` gives less than it gives a test."""
SHARED = "FORK_SERVER"
"""Environment variable that names the file with the address of a process for all workers of pytest-xdist."""
IMPORTED = (
    "lightning_first", "hydra.main", "hydra_plugins.hydra_optuna_sweeper._impl", "matplotlib.backends.backend_agg",
    "matplotlib.pyplot", "rich.table", "onnx", "networkx", "sympy.combinatorics", "torch.export._trace",
    "torch._inductor.ir", "torch._decomp.decompositions_for_jvp", "torch.fx.experimental.validator",
    "torch.onnx._internal.torchscript_exporter.symbolic_opset17", "budgetnet.channels.depth",
    "budgetnet.channels.gradmax", "budgetnet.channels.operations", "budgetnet.channels.tracing",
    "budgetnet.channels.verify", "budgetnet.command.build", "budgetnet.command.explain", "budgetnet.command.job",
    "budgetnet.command.experiment", "budgetnet.command.sweeps", "budgetnet.costs.latency", "budgetnet.backbones.cnf",
    "budgetnet.data.readers", "budgetnet.methods.depth.autogrow", "budgetnet.methods.edges.bsn",
    "budgetnet.methods.exits.l2w", "budgetnet.methods.growth.adenel", "budgetnet.methods.growth.replay",
    "budgetnet.methods.hypernet.dhp", "budgetnet.methods.pruning.grow_prune", "budgetnet.methods.pruning.prune",
    "budgetnet.methods.train", "budgetnet.reports.comparison", "budgetnet.reports.ending", "budgetnet.reports.report",
    "budgetnet.runs.export", "zygote", "killed", "prepared",
)  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver")
_LOCK = threading.RLock()
"""multiprocessing asks every child for its exit code when it starts one: two threads must not do so at once."""


def ensure_running() -> None:
    """Start the process that is forked, unless there is one, or use the one that another process shares."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    shared = Path(os.environ.get(SHARED, ""))
    if server._forkserver_address is None and shared.is_file() and sys.version_info < (3, 14):  # there, it has a key
        server._forkserver_address, server._forkserver_alive_fd = shared.read_text(), os.open(os.devnull, os.O_RDONLY)
        server.ensure_running = lambda: None
    paths = os.pathsep.join(str(REPOSITORY / path) for path in ("src", "tests", "tests/integration"))
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}):
        _CONTEXT.set_forkserver_preload(list(IMPORTED))
        server.ensure_running()


def share() -> None:
    """Start the process that is forked for the children of this one, too; it ends with this one."""
    ensure_running()
    Path(os.environ[SHARED]).write_text(forkserver._forkserver._forkserver_address)  # type: ignore[attr-defined]


class Forked:
    """A running command, with what the tests need of subprocess.Popen.

    before: called in the new process before the command starts, to break something there; picklable. others: how many
    processes that it starts by `python -m` are to be forks, too (see `reserve`). everywhere: called in each of them.
    """

    running: set[Forked] = set()

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        module: str = "src.run",
        before: Callable[[], object] | None = None,
        others: int = 0,
        everywhere: Callable[[], object] | None = None,
    ) -> None:
        self.args = [module, *arguments]
        self._mark = environment.get(MARK)
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [str(Path(self._folder.name, name)) for name in ("stdout", "stderr")]
        with _LOCK:
            ensure_running()
            options = (self.args, dict(environment), self._outputs, before, others, everywhere)
            self._process = _CONTEXT.Process(target=_behave_as, args=options, daemon=False)
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

    def communicate(self, timeout: float = LONGEST) -> tuple[str, str]:
        """Standard output and standard error, once it has ended.

        Raises AssertionError with both, and with what every thread was doing, for one that does not end: it is ended.
        """
        connection.wait([self._process.sentinel], timeout)
        if late := self.returncode is None:
            for pid in {self.pid, *(marked(self._mark) if self._mark else ())}:
                os.kill(pid, signal.SIGABRT)
            connection.wait([self._process.sentinel], 10)
        Forked.running.discard(self)
        stdout, stderr = (Path(path).read_text() if Path(path).exists() else "" for path in self._outputs)
        assert not late, f"{self.args} had not ended after {timeout:.0f} s:\n{stdout}\n{stderr}"
        return stdout, stderr


def _behave_as(
    arguments: list[str],
    environment: dict[str, str],
    outputs: list[str],
    before: Callable[[], object] | None,
    others: int,
    everywhere: Callable[[], object] | None,
) -> None:
    """In the fork: become `python -m arguments`. In one in reserve: become what it is told."""
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    faulthandler.enable()  # SIGABRT says what every thread was doing
    multiprocessing.set_start_method(None, force=True)  # its data workers start as in any other process
    mock.patch("hydra._internal.hydra.Hydra.get_mode", return_value=None).start()  # composes all to read hydra.mode
    if everywhere is not None:
        everywhere()
    here = Command(arguments, environment, str(REPOSITORY), own_session=False)
    command = keep(others)
    if command is None and before is not None:
        before()
    become(command or here)


def become(command: Command) -> NoReturn:
    """Be `python -m` from here on. The environment and the arguments are not those of /proc.

    $EXECUTABLE: what it takes for the interpreter, if that is to be another one.
    """
    os.environ.clear()
    os.environ.update(command.environment)
    os.chdir(command.folder)
    sys.path[:0] = [command.folder, *command.environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = command.arguments
    Path("/proc/self/comm").write_text(command.environment.get(MARK, "python")[:15])
    sys.executable = command.environment.get("EXECUTABLE", sys.executable)
    runpy.run_module(command.arguments[0], run_name="__main__", alter_sys=True)
    sys.exit()


def marked(mark: str) -> list[int]:
    """The running processes with this value, of up to 15 letters, of the variable MARK: forks and others."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            name, _, facts = (process / "stat").read_text().partition("(")[2].rpartition(") ")
            if facts.startswith("Z"):
                continue
            if name == mark or f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found
