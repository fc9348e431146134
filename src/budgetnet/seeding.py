"""Random draws as functions of a key, so that all processes draw the same and a resumed run repeats them."""

from __future__ import annotations

import hashlib

import torch


def keyed_seed(*key: object) -> int:
    """A seed, 0 to 2^56 - 1, that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:7], "big")


def keyed_generator(*key: object) -> torch.Generator:
    """A random generator on the CPU whose numbers depend on `key` alone."""
    return torch.Generator().manual_seed(keyed_seed(*key))
