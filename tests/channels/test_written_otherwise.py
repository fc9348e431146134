"""What networks of others do that no backbone of the project does: followed, or one line that says what to type."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from test_operations import Between, followed, fvcore_flops
from torch import Tensor, nn

from budgetnet import ChannelGraph, CostModel, resize
from budgetnet.channels import GraphError

IMAGE = torch.empty(1, 3, 5, 5)


def recurrent(m: nn.Module, x: Tensor) -> Tensor:
    hidden = torch.zeros_like(x)
    for _ in range(2):
        hidden = torch.tanh(m.c(torch.cat([hidden, x], 1)))
    return hidden


def halves_swapped(m: nn.Module, x: Tensor) -> Tensor:
    out, half = torch.zeros_like(x), x.shape[1] // 2
    out[:, :half], out[:, half:] = x[:, half:], x[:, :half]
    return out


def spectrum(m: nn.Module, x: Tensor) -> Tensor:
    f = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(torch.complex(f.real * m.gain, f.imag), s=x.shape[-2:], norm="ortho")


class Splits(nn.Module):
    """Convolutions of several kernels, each of some channels whose numbers stand in a list."""

    def __init__(self, splits: list[int]) -> None:
        super().__init__()
        self.splits = splits
        self.convs = nn.ModuleList([nn.Conv2d(n, n, 2 * i + 1, padding=i, groups=n) for i, n in enumerate(splits)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(part) for conv, part in zip(self.convs, x.split(self.splits, 1), strict=True)], 1)


class Standardised(nn.Conv2d):
    """Filters that are normalised by a batch norm before they are used."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, groups=self.groups)


class LowRank(nn.Module):
    """A linear layer whose weight is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.up @ self.down)


class Statistics(nn.Module):
    """A batch norm in plain functions, whose statistics have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(5))
        self.register_buffer("spread", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.centre, self.spread)


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


FOLLOWED = {
    "glu": Between(lambda m, x: F.glu(x, 1), channels=3, a=nn.Conv2d(3, 6, 1)),
    "recurrent, from zeros": Between(recurrent, c=nn.Conv2d(10, 5, 1)),
    "zeros that are written": Between(halves_swapped, channels=6, a=nn.Conv2d(3, 6, 1)),
    "Fourier transform over space": Between(spectrum),
    "expanded mask": Between(lambda m, x: x * m.c(x).sigmoid().expand_as(x), c=nn.Conv2d(5, 1, 1)),
    "repeated mask": Between(lambda m, x: x * m.c(x).sigmoid().repeat(1, x.shape[1], 1, 1), c=nn.Conv2d(5, 1, 1)),
    "tokens picked by an index": Between(
        lambda m, x: x.flatten(2).gather(2, m.c(x).flatten(2).topk(9).indices.expand(-1, x.shape[1], -1))[..., None],
        c=nn.Conv2d(5, 1, 1),
    ),
    "split by a list": Between(lambda m, x: m.c(x), channels=6, a=nn.Conv2d(3, 6, 1), c=Splits([3, 3])),
    "statistics of its own": Between(lambda m, x: m.c(x), c=Statistics()),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_it_is_followed_and_priced_also_after_growth(name: str) -> None:
    followed(FOLLOWED[name])


def test_einsum_reads_a_weight_by_the_letters_that_are_summed() -> None:
    net = Between(lambda m, x: torch.einsum("bchw,co->bohw", x, m.c.weight), c=nn.Linear(5, 5))
    graph = ChannelGraph.trace(net, IMAGE)
    assert graph.widths == {"a": 5, "c": 5, "b": 4} and set(graph.verify().values()) == {"function kept"}
    assert CostModel(graph).macs({"a": 7, "c": 6, "b": 4}) == 25 * (3 * 7 + 7 * 6 + 6 * 4) + 4 * 3


class Attention(nn.Module):
    """Two heads, by einsum with an ellipsis."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(5, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = torch.einsum("...ij,...jd->...id", torch.einsum("...id,...jd->...ij", q, k).softmax(-1), v)
        return mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(-1, (5, 5))


def test_einsum_that_is_not_followed_costs_what_it_multiplies() -> None:
    pixels = Between(lambda m, x: m.c(x), channels=8, c=Attention())
    products = 2 * 2 * 25 * 25 * 4  # of two heads, with the keys and with the values
    assert CostModel(ChannelGraph.trace(pixels, IMAGE)).flops() == 25 * (15 + 5 * 24 + 8 * 4) + products + 12


def test_a_product_of_weights_costs_once_however_many_images_and_its_inner_width_stays() -> None:
    net = Between(lambda m, x: m.c(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), c=LowRank())
    graph = ChannelGraph.trace(net, IMAGE)
    assert set(graph.verify().values()) == {"function kept"} and 2 not in graph.widths.values()
    assert CostModel(graph).flops() == fvcore_flops(net) == 25 * (15 + 25 + 20) + 12 + 5 * 2 * 5


def test_a_query_of_weights_is_priced_for_one_image() -> None:
    net = Between(lambda m, x: (m.c.weight @ x.flatten(2)).unflatten(-1, (5, 5)), c=nn.Linear(5, 5))
    graph = ChannelGraph.trace(net, IMAGE)
    assert CostModel(graph).flops() == fvcore_flops(net) and set(graph.verify().values()) == {"function kept"}


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_that_are_normalised_are_checked_for_shapes(groups: int) -> None:
    net = Between(lambda m, x: m.c(x), channels=6, a=nn.Conv2d(3, 4, 1), c=Standardised(4, 6, 3, groups=groups))
    graph = ChannelGraph.trace(net, IMAGE)
    kinds = [(group.name, group.kind, group.blocks) for group in graph.groups]
    assert kinds[:2] == [("a", "convolution", groups), ("c", "convolution", groups)]
    assert graph.mixing == {"a"} and graph.verify()["c"] == "function kept"


def test_a_table_that_is_read_by_a_computed_index_stays() -> None:
    table = nn.Embedding(5, 7)
    net = Between(lambda m, x: x + m.c.weight[torch.arange(5, device=x.device)].mean(1)[:, None, None], c=table)
    graph = ChannelGraph.trace(net, IMAGE)
    assert graph.widths == {"b": 4} and "by an index that is computed" in "; ".join(graph.fixed)
    assert graph.verify() == {"b": "function kept"}


class Patches(nn.Module):
    """Its 5 is the side of a patch, and the channels of the layer behind are five, too."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.mix = 5, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // self.side, self.side, w)
        return self.mix(x).reshape(b, c, -1, self.side)


def test_a_number_that_is_no_width_is_not_told_one() -> None:
    net = Between(lambda m, x: m.c(x), c=Patches())
    graph = ChannelGraph.trace(net, IMAGE)
    assert graph.widths == {"a": 5, "b": 4} and net.c.side == 5
    assert set(graph.verify().values()) == {"function kept"}


def test_a_scripted_layer_is_followed_and_left_alone_by_a_resize() -> None:
    net = Between(lambda m, x: m.c(x), c=torch.jit.script(nn.Hardswish()))
    assert set(ChannelGraph.trace(net, IMAGE).verify().values()) == {"function kept"}


def test_a_scripted_function_is_refused_by_its_operation_and_frozen_by_it() -> None:
    net = Between(lambda m, x: swish(x))
    with pytest.raises(GraphError, match="prims::mul") as error:
        ChannelGraph.trace(net, IMAGE)
    assert "frozen=('prims::mul',)" in str(error.value)
    assert ChannelGraph.trace(net, IMAGE, frozen=("prims::mul",)).widths == {"b": 4}


def test_two_layers_with_one_parameter_are_followed_once_both_are_frozen() -> None:
    net = Between(lambda m, x: m.d(m.c(x)), c=nn.Conv2d(5, 5, 1), d=nn.Conv2d(5, 5, 1))
    net.d.weight = net.c.weight
    with pytest.raises(GraphError, match=r"'backbone.frozen=\[c,d\]'"):
        ChannelGraph.trace(net, IMAGE)
    graph = ChannelGraph.trace(net, IMAGE, frozen=("c", "d"))
    assert graph.verify() == {"b": "function kept"} and CostModel(graph).flops() == fvcore_flops(net)


def test_a_parameter_can_be_frozen() -> None:
    net = Between(lambda m, x: x * m.gain)
    assert ChannelGraph.trace(net, IMAGE, frozen=("gain",)).widths == {"b": 4}


def test_what_verify_says_to_freeze_makes_it_pass() -> None:
    net = Between(lambda m, x: x / x.shape[1])
    with pytest.raises(GraphError, match=r"frozen=\('a',\).*'backbone.frozen=\[a\]'"):
        ChannelGraph.trace(net, IMAGE).verify()
    assert ChannelGraph.trace(net, IMAGE, frozen=("a",)).verify() == {"b": "function kept"}


def test_what_runs_in_single_precision_alone_is_proven_in_it() -> None:
    net = Between(lambda m, x: m.c(x.float()), c=nn.Conv2d(5, 5, 1))
    assert set(ChannelGraph.trace(net, IMAGE).verify().values()) == {"function kept"}


UNREGISTERED = nn.Conv2d(5, 5, 1)
REFUSED = {
    "random in eval mode": (Between(lambda m, x: F.dropout(x)), "gives something else each time in eval mode"),
    "lazy": (Between(lambda m, x: m.c(x), c=nn.LazyConv2d(5, 1)), "call it once on an image"),
    "not registered": (
        Between(lambda m, x: UNREGISTERED(x)),
        "'conv2d' .* reads a parameter that Between has not registered",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name: str) -> None:
    net, message = REFUSED[name]
    with pytest.raises(GraphError, match=message) as error:
        ChannelGraph.trace(net, IMAGE).verify()
    assert "\n" not in str(error.value)


def test_what_fails_at_other_widths_stays_and_the_graph_says_where() -> None:
    def checked(m: nn.Module, x: Tensor) -> Tensor:
        if x.shape[1] != 5:
            raise ValueError("five channels, please")
        return x

    net = Between(lambda m, x: m.c(checked(m, x)), c=nn.Conv2d(5, 5, 1))
    graph = ChannelGraph.trace(net, IMAGE)
    assert graph.widths == {"c": 5, "b": 4}
    assert "fails at other widths: five channels, please (test_written_otherwise.py:" in "; ".join(graph.fixed)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (torch.jit.script(plain()), "the network is scripted"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), torch.jit.script(nn.Conv2d(8, 4, 1))), "module '1' is scripted"),
        (torch.compile(plain(), backend="eager"), "inside torch.compile"),
    ],
)
def test_what_python_no_longer_runs_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        ChannelGraph.trace(net, IMAGE)


def test_a_network_that_fx_has_traced_is_followed() -> None:
    assert ChannelGraph.trace(torch.fx.symbolic_trace(plain()), IMAGE).verify() == {"0": "function kept"}


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    net = Between(lambda m, x: x)
    net.lock = threading.Lock()
    with pytest.raises(GraphError, match="cannot be copied"):
        ChannelGraph.trace(net, IMAGE)


def test_a_list_of_widths_follows_a_resize() -> None:
    net = Between(lambda m, x: m.c(x), channels=6, a=nn.Conv2d(3, 6, 1), c=Splits([3, 3]))
    ChannelGraph.trace(net, IMAGE)
    resize(net, {"a": 10})
    assert net.c.splits == [5, 5] and net(torch.zeros(1, 3, 5, 5)).shape == (1, 3)
