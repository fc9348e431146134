"""Weights of convolutions, made from latent vectors: one for each width group of a network.

Li et al., "DHP: Differentiable Meta Pruning via HyperNetworks" (ECCV 2020), and the supplement of "The Heterogeneity
Hypothesis" (CVPR 2021). For input channel i and output channel j of a convolution:

    Z0 = z_in[i] · z_out[j] + B0[i, j]        a number
    Z1 = Z0 · W1[i, j] + B1[i, j]             (m,), m the embedding dimension
    weights = W2[i, j] · Z1 + B2[i, j]        (k·k,), the kernel

A channel goes from the network when its entry goes from its latent vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from budgetnet.channels import ChannelGraph
from budgetnet.channels.width_change import tensor_generator
from budgetnet.methods.hypernet.latents import Latents

Convolution = nn.Conv2d | nn.ConvTranspose2d


def generate(z_in: Tensor, z_out: Tensor, w1: Tensor, w2: Tensor, b0: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """(n, c, k, k): the weight of a convolution with a square kernel.

    z_in: (c,), z_out: (n,), w1: (c, n, m), w2: (c, n, k·k, m), b0: (c, n), b1: (c, n, m), b2: (c, n, k·k). Of a
    depthwise convolution c is 1; z_in may also be (c, n), where every filter reads input channels of its own.
    """
    entries = kernels(z_in, z_out, w1, w2, b0, b1, b2)
    side = math.isqrt(entries.shape[2])
    return entries.transpose(0, 1).reshape(*z_out.shape, len(z_in), side, side)


def kernels(z_in: Tensor, z_out: Tensor, w1: Tensor, w2: Tensor, b0: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """(c, n, entries): the kernel from every input to every output channel, flat; arguments as in `generate`."""
    z0 = z_in.reshape(len(z_in), -1) * z_out + b0
    z1 = z0[..., None] * w1 + b1
    return torch.matmul(w2, z1[..., None]).squeeze(-1) + b2


class Kernels(nn.Module):
    """What makes the weight of one convolution out of the latents at `inputs`, (c,) or (c, n), and `outputs`, (n,).

    Started so that the weights have variance 1 / (c · entries) when latents have variance 1 ("hyperfan-in"): W1 is
    uniform of variance 1, W2 uniform of variance 1 / (m · c · entries), the biases are 0. seed, name: of the draw.
    """

    def __init__(
        self, shape: Sequence[int], transposed: bool, inputs: Tensor, outputs: Tensor, m: int, seed: int, name: str
    ) -> None:
        super().__init__()
        c, n, entries = len(inputs), len(outputs), math.prod(shape[2:])
        self.shape, self.transposed = tuple(shape), transposed
        self.inputs: Tensor
        self.outputs: Tensor
        self.register_buffer("inputs", inputs, persistent=False)
        self.register_buffer("outputs", outputs, persistent=False)
        self.w1 = nn.Parameter(_uniform((c, n, m), 1.0, seed, f"{name}.w1"))
        self.w2 = nn.Parameter(_uniform((c, n, entries, m), 1 / (m * c * entries), seed, f"{name}.w2"))
        self.b0 = nn.Parameter(torch.zeros(c, n))
        self.b1 = nn.Parameter(torch.zeros(c, n, m))
        self.b2 = nn.Parameter(torch.zeros(c, n, entries))

    def forward(self, z: Tensor) -> Tensor:
        """The weight, of the convolution's shape. z: all latents of the network, (latents,)."""
        made = kernels(z[self.inputs], z[self.outputs], self.w1, self.w2, self.b0, self.b1, self.b2)
        return (made if self.transposed else made.transpose(0, 1)).reshape(self.shape)


def _uniform(shape: Sequence[int], variance: float, seed: int, name: str) -> Tensor:
    bound = math.sqrt(3 * variance)
    return torch.empty(shape).uniform_(-bound, bound, generator=tensor_generator(seed, name))


class Hypernetwork(nn.Module):
    """Makes the weights of all convolutions of a traced network; linear layers, norms and biases stay its own.

    The network runs on them by `torch.func.functional_call(network, hypernetwork(), images)`. embedding: m. seed: of
    all draws; latents start from N(0, 1). z: every latent in one vector, (latents,); `latents` says whose are where.
    """

    def __init__(self, graph: ChannelGraph, embedding: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.latents = Latents.of(graph)
        generator = tensor_generator(seed, "hypernetwork.z")
        self.z = nn.Parameter(torch.randn(self.latents.size, generator=generator))
        made = []
        for path, (inputs, outputs) in self.latents.axes.items():
            layer = graph.model.get_submodule(path)
            assert isinstance(layer, Convolution)
            transposed = isinstance(layer, nn.ConvTranspose2d)
            made.append(Kernels(layer.weight.shape, transposed, inputs, outputs, embedding, seed, path))
        self.layers = nn.ModuleList(made)

    def forward(self) -> dict[str, Tensor]:
        """The weights by name of the parameter, differentiable."""
        paths = self.latents.axes
        return {f"{path}.weight": layer(self.z) for path, layer in zip(paths, self.layers, strict=True)}

    def split(self, z: Tensor) -> dict[str, Tensor]:
        """(width,) of every group that may change, out of what has an entry for each latent: `self.z`, its gradient."""
        return {name: z[place] for name, place in self.latents.groups.items()}

    @torch.no_grad()
    def write(self, network: nn.Module) -> None:
        """Make the weights, as they are now, the network's own."""
        parameters: Mapping[str, Tensor] = dict(network.named_parameters())
        for name, weight in self().items():
            parameters[name].copy_(weight)


def generation_flops(graph: ChannelGraph, embedding: int = 8) -> int:
    """Multiply-accumulates of making all weights once: c · n · (1 + m + entries · m) for each convolution."""
    weights = [graph.model.get_parameter(f"{path}.weight") for path in Latents.of(graph).axes]
    return sum(w.shape[0] * w.shape[1] * (1 + embedding) + w.numel() * embedding for w in weights)
