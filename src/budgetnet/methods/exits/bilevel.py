"""One step of learning to weight samples: what predicts the weights learns from a pseudo-step of the network.

Algorithm 1 of Han et al., ECCV 2022. A batch is halved; the network trains on one half, with the weights predicted for
it, and those weights learn from the other; then the halves change places. Each half is

    meta_step(...) and a step of the predictor's optimizer, where the interval has come
    loss, _ = training_loss(...), its gradient, and a step of the network's optimizer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from budgetnet.errors import UsageError
from budgetnet.methods.exits.allocation import allocated_loss
from budgetnet.methods.exits.exchange import ALONE, Exchange
from budgetnet.methods.exits.meta import Tensors, applied, meta_gradient, step_of
from budgetnet.methods.exits.weights import Centring, centred, exit_losses, weighted_loss

Batch = tuple[Tensor, Tensor]
Losses = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""From logits by exit, (batch, classes), and the targets of a batch to the losses that are weighted, (batch, exits)."""


def halves(images: Tensor, labels: Tensor) -> tuple[Batch, Batch]:
    """The two parts of a batch; the first has one more where it is odd. Raises UsageError for a single image."""
    count = len(labels)
    if count < 2:
        raise UsageError(
            f"a batch of {count} image cannot be halved: expected 2 or more, such as dataset.batch_size=128"
        )
    middle = (count + 1) // 2
    return (images[:middle], labels[:middle]), (images[middle:], labels[middle:])


@dataclass(frozen=True)
class Weighting:
    """Weights of samples from their losses at the exits.

    predictor: losses (batch, exits) to u (batch, exits). centring, delta: as for `centred`; a mean over the batch is
    over that of all processes.
    """

    predictor: nn.Module
    centring: Centring
    delta: float
    exchange: Exchange = ALONE

    def __call__(self, losses: Tensor) -> Tensor:
        """w of these losses, (batch, exits); they are constants."""
        every = self.exchange.gather(losses.detach())
        first = self.exchange.rank * len(losses)
        return centred(self.predictor(every), self.centring, self.delta)[first : first + len(losses)]


def training_loss(losses: Tensor, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """Σ_k mean_i w_ik·l_ik, and w: the weights are constants. losses: l, (batch, exits)."""
    with torch.no_grad():
        weights = weighting(losses)
    return weighted_loss(losses, weights), weights


def meta_step(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    weighting: Weighting,
    train: Batch,
    meta: Batch,
    q: float,
    losses_of: Losses = exit_losses,
    way: Literal["jvp", "graph"] = "jvp",
) -> Tensor:
    """Leaves the predictor the gradient of the loss on `meta` after a pseudo-step on `train`; that loss, ().

    The pseudo-step is the one that the network's optimizer would take now. The targets of `meta` are its labels; its
    samples are allocated by the confidence of the network that the step leads to. The network, in train mode, and its
    optimizer stay as they are; its own gradients and running statistics too. It runs in the precision of the
    parameters, also under autocast: rounded to bfloat16, what is left of the gradient is noise.
    """

    def losses(params: Tensors) -> Tensor:
        return losses_of(applied(network, params, train[0]), train[1])

    def meta_loss(params: Tensors) -> Tensor:
        return allocated_loss(applied(network, params, meta[0]), meta[1], q, exchange)

    exchange = weighting.exchange
    params = {name: value for name, value in network.named_parameters() if value.requires_grad}
    average = None if exchange.processes == 1 else exchange.average
    predictor = dict(weighting.predictor.named_parameters())
    with torch.autocast(train[0].device.type, enabled=False):
        found = meta_gradient(losses, meta_loss, params, weighting, step_of(optimizer, network), way, average)
        gradients = torch.autograd.grad(found.weights, list(predictor.values()), found.gradient)
    for name, gradient in exchange.average(dict(zip(predictor, gradients, strict=True))).items():
        predictor[name].grad = gradient
    return exchange.average({"loss": found.loss})["loss"]
