"""How much a channel matters at initialisation: the gradient of its latent, and two controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels.width_change import tensor_generator
from budgetnet.methods.hypernet.hypernetwork import Hypernetwork

Scores = dict[str, Tensor]
"""(width,) by width group, 0 or more."""


def gradient(hypernetwork: Hypernetwork, gradients: Sequence[Tensor]) -> Scores:
    """|g| of every latent, g the mean of `gradients`, (latents,) each, of the loss alone, without weight decay."""
    return hypernetwork.split(torch.stack([g.detach() for g in gradients]).mean(0).abs())


def magnitude(hypernetwork: Hypernetwork) -> Scores:
    """|z| of every latent. At initialisation that is a random number: a control."""
    return hypernetwork.split(hypernetwork.z.detach().abs())


def random(hypernetwork: Hypernetwork, seed: int) -> Scores:
    """Uniform random numbers from (seed): a control."""
    generator = tensor_generator(seed, "hypernetwork.random")
    return hypernetwork.split(torch.rand(hypernetwork.latents.size, generator=generator, dtype=torch.float64))


def latent_gradients(
    network: nn.Module,
    hypernetwork: Hypernetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
) -> list[Tensor]:
    """(latents,) for each batch: the gradients that a step of training the network and its hypernetwork leaves.

    batches: (images, targets). optimizer: of the parameters of both. Only from the second batch on do gradients say
    which channels matter. With zero biases and a batch norm behind every convolution, a filter's scale changes nothing:
    at the first step the gradient of a latent that only makes filters is an effect of the norm's eps.
    """
    found = []
    for images, targets in batches:
        optimizer.zero_grad(set_to_none=True)
        output = torch.func.functional_call(network, hypernetwork(), (images,))
        loss(output, targets).backward()  # type: ignore[no-untyped-call]
        assert hypernetwork.z.grad is not None
        found.append(hypernetwork.z.grad.detach().clone())
        optimizer.step()
    return found
