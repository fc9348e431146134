"""Every layer of torch.nn that works channel by channel is followed and priced, in one, two and three dimensions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_operations import Between, followed
from torch import Tensor, nn
from torch.nn import modules
from torch.utils.flop_counter import FlopCounterMode

from budgetnet import ChannelGraph, CostModel, resize
from budgetnet.channels import GraphError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Threshold": {"threshold": 0.1, "value": 0.0},
    "LPPool": {"norm_type": 2, "kernel_size": 2},
    "FractionalMaxPool": {"kernel_size": 2, "output_size": 2},
    "AdaptiveMaxPool": {"output_size": 2},
    "AdaptiveAvgPool": {"output_size": 2},
    "MaxPool": {"kernel_size": 2},
    "AvgPool": {"kernel_size": 2},
    "ConstantPad": {"padding": 1, "value": 0.5},
    "Pad": {"padding": 1},
    "BatchNorm": {"num_features": 5},
    "InstanceNorm": {"num_features": 5, "affine": True},
    "Upsample": {"scale_factor": 2},
    "Upsampling": {"scale_factor": 2},
}
"""By the longest of these names that the name of a layer has."""

NOT_CHANNEL_BY_CHANNEL = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax", "SyncBatchNorm"}


def layers() -> list[tuple[str, int]]:
    """Names of torch.nn and the number of dimensions that each takes behind its channels."""
    found = []
    groups = (modules.activation, modules.dropout, modules.pooling, modules.padding, modules.batchnorm)
    for module in (*groups, modules.instancenorm, modules.upsampling):
        for name in module.__all__:
            if name in NOT_CHANNEL_BY_CHANNEL or name.startswith(("Lazy", "MaxUnpool")):
                continue
            found.append((name, int(name[-2]) if name.endswith("d") and name[-2].isdigit() else 2))
    return found


def built(name: str) -> nn.Module:
    fits = [key for key in ARGUMENTS if key in name]
    return getattr(nn, name)(**ARGUMENTS[max(fits, key=len)] if fits else {})


class Around(nn.Module):
    """A convolution, what is tested, and a convolution, over any number of dimensions."""

    def __init__(self, layer: nn.Module, dims: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims - 1]
        self.a, self.layer, self.b, self.head = convolution(3, 5, 1), layer, convolution(5, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.layer(self.a(x))).flatten(2).mean(2))


def products(net: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name, dims", layers(), ids=[name for name, _ in layers()])
def test_a_layer_that_works_channel_by_channel_is_followed(name: str, dims: int) -> None:
    net, shape = Around(built(name), dims), (3, *(4,) * dims)
    graph = ChannelGraph.trace(net, torch.empty(1, *shape))
    assert graph.widths == {"a": 5, "b": 4} and set(graph.verify().values()) == {"function kept"}
    wider = {"a": 7, "b": 5}
    expected = CostModel(graph).costs(wider)
    resize(net, wider)
    assert (expected["macs"], expected["params"]) == (products(net, shape), sum(p.numel() for p in net.parameters()))


def test_windows_that_are_added_again_are_followed() -> None:
    followed(Between(lambda m, x: F.fold(F.unfold(x, 3, padding=1) * 2, (5, 5), 3, padding=1)))
    followed(Between(lambda m, x: F.fold(m.c(x).flatten(2), (10, 10), 2, stride=2), c=nn.Conv2d(5, 20, 1)))


@pytest.mark.parametrize("similarity", [nn.CosineSimilarity(dim=1), lambda x, y: F.cosine_similarity(x, y, 1, 1e-6)])
def test_a_similarity_is_taken_of_channels_that_meet(similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = Between(lambda m, x: x * similarity(x, m.c(x)).unsqueeze(1), c=nn.Conv2d(5, 5, 1))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    assert graph.widths == {"a": 5, "b": 4} and "a" in graph.mixing
    resize(net, {"a": 7})
    assert net.c.out_channels == net.c.in_channels == 7 and net(torch.zeros(1, 3, 5, 5)).isfinite().all()


def test_a_distance_is_taken_along_the_last_dimension() -> None:
    net = Between(lambda m, x: x * F.pairwise_distance(x, m.c(x))[..., None], c=nn.Conv2d(5, 5, 1))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
    assert graph.widths == {"a": 5, "b": 4} and set(graph.verify().values()) == {"function kept"}


def hidden(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return (state[0] if isinstance(state, tuple) else state)[..., None, None]


def test_a_cell_of_a_recurrent_layer_is_taken_as_a_whole() -> None:
    for cell, gates in ((nn.LSTMCell(5, 5), 4), (nn.GRUCell(5, 5), 3), (nn.RNNCell(5, 5), 1)):
        net = Between(lambda m, x: hidden(m.c(x.mean((2, 3)))), c=cell)
        graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5))
        assert graph.widths == {"b": 4}
        assert CostModel(graph).macs() == 25 * 3 * 5 + gates * 5 * (5 + 5) + 5 * 4 + 4 * 3


def test_what_runs_inside_vmap_is_refused_and_priced_once_it_is_frozen() -> None:
    class Mapped(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda image: super(Mapped, self).forward(image[None])[0])(x)

    net = Around(Mapped(5, 5, 1), 2)
    with pytest.raises(GraphError, match=r"inside torch\.vmap"):
        ChannelGraph.trace(net, torch.empty(1, 3, 4, 4))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 4, 4), frozen=("layer",))
    assert graph.widths == {"b": 4}
    assert CostModel(graph).macs() == 16 * (3 * 5 + 5 * 5 + 5 * 4) + 4 * 2


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_frozen_layer_that_computes_its_weight_stays_as_it_is(name: str) -> None:
    layer = getattr(nn.utils.parametrizations, name)(nn.Conv2d(5, 5, 1))
    graph = ChannelGraph.trace(Around(layer, 2), torch.empty(1, 3, 4, 4), frozen=("layer",))
    assert graph.widths == {"b": 4} and graph.verify() == {"b": "function kept"}


def test_vmap_over_what_has_no_channels_is_followed() -> None:
    def causal(m: nn.Module, x: Tensor) -> Tensor:
        places = torch.arange(5, device=x.device)
        mask = torch.vmap(torch.vmap(lambda i, j: (i >= j).to(x.dtype), (None, 0)), (0, None))(places, places)
        return x * mask

    followed(Between(causal))
    followed(Between(lambda m, x: x * torch.vmap(lambda row: row.norm())(m.c.weight).mean(), c=nn.Embedding(7, 3)))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_product_that_sums_over_its_batch_costs_all_of_it(frozen: bool) -> None:
    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(2)
            return torch.addbmm(rows.new_zeros(5, 5), rows, rows.transpose(1, 2)).expand(len(x), 5, 5)[..., None]

    net = Between(lambda m, x: m.c(x), c=Summed())
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 5, 5), frozen=("c",) * frozen)
    assert CostModel(graph).macs() == 25 * 3 * 5 + 5 * 25 * 5 + 25 // 5 * 5 * 4 + 4 * 3
