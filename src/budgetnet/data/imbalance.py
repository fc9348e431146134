"""Long-tailed training sets: fewer images the higher a class is numbered (Cui et al., CVPR 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from budgetnet.errors import UsageError


def long_tailed(labels: Tensor, factor: float, num_classes: int | None = None) -> Tensor:
    """Ascending indices of a subset whose classes shrink exponentially: floor(N_c·μ^c) images of class c, from 0.

    labels: int64 (N,), with N_c images of class c. factor: what part of the last class is left, μ^(C - 1), in (0, 1];
    1 keeps everything. num_classes: C; None: the largest label plus one. Of each class the first images are kept.
    Raises UsageError for another factor, for masks, and where a class would have no image.
    """
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1:
        raise UsageError(
            f"dataset.imbalance={factor!r}: expected a number above 0, to 1, the part of the last class that is left"
        )
    if labels.dim() != 1 or labels.is_floating_point():
        raise UsageError(
            f"dataset.imbalance={factor}: expected a class for each image, not labels of shape "
            f"{tuple(labels.shape[1:])} and type {str(labels.dtype).removeprefix('torch.')}"
        )
    counts = torch.bincount(labels, minlength=num_classes or 0).tolist()
    kept = []
    for number, count in enumerate(counts):
        left = math.floor(count * factor ** (number / max(1, len(counts) - 1)) + 1e-9)  # 500 · 0.01 is 5, not 4.99...
        if not left:
            raise UsageError(
                f"dataset.imbalance={factor} leaves none of the {count} images of class {number}: expected a larger one"
            )
        kept.append((labels == number).nonzero().flatten()[:left])
    return torch.cat(kept).sort().values
