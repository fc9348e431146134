"""Processes in reserve: a forked command starts others, as Lightning, torchrun and sweeps do, without their imports.

They are forks of it, made before it does anything: its children, like any that it starts, with everything imported.
"""

from __future__ import annotations

import inspect
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Command:
    """What a process is to become: `python -m arguments` with an environment, in a folder, maybe in its own session."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    own_session: bool


_waiting: list[tuple[int, socket.socket]] = []
"""Process ids, and where each is told what to become."""


def keep(number: int) -> Command | None:
    """Fork so many processes. None here; in each of them, once this one starts a command, that command.

    From then on `python -m` starts one of them while there is one. They end when this process does.
    """
    for _ in range(number):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for _, other in _waiting:
                other.close()
            return _receive(theirs)
        theirs.close()
        _waiting.append((pid, ours))
    if number:
        _replace()
    return None


def _receive(told: socket.socket) -> Command:
    """Wait for a command and take its standard input, output and error."""
    message, files, _, _ = socket.recv_fds(told, 1 << 20, 3)
    if not message:
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    command: Command = pickle.loads(message)
    if command.own_session:
        os.setsid()
    told.sendall(b"1")
    told.close()
    return command


def _replace() -> None:
    """Let `subprocess.Popen` take a process in reserve where it would start `python -m`."""
    original: Callable[..., None] = vars(subprocess.Popen)["_execute_child"]
    parameters = inspect.signature(original)

    @wraps(original)
    def execute(process: Any, *given: Any, **options: Any) -> None:
        values = parameters.bind(process, *given, **options).arguments
        program, *words = values["args"]
        words = words[words[:1] == ["-u"] :]
        if not _waiting or program != sys.executable or words[:1] != ["-m"]:
            return original(process, *given, **options)
        environment = values["env"] if values["env"] is not None else dict(os.environ)
        folder = str(Path.cwd()) if values["cwd"] is None else os.fspath(values["cwd"])
        command = Command(words[1:], dict(environment), folder, values["start_new_session"])
        files = [values[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        sys.stdout.flush()
        process.pid, told = _waiting.pop(0)
        sent = [number if file == -1 else file for number, file in enumerate(files)]
        socket.send_fds(told, [pickle.dumps(command)], sent)
        assert told.recv(1) == b"1"
        told.close()
        process._child_created = True
        process._close_pipe_fds(*(values[name] for name in PIPES))
        return None

    mock.patch.object(subprocess.Popen, "_execute_child", execute).start()


PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
