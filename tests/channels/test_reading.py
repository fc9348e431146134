"""What layers read with: weights of their own, computed ones, and what only scales, shifts or masks either."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_operations import Between, followed
from torch import Tensor, nn
from torch.nn.utils import prune

from budgetnet import ChannelGraph, resize

IMAGE = torch.empty(1, 3, 5, 5)


class Held(nn.Module):
    """A parameter with the channels of `Between` along its second dimension."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(shape))


def with_positions(m: nn.Module, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2) + m.c.values
    return tokens.transpose(1, 2).unflatten(-1, (5, 5))


class Masked(nn.Linear):
    """What pruning leaves: a weight times zeros and ones."""

    def __init__(self) -> None:
        super().__init__(5, 5)
        self.register_buffer("mask", (torch.arange(25) % 3 > 0).float().reshape(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight, self.bias)


class Adapted(nn.Linear):
    """A weight and what adapts it, of low rank."""

    def __init__(self) -> None:
        super().__init__(5, 5)
        self.up, self.down = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * (self.up @ self.down), self.bias)


class Transposed(nn.Module):
    """A transposed convolution whose weight, (inputs, outputs, ...), is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, 2 * self.weight)


class Equalised(nn.Conv2d):
    """A convolution whose weight is scaled by a constant that is no buffer."""

    def __init__(self) -> None:
        super().__init__(5, 5, 1)
        self.factor = torch.sqrt(torch.tensor(0.4))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.factor, self.bias)


class Modulated(nn.Conv2d):
    """A convolution whose weight depends on the images."""

    def __init__(self) -> None:
        super().__init__(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * torch.sigmoid(x.mean((0, 2, 3))).view(1, -1, 1, 1), self.bias)


def unfolded(m: nn.Module, x: Tensor) -> Tensor:
    patches = F.unfold(x, 3, padding=1).transpose(1, 2)
    return F.linear(patches, m.c.weight.flatten(1), m.c.bias).transpose(1, 2).unflatten(2, (5, 5))


def halved(m: nn.Module, x: Tensor) -> Tensor:
    first, second = m.c.weight.split([x.shape[1], x.shape[1]], 1)
    return F.conv2d(x, first) + F.conv2d(2 * x, second)


def channels_last(m: nn.Module, x: Tensor) -> Tensor:
    """A layer of the last dimension."""
    y: Tensor = m.c(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return y


READ = {
    "a scale of four dimensions": Between(lambda m, x: x * m.c.values, c=Held(1, 5, 1, 1)),
    "a table of positions": Between(with_positions, c=Held(25, 5)),
    "an embedding": Between(lambda m, x: x + m.c(torch.arange(25)).T.unflatten(1, (5, 5)), c=nn.Embedding(25, 5)),
    "a masked weight": Between(channels_last, c=Masked()),
    "a weight that is adapted": Between(channels_last, c=Adapted()),
    "a computed weight that reads its first": Between(lambda m, x: m.c(x), c=Transposed()),
    "a residual layer that is adapted": Between(lambda m, x: x + channels_last(m, x), c=Adapted()),
    "a weight of equalised rate": Between(lambda m, x: m.c(x), c=Equalised()),
    "a weight that depends on images": Between(lambda m, x: m.c(x), c=Modulated()),
    "a weight of unfolded patches": Between(unfolded, c=nn.Conv2d(5, 5, 3)),
    "a weight in two halves": Between(halved, c=nn.Conv2d(10, 5, 1)),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_followed_and_its_new_channels_keep_the_function(name: str) -> None:
    followed(copy.deepcopy(READ[name]))


@pytest.mark.parametrize("name", [name for name in READ if name.startswith("a ")])
def test_new_channels_that_nothing_reads_yet_will_be_read(name: str) -> None:
    net = copy.deepcopy(READ[name])
    graph = ChannelGraph.trace(net, IMAGE)
    resize(net, {"a": 8}, init="zero_out")
    net(torch.randn(3, 3, 5, 5)).square().sum().backward()
    silent = [weight for name, weight in net.named_parameters() if name in graph.reads and (weight == 0).any()]
    assert silent and all(weight.grad[weight == 0].any() for weight in silent)


@pytest.mark.parametrize("init", ["zero_out", "net2wider"])
@pytest.mark.parametrize(
    "product",
    [
        lambda m, x: (x.movedim(1, -1) @ m.c.weight.t() + m.c.bias).movedim(-1, 1),
        lambda m, x: (x.movedim(1, -1) @ (2 * m.c.weight)).movedim(-1, 1),
        lambda m, x: ((2 * m.c.weight) @ x.flatten(2)).unflatten(-1, (5, 5)),
        lambda m, x: torch.einsum("bchw,oc->bohw", x, 2 * m.c.weight),
    ],
)
def test_a_product_with_a_computed_weight_keeps_the_function(
    product: Callable[[nn.Module, Tensor], Tensor], init: str
) -> None:
    net = Between(product, c=nn.Linear(5, 5)).double().eval()
    ChannelGraph.trace(net, IMAGE)
    images = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    before = net(images)
    resize(net, {"a": 8}, init=init)
    torch.testing.assert_close(net(images), before)


def test_new_channels_pass_a_mask_of_torchs_pruning() -> None:
    net = Between(lambda m, x: m.c(x), c=prune.random_unstructured(nn.Conv2d(5, 5, 1), "weight", 0.5))
    graph = ChannelGraph.trace(net, IMAGE)
    resize(net, dict.fromkeys(graph.widths, 8))
    assert net.c.weight_mask[5:].eq(1).all() and net.c.weight_mask[:, 5:].eq(1).all()
