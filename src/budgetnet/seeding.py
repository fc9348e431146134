"""Random draws as functions of a key, so that all processes draw the same and a resumed run repeats them.

What others draw from the global generators (dropout, a user's layers) is seeded, kept and restored.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch


def keyed_seed(*key: object) -> int:
    """A seed, 0 to 2^56 - 1, that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7], "big")


def keyed_generator(*key: object) -> torch.Generator:
    """A random generator on the CPU whose numbers depend on `key` alone."""
    return torch.Generator().manual_seed(keyed_seed(*key))


def seed_global_draws(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all global generators of this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "cpu": torch.get_rng_state(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the states given by `random_state`."""
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
