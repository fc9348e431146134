"""Filters behind batch norms at another length: the function stays, gradients and momentum scale inversely."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet import LBI, ChannelGraph, backbones
from budgetnet.channels import rescale_filters


def trained(name: str, **options: object) -> nn.Module:
    """A traced backbone whose filters, biases and running statistics are no longer those of the start."""
    torch.manual_seed(0)
    net = backbones.build(name, **options)  # type: ignore[arg-type]
    ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.rand(len(module.weight), 1, 1, 1) * 3 + 0.5)
                if module.bias is not None:
                    module.bias.normal_()
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.eps = 1e-14
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["vgg11", "resnet20", "resnet18"])
def test_the_function_stays_and_every_filter_has_the_norm(name: str, training: bool) -> None:
    net = trained(name, seed_width=5).double().train(training)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(net)(images)
    changed = rescale_filters(net)
    assert torch.allclose(net(images), before, rtol=1e-6)
    convolutions = {path: module for path, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert set(changed) == set(convolutions)
    for module in convolutions.values():
        norms = module.weight.flatten(1).norm(dim=1)
        assert torch.allclose(norms, torch.full_like(norms, math.sqrt(2)))


def test_momentum_becomes_that_of_the_rescaled_gradients_and_z_that_of_the_rescaled_weights() -> None:
    net = trained("vgg11", seed_width=4).double()
    filters = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    optimizer = LBI([{"params": filters, "sparse": "filter"}], lr=0.1, nu=10.0, threshold=1e9)
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def gradients() -> list[Tensor]:
        net.zero_grad()
        F.cross_entropy(net(images), torch.arange(8)).backward()
        return [weight.grad.clone() for weight in filters if weight.grad is not None]

    old = [weight.detach().clone() for weight in filters]
    gradients()
    optimizer.step()
    with torch.no_grad():
        for weight, before in zip(filters, old, strict=True):
            weight.copy_(before)  # so that momentum is the gradient here
    rescale_filters(net, optimizer)
    for weight, before, now in zip(filters, old, gradients(), strict=True):
        momentum, z = optimizer.state[weight]["momentum_buffer"], optimizer.state[weight]["z"]
        assert torch.allclose(momentum, now, rtol=1e-6, atol=1e-9)
        assert torch.allclose(z / 0.01, weight, atol=1e-9)
        assert not torch.allclose(weight, before)


class Watched(nn.Module):
    """A convolution that a batch norm reads and something else reads too, and one of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.norm1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.empty, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        x = self.norm1(x) + x
        return self.fc(self.norm2(self.empty(x)).mean((2, 3)))


def test_what_something_else_reads_is_left_alone_and_a_filter_of_zeros_stays() -> None:
    net = Watched()
    nn.init.zeros_(net.empty.weight)
    ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    before = net.shared.weight.clone()
    assert rescale_filters(net) == ["empty"]
    assert torch.equal(net.shared.weight, before)
    assert not net.empty.weight.any() and net.empty.weight.isfinite().all()


class Twice(nn.Module):
    """A layer or a norm that is called more than once, beside a pair that is not."""

    def __init__(self, calls: Callable[[Twice, Tensor], Tensor]) -> None:
        super().__init__()
        self.calls = calls
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm1, self.norm2, self.fc = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.calls(self, F.relu(self.stem_norm(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    "calls",
    [
        lambda m, x: m.norm1(m.a(x)) + m.norm2(m.a(2 * x)),  # a head over several levels
        lambda m, x: m.norm1(m.a(x)) * m.norm1(m.b(x)),
        lambda m, x: m.norm1(m.a(x)) + m.a(2 * x),
        lambda m, x: m.norm1(m.a(x)) + m.norm1(x * 2),
    ],
)
def test_a_layer_or_a_norm_that_is_called_twice_is_left_alone(calls: Callable[[Twice, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, images = Twice(calls).double(), torch.randn(16, 3, 4, 4, dtype=torch.float64)
    ChannelGraph.trace(net, images)
    for _ in range(9):
        net(images)
    net.eval()
    before = net(images)
    assert rescale_filters(net) == ["stem"]
    torch.testing.assert_close(net(images), before, rtol=1e-3, atol=0)  # up to the epsilon of the norm


def test_without_batch_norm_nothing_changes() -> None:
    net = backbones.build("lenet5")
    ChannelGraph.trace(net, torch.empty(1, 1, 28, 28))
    assert rescale_filters(net) == []
