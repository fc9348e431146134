from __future__ import annotations

import copy
import logging

import pytest
import torch
from covering import covered
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Odd
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from budgetnet import ChannelGraph, CostModel, UsageError, backbones, resize

SHAPES = {"lenet5": (1, 28, 28), "resnet18": (3, 64, 64), "resnet34": (3, 64, 64), "resnet50": (3, 64, 64)}


def fvcore_flops(net: nn.Module, shape: tuple[int, ...]) -> int:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return int(FlopCountAnalysis(copy.deepcopy(net).eval(), torch.zeros(1, *shape)).total())


def conv_and_linear(net: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(net).to("meta").eval()(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


QUICK = ("lenet5", "vgg11", "resnet20", "resnet18", "resnet50")
"""Of each family the smallest: the others differ from them in depth alone."""


@pytest.mark.parametrize("name", covered(backbones.NAMES, QUICK))
def test_closed_forms_equal_fvcore_at_equal_and_uneven_widths_of_every_backbone(name: str) -> None:
    shape = SHAPES.get(name, (3, 32, 32))
    net = backbones.build(name, seed_width=4)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, *shape)))
    uneven = {group: 3 + i % 7 for i, group in enumerate(cost.names)}
    for widths in (cost.graph.widths, uneven):
        other = backbones.build(name, widths=widths)
        assert cost.flops(widths) == fvcore_flops(other, shape)
        assert cost.macs(widths) == conv_and_linear(other, shape)
        assert cost.params(widths) == sum(p.numel() for p in other.parameters())


@settings(max_examples=6, deadline=None)
@given(st.dictionaries(st.sampled_from(["stem", "left", "right", "hidden", "attention.reduce"]), st.integers(1, 30)),
       st.integers(1, 5), st.integers(1, 5))  # fmt: skip
def test_a_price_is_the_cost_of_the_resized_network(plan: dict[str, int], mix: int, grouped: int) -> None:
    net = Odd()
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 8, 8)))
    plan = {**plan, "mix": 3 * mix, "grouped": 3 * grouped + 9}
    priced = cost.costs(plan)
    resize(net, plan)
    assert priced == cost.costs() == {
        "params": sum(p.numel() for p in net.parameters()),
        "macs": conv_and_linear(net, (3, 8, 8)),
        "flops": fvcore_flops(net, (3, 8, 8)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "params", "macs"),
    [
        ("lenet5", {}, 61_706, 416_520),
        ("vgg16", {}, 14_990_922, 313_463_808),
        ("resnet20", {}, 269_722, 40_551_040),
        ("resnet32", {}, 464_154, 68_862_592),
        ("resnet32", {"multiplier": 3}, 4_157_242, None),
        pytest.param("resnet42-42-42", {}, 4_061_146, None, marks=pytest.mark.soak),
        pytest.param("resnet54-53-53", {"num_classes": 100}, 5_141_044, 753_064_192, marks=pytest.mark.soak),
    ],
)
def test_published_counts(name: str, options: dict[str, float], params: int, macs: int | None) -> None:
    net = backbones.build(name, **options)  # type: ignore[arg-type]
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, *SHAPES.get(name, (3, 32, 32)))))
    assert cost.params() == params
    assert macs is None or cost.macs() == macs


def test_resnet32_costs_what_fvcore_was_measured_to_say() -> None:
    cost = CostModel(ChannelGraph.trace(backbones.build("resnet32"), torch.empty(1, 3, 32, 32)))
    assert cost.flops() == 69_468_800
    three = CostModel(ChannelGraph.trace(backbones.build("resnet32", multiplier=3), torch.empty(1, 3, 32, 32)))
    assert round(three.flops() / 1e9, 3) == 0.619  # Table 3


def test_resnet18_at_imagenet_size() -> None:
    net = backbones.build("resnet18", num_classes=1000)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 224, 224)))
    assert (cost.params(), cost.macs()) == (11_689_512, 1_814_073_344)


def test_counting_leaves_batch_norm_statistics_alone() -> None:
    net = backbones.build("resnet20", seed_width=4).train()
    before = copy.deepcopy(net.state_dict())
    CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))).costs()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_unknown_group_is_named() -> None:
    cost = CostModel(ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8)))
    with pytest.raises(UsageError, match="did you mean 'left'"):
        cost.flops({"lefd": 3})


class Packed(nn.Module):
    """An LSTM that packs its input, for which it has to know the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = [x.shape[1]] * len(x)
        out, _ = self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]


class Squared(nn.Module):
    """A bilinear layer of its input with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bilinear(x, x)


class Tokens(nn.Module):
    """Pixels to tokens, which its body mixes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.body, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 1), body, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(self.b(self.a(x)).flatten(2).transpose(1, 2))
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


@pytest.mark.parametrize(
    "body, frozen, per_token",
    [
        (nn.LSTM(6, 8, batch_first=True), False, 4 * 8 * (6 + 8)),
        (nn.GRU(6, 4, num_layers=2, bidirectional=True, batch_first=True), True, 2 * 3 * 4 * (6 + 4 + 8 + 4)),
        (Packed(), True, 4 * 8 * (6 + 8)),
        (Squared(), False, 8 * (6 * 6 + 6)),
        (Squared(), True, 8 * (6 * 6 + 6)),
    ],
    ids=["lstm", "frozen gru", "frozen packed lstm", "bilinear", "frozen bilinear"],
)
def test_recurrent_and_bilinear_layers_cost_their_products(body: nn.Module, frozen: bool, per_token: int) -> None:
    graph = ChannelGraph.trace(Tokens(body), torch.empty(1, 3, 4, 4), frozen=("body",) * frozen)
    assert CostModel(graph).macs({"a": 7}) == 16 * (3 * 7 + 7 * 6 + per_token) + 8 * 4
