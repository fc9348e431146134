"""What tests of exits draw."""

from __future__ import annotations

import torch
from torch import Tensor


def random_confidence(samples: int, exits: int, levels: int | None = None) -> Tensor:
    """float64 (samples, exits); with few levels many of them are equal."""
    drawn = torch.rand(samples, exits, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)
    return drawn if levels is None else (drawn * levels).floor() / levels
