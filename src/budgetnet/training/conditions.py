"""What the bits of a run depend on beside its configuration: threads, processes, device and version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def conditions(device: torch.device, processes: int) -> dict[str, Any]:
    """The conditions of this process, as they are in effect, whatever set them (an option, a variable, a cpuset)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": f"{device.type} {name}",
        "torch": str(torch.__version__),  # its own class is no plain value
    }


def changed(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """A warning for a run that is continued under other conditions than before; None if they are the same or unknown.

    >>> changed({"threads": 4}, {"threads": 1})
    'continued with threads=1 instead of 4: the result is no longer, bit for bit, that of an uninterrupted run'
    """
    known = {name: value for name, value in (before or {}).items() if name in now}
    differing = [f"{name}={now[name]} instead of {value}" for name, value in known.items() if value != now[name]]
    if not differing:
        return None
    return f"continued with {', '.join(differing)}: the result is no longer, bit for bit, that of an uninterrupted run"
