"""The proximal step of DHP (Li et al., ECCV 2020): latents shrink towards zero while their network learns."""

from __future__ import annotations

import torch
from torch import Tensor

from budgetnet.methods.hypernet.hypernetwork import Hypernetwork


def shrink(z: Tensor, step: float, floor: int, threshold: float) -> Tensor:
    """sign(z) · max(|z| − step, 0) where more than `floor` entries of z, (n,), have |z| ≥ threshold; else z as it is.

    step: the learning rate times the strength of the sparsity.
    """
    if int((z.abs() >= threshold).sum()) <= floor:
        return z
    return z.sign() * (z.abs() - step).clamp_min(0)


@torch.no_grad()
def shrink_latents(hypernetwork: Hypernetwork, step: float, floor: int, threshold: float) -> None:
    """`shrink` the latents of every set of coupled channels, in place; those of what nothing removes stay."""
    for place in hypernetwork.latents.coupled:
        hypernetwork.z[place] = shrink(hypernetwork.z[place], step, floor, threshold)
