"""Every operation is followed rightly or refused in one line: what a model may do between its layers."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet import ChannelGraph, CostModel, resize
from budgetnet.channels import GraphError


class Between(nn.Module):
    """convolution -> what is tested -> convolution -> logits; 5 channels at 5x5, so that no size tells them apart."""

    def __init__(
        self, between: Callable[[nn.Module, Tensor], Tensor], channels: int = 5, **modules: nn.Module | None
    ) -> None:
        super().__init__()
        self.between = between
        self.a, self.b, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(channels, 4, 1), nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(5, 1, 1))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        for name, module in modules.items():
            if module is not None:
                self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self, self.a(x))).mean((2, 3)))


class Gate(nn.Module):
    """Squeeze-excite as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 2), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.fc2(F.relu(self.fc1(y)))).view(b, c, 1, 1)
        return x * y.expand_as(x)


class OwnLayer(nn.Conv2d):
    """A subclass of a layer that computes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias)


def assign_space(m: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 0] = 0
    return x


FOLLOWED = {
    "number": Between(lambda m, x: (x + 1) * 2 / 3 - 0.5),
    "scalar parameter": Between(lambda m, x: x * m.scalar),
    "in place": Between(lambda m, x: x.mul_(2).relu_().add_(x)),
    "spatial slice": Between(lambda m, x: x[:, :, 1:, ::2]),
    "ellipsis": Between(lambda m, x: x[:, :, ..., 1:]),
    "spatial mask": Between(lambda m, x: x * torch.sigmoid(m.mask(x)), mask=nn.Conv2d(5, 1, 1)),
    "keyword cat": Between(lambda m, x: torch.cat(tensors=[x, m.c(x), x], dim=1), channels=16, c=nn.Conv2d(5, 6, 1)),
    "cat of cat": Between(
        lambda m, x: torch.cat([torch.cat([x, m.c(x)], 1), x], -3), channels=16, c=nn.Conv2d(5, 6, 1)
    ),
    "interpolate": Between(lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "upsample": Between(lambda m, x: m.up(x), up=nn.Upsample(scale_factor=2)),
    "spatial pad": Between(lambda m, x: F.pad(x, (1, 1, 2, 0))),
    "keyword mean": Between(lambda m, x: x + x.mean(dim=[2, 3], keepdim=True)),
    "added dimensions": Between(lambda m, x: x * x.mean((2, 3))[:, :, None, None]),
    "squeeze-excite": Between(lambda m, x: m.gate(x), gate=Gate()),
    "used twice": Between(lambda m, x: m.c(m.c(x)), c=nn.Conv2d(5, 5, 1)),
    "depthwise twice": Between(lambda m, x: m.c(x), channels=10, c=nn.Conv2d(5, 10, 3, groups=5)),
    "grouped": Between(lambda m, x: m.d(m.c(x)), channels=8, c=nn.Conv2d(5, 6, 1), d=nn.Conv2d(6, 8, 1, groups=2)),
}

FOLLOWED |= {
    "chunk": Between(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), channels=6, a=nn.Conv2d(3, 6, 1)),
    "sum of halves": Between(lambda m, x: sum(x.chunk(2, 1)), channels=3, a=nn.Conv2d(3, 6, 1)),
    "shuffle": Between(lambda m, x: F.channel_shuffle(x, 3), channels=6, a=nn.Conv2d(3, 6, 1)),
    "shuffle by hand": Between(
        lambda m, x: x.view(x.size(0), 2, x.size(1) // 2, 5, 5).transpose(1, 2).reshape(x.shape),
        channels=6,
        a=nn.Conv2d(3, 6, 1),
    ),
    "stack": Between(lambda m, x: torch.stack([x, m.c(x)]).sum(0), c=nn.Conv2d(5, 5, 1)),
    "channels last": Between(lambda m, x: m.c(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), c=nn.Linear(5, 5)),
    "pixel shuffle": Between(lambda m, x: F.pixel_shuffle(x, 2), channels=2, a=nn.Conv2d(3, 8, 1)),
    "pixel unshuffle": Between(lambda m, x: m.c(F.pixel_unshuffle(x, 5)), c=nn.Conv2d(125, 5, 1)),
    "channel padding": Between(lambda m, x: m.c(x) + F.pad(x, (0, 0, 0, 0, 0, 2)), channels=7, c=nn.Conv2d(5, 7, 1)),
    "cat and single": Between(
        lambda m, x: torch.cat([x, m.c(x)], 1) + m.d(x), channels=8, c=nn.Conv2d(5, 3, 1), d=nn.Conv2d(5, 8, 1)
    ),
    "grouped behind cat": Between(
        lambda m, x: m.d(torch.cat([x, m.c(x)], 1)), channels=4, c=nn.Conv2d(5, 5, 1), d=nn.Conv2d(10, 4, 1, groups=2)
    ),
    "repeat": Between(lambda m, x: x.repeat(1, 3, 1, 1), channels=15),
    "channel gain": Between(lambda m, x: x * m.gain),
    "functional": Between(lambda m, x: F.conv2d(x, m.kernel), channels=5, kernel=None),
    "item assignment": Between(assign_space),
    "training branch": Between(lambda m, x: x.relu() if m.training else x),
    "training head": Between(lambda m, x: m.c(x)[:, :, :5, :5] if m.training else x, c=nn.Conv2d(5, 5, 1)),
    "condition on a size": Between(lambda m, x: x[:, :, :4] if x.shape[-1] > 4 else x),
    "assertion": Between(lambda m, x: (torch._assert(x.ndim == 4, "4-d"), x)[1]),
    "loop over a shape": Between(lambda m, x: F.interpolate(x, size=[2 * int(n) for n in x.shape[2:]])),
    "PReLU": Between(lambda m, x: m.c(x), c=nn.PReLU(5)),
    "instance norm": Between(lambda m, x: m.c(x), c=nn.InstanceNorm2d(5, affine=True)),
    "transposed convolution": Between(lambda m, x: m.d(m.c(x)), c=nn.ConvTranspose2d(5, 6, 2, 2), d=nn.Conv2d(6, 5, 1)),
    "norm without statistics": Between(lambda m, x: m.c(x), c=nn.BatchNorm2d(5, track_running_stats=False)),
    "own layer": Between(lambda m, x: m.c(x), c=OwnLayer(5, 5, 1)),
    "cat along the batch": Between(lambda m, x: torch.cat([x, x]).chunk(2)[0]),
}
FOLLOWED["functional"].kernel = nn.Parameter(torch.randn(5, 5, 1, 1))


class KnowsItsWidth(nn.Module):
    """A module that keeps the number of its channels, and views and slices by it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.channels = nn.Conv2d(5, 10, 1), 5

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.view(y.shape[0], 2, self.channels, 5, 5).sum(1)


FOLLOWED["number of its own"] = Between(lambda m, x: m.c(x), c=KnowsItsWidth())

MIXED = {
    "mean over channels": Between(lambda m, x: x * x.mean(1, keepdim=True)),
    "sum of everything": Between(lambda m, x: x * x.sum()),
    "softmax": Between(lambda m, x: x.softmax(1)),
    "layer norm, channels last": Between(
        lambda m, x: m.c(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), c=nn.LayerNorm(5, elementwise_affine=False)
    ),
    "response norm": Between(lambda m, x: m.c(x), c=nn.LocalResponseNorm(3)),
}

FIXED = {
    "channel slice": (Between(lambda m, x: x[:, :5]), "operation 'getitem' .* holds a number of channels"),
    "channel permutation": (Between(lambda m, x: x[:, [4, 3, 2, 1, 0]]), "operation 'getitem' .* holds a number"),
    "one channel": (Between(lambda m, x: x[:, 0].unsqueeze(1), channels=1), "picks single channels"),
    "fixed reshape": (
        Between(lambda m, x: torch.reshape(x, shape=(-1, 5, 5, 5))),
        "operation 'reshape' .* written down",
    ),
    "constant": (Between(lambda m, x: x * torch.arange(5.0).view(1, 5, 1, 1)), "meets something that has no channels"),
    "attention": (
        Between(
            lambda m, x: m.c(*[x.flatten(2).transpose(1, 2)] * 3)[0].transpose(1, 2).reshape(-1, 5, 5, 5),
            c=nn.MultiheadAttention(5, 1, batch_first=True),
        ),
        "'multi_head_attention_forward' .* taken as a whole",
    ),
}

REFUSED = {
    "sorting": (
        Between(lambda m, x: x.sort(1).values),
        r"'sort' .* is not followed.*frozen=\('sort',\).*backbone.frozen=\[",
    ),
    "depends on the data": (Between(lambda m, x: x if x.sum() > 0 else -x), "depends on the data"),
    "does not fit": (Between(lambda m, x: x.flatten(0, 2)), "does not take inputs"),
}


def fvcore_flops(net: nn.Module) -> int:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return int(FlopCountAnalysis(copy.deepcopy(net).eval(), torch.zeros(1, 3, 5, 5)).total())


@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_followed_and_priced_also_after_growth(name: str) -> None:
    followed(copy.deepcopy(FOLLOWED[name]))


def followed(net: nn.Module) -> None:
    """The convolution in front of what is tested is free, proven and priced, also when it is wider."""
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    assert "a" in graph.widths
    assert set(graph.verify().values()) == {"function kept"}
    cost = CostModel(graph)
    wider = {group.name: group.width + 3 * group.blocks for group in graph.groups}
    priced = cost.costs(wider)
    assert cost.flops() == fvcore_flops(net)
    unequal(net)
    twin, images = copy.deepcopy(net).double().eval(), torch.randn(3, 3, 5, 5, dtype=torch.float64)
    before = twin(images)
    resize(twin, wider, init="net2wider")
    torch.testing.assert_close(twin(images), before)
    resize(net, wider)
    assert (priced["flops"], priced["params"]) == (fvcore_flops(net), sum(p.numel() for p in net.parameters()))


def unequal(net: nn.Module) -> None:
    """Give what is one number by default, such as a scale of ones, values that differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(0.1, 0.5, generator=generator))


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_channels_is_priced_and_checked_for_shapes(name: str) -> None:
    net = copy.deepcopy(MIXED[name])
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    assert graph.mixing == {"a"}
    assert graph.verify()["a"].startswith("shapes only: a norm across channels")
    assert CostModel(graph).flops() == fvcore_flops(net)


@pytest.mark.parametrize("name", FIXED)
def test_what_cannot_change_stays_and_the_graph_says_why(name: str) -> None:
    net, why = FIXED[name]
    graph = ChannelGraph.trace(copy.deepcopy(net), torch.empty(1, 3, 5, 5))
    assert graph.widths == {"b": 4} and graph.verify() == {"b": "function kept"}
    assert re.search(why, "; ".join(graph.fixed))
    if name != "attention":
        assert CostModel(graph).flops() == fvcore_flops(net)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name: str) -> None:
    net, message = REFUSED[name]
    with pytest.raises(GraphError, match=message) as error:
        ChannelGraph.trace(copy.deepcopy(net), torch.empty(1, 3, 5, 5))
    assert "\n" not in str(error.value)


def test_all_that_is_not_followed_is_listed_at_once() -> None:
    net = Between(lambda m, x: x.sort(1).values + m.c(x), c=nn.Sequential(nn.Conv2d(5, 5, 1), Median()))
    with pytest.raises(GraphError, match=r"'sort'.*'frexp' in module 'c.1' .*frozen=\('sort', 'c.1',\)"):
        ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5), frozen=("sort", "c.1"))
    assert graph.widths == {"b": 4}


class Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.frexp(x).mantissa


def test_padding_same_has_its_true_price_where_fvcore_does_not_look() -> None:
    net = Between(lambda m, x: m.c(x), c=nn.Conv2d(5, 5, 3, padding="same"))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    assert CostModel(graph).flops() == fvcore_flops(net) + 5 * 5 * 9 * 25


def test_a_slice_beyond_the_channels_is_caught_by_verify() -> None:
    graph = ChannelGraph.trace(Between(lambda m, x: x[:, :9]), torch.empty(1, 3, 5, 5))
    with pytest.raises(GraphError, match="WidthGroup\\('a'"):
        graph.verify()


def test_one_parameter_in_two_layers_is_refused() -> None:
    net = Between(lambda m, x: m.c(x), c=nn.Conv2d(5, 5, 1))
    net.c.weight = net.c2 = nn.Parameter(torch.zeros(5, 5, 1, 1))
    with pytest.raises(GraphError, match="have one parameter"):
        ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))


def test_what_a_frozen_module_costs_is_counted() -> None:
    net = Between(lambda m, x: m.c(x), c=nn.Sequential(nn.Conv2d(5, 7, 1), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1)))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5), frozen=("c",))
    assert list(graph.widths) == ["b"]
    assert CostModel(graph).flops({"b": 9}) == fvcore_flops(net) + 5 * (5 * 25 + 3)


def test_a_frozen_operation_keeps_what_it_reads() -> None:
    net = Between(lambda m, x: x.softmax(1))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5), frozen=("softmax",))
    assert list(graph.widths) == ["b"]


def test_a_model_that_returns_several_tensors_is_followed() -> None:
    class Several(Between):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            x = self.a(x)
            return {"logits": self.head(self.b(x).mean((2, 3))), "features": self.b(x)}

    graph = ChannelGraph.trace(Several(lambda m, x: x), torch.empty(1, 3, 5, 5))
    assert graph.widths == {"a": 5}
    assert graph.verify() == {"a": "function kept"}
