"""Re-estimation of batch-norm statistics after edges have been removed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from budgetnet.internals import AnyBatchNorm


@torch.no_grad()
def reestimate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics to their plain means over `batches`, each (images, channels, height, width).

    All batches must have the same size. The weights and the training mode do not change.
    """
    norms = [module for module in net.modules() if isinstance(module, AnyBatchNorm) and module.track_running_stats]
    momenta, training = [norm.momentum for norm in norms], net.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    net.train()
    for images in batches:
        net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)
