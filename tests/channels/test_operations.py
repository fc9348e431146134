"""Every operation is followed rightly or refused in one line: what a model may do between its layers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet import ChannelGraph, CostModel, resize
from budgetnet.channels import GraphError


class Between(nn.Module):
    """convolution -> what is tested -> convolution -> logits; 5 channels at 5x5, so that no size tells them apart."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor], channels: int = 5, **modules: nn.Module) -> None:
        super().__init__()
        self.between = between
        self.a, self.b, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(channels, 4, 1), nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(5, 1, 1))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        for name, module in modules.items():
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


def assign(m: nn.Module, x: Tensor) -> Tensor:
    x[:, 0] = 0
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

REFUSED = {
    "channel slice": (Between(lambda m, x: x[:, :5]), "channels cannot be picked out"),
    "wide channel slice": (Between(lambda m, x: x[:, :9]), "channels cannot be picked out"),
    "channel permutation": (Between(lambda m, x: x[:, [4, 3, 2, 1, 0]]), "channels cannot be picked out"),
    "one channel": (Between(lambda m, x: x[:, 0].unsqueeze(1), channels=1), "channels cannot be picked out"),
    "mean over channels": (Between(lambda m, x: x.mean(1, keepdim=True), channels=1), "over space only"),
    "sum of everything": (Between(lambda m, x: x * x.sum()), "'sum_1'"),
    "chunk": (Between(lambda m, x: x.chunk(1, 1)[0]), "'chunk'"),
    "flatten of the batch": (Between(lambda m, x: x.flatten(0, 2)), "write x.flatten"),
    "permute": (Between(lambda m, x: x.permute(0, 1, 3, 2)), "'permute'"),
    "cat along the batch": (Between(lambda m, x: torch.cat([x, x])), "along the channels"),
    "fixed reshape": (Between(lambda m, x: torch.reshape(x, shape=(-1, 5, 5, 5))), "fixes the number of channels"),
    "channel gain": (Between(lambda m, x: x * m.gain), "uses gain, a parameter or buffer outside"),
    "functional": (Between(lambda m, x: F.conv2d(x, m.a.weight[:, :1].expand(5, 5, 1, 1))), "outside any layer|not in"),
    "item assignment": (Between(assign), "cannot be traced"),
    "range of channels": (Between(lambda m, x: sum(x for _ in range(x.size(1)))), "cannot be traced"),
    "training branch": (Between(lambda m, x: x.relu() if m.training else x), "in training than in eval"),
    "linear over pixels": (Between(lambda m, x: m.c(x), c=nn.Linear(5, 5)), "followed on \\(batch, features\\) only"),
    "unknown layer": (
        Between(lambda m, x: m.c(x), c=nn.InstanceNorm2d(5)),
        "InstanceNorm2d, which is not in",
    ),
}


def fvcore_flops(net: nn.Module) -> int:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return int(FlopCountAnalysis(copy.deepcopy(net).eval(), torch.zeros(1, 3, 5, 5)).total())


@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_followed_and_priced_also_after_growth(name: str) -> None:
    net = copy.deepcopy(FOLLOWED[name])
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    assert "a" in graph.widths
    assert set(graph.verify().values()) == {"function kept"}
    cost = CostModel(graph)
    wider = {group.name: group.width + 3 * group.blocks for group in graph.groups}
    priced = cost.costs(wider)
    assert cost.flops() == fvcore_flops(net)
    resize(net, wider)
    assert (priced["flops"], priced["params"]) == (fvcore_flops(net), sum(p.numel() for p in net.parameters()))


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name: str) -> None:
    net, message = REFUSED[name]
    with pytest.raises(GraphError, match=message) as error:
        ChannelGraph.trace(copy.deepcopy(net), torch.empty(1, 3, 5, 5))
    assert "\n" not in str(error.value)


def test_one_parameter_in_two_layers_is_refused() -> None:
    net = Between(lambda m, x: m.c(x), c=nn.Conv2d(5, 5, 1))
    net.c.weight = net.c2 = nn.Parameter(torch.zeros(5, 5, 1, 1))
    with pytest.raises(GraphError, match="one parameter in two layers"):
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
