"""Where the processes of a run meet: on one machine, on its loopback interface alone."""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOPBACK = "127.0.0.1"
_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


def stay_on_this_machine() -> None:
    """Let gloo and NCCL connect processes through loopback, unless the user has named an interface."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, _INTERFACE)


def local_store(port: int, first: bool, timeout: timedelta) -> TCPStore:
    """The store of processes on one machine, which nobody outside it reaches; torch's own listens on all interfaces.

    first: whether this process, of rank 0, keeps the store for the others.
    """
    if not first:
        return TCPStore(LOOPBACK, port, None, False, timeout=timeout)
    listening = socket.create_server((LOOPBACK, port))
    return TCPStore(
        LOOPBACK, port, None, True, timeout=timeout, wait_for_workers=False, master_listen_fd=listening.detach()
    )
