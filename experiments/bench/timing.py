"""Seconds on a device, and ratios of two things that are timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Action = Callable[[], object]


def seconds(action: Action, device: torch.device | None = None) -> float:
    """Wall seconds of `action`, until the device has done what it was asked."""
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else _nothing
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def _nothing() -> None: ...


def ratios(
    first: Action, second: Action, pairs: int, device: torch.device | None = None, warm_up: int = 1
) -> list[float]:
    """Seconds of `first` divided by those of `second`, pair by pair; which of the two goes first takes turns."""
    found = []
    for pair in range(-warm_up, pairs):
        actions = (first, second) if pair % 2 else (second, first)
        times = [seconds(action, device) for action in actions]
        ratio = times[0] / times[1]
        if pair >= 0:
            found.append(ratio if pair % 2 else 1 / ratio)
    return found
