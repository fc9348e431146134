"""A `python` for shells: a small program at whose command a process that has imported everything becomes it."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from reserve import Command

_PROGRAM = """#!{python} -IS
import os, pickle, socket, sys
if sys.argv[1] != "-m":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
told = socket.socket(socket.AF_UNIX)
told.connect({address!r})
message = pickle.dumps((sys.argv[2:], dict(os.environ), os.getcwd()))
socket.send_fds(told, [message], [0, 1, 2])
told.shutdown(socket.SHUT_WR)
sys.exit(int(told.recv(8)))
"""


@dataclass(frozen=True)
class Shim:
    """Called in a forked process before anything else: from then on it serves `folder`/python, for what has `-m`."""

    folder: Path

    def __call__(self) -> None:
        from zygote import become

        self.folder.mkdir()
        program, address = self.folder / "python", str(self.folder / "socket")
        program.write_text(_PROGRAM.format(python=sys.executable, address=address))
        program.chmod(0o755)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen()
        parent = os.getpid()
        if os.fork():
            listening.close()
            return
        listening.settimeout(1)
        while os.getppid() == parent:
            try:
                told, _ = listening.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                become(_received(told))
            told.close()
        os._exit(0)


def _received(told: socket.socket) -> Command:
    """In a fork that waits for another: what that is to become. Ends this one with its exit code."""
    message, files, _, _ = socket.recv_fds(told, 1 << 20, 3)
    while more := told.recv(1 << 20):
        message += more
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        told.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
        os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    arguments, environment, folder = pickle.loads(message)
    return Command(arguments, environment, folder, own_session=False)
