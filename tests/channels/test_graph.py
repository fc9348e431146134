from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import Odd
from torch import nn

from budgetnet import ChannelGraph, CostModel, backbones, resize
from budgetnet.channels import GraphError

DEEPEST = ("resnet110", "resnet42-42-42", "resnet54-53-53")
SHAPES = {"lenet5": (1, 28, 28), "resnet18": (3, 32, 32), "resnet34": (3, 32, 32), "resnet50": (3, 32, 32)}


def traced(net: nn.Module, *shape: int) -> ChannelGraph:
    return ChannelGraph.trace(net, torch.empty(1, *shape))


@pytest.mark.parametrize("name", [name for name in backbones.NAMES if name not in DEEPEST])
def test_every_group_of_every_backbone_grows_and_narrows_without_changing_the_function(name: str) -> None:
    graph = traced(backbones.build(name, seed_width=3), *SHAPES.get(name, (3, 32, 32)))
    assert set(graph.verify().values()) == {"function kept"}


@pytest.mark.soak
@pytest.mark.parametrize("name", DEEPEST)
def test_every_group_of_the_deepest_backbones_too(name: str) -> None:
    graph = traced(backbones.build(name, seed_width=3), 3, 32, 32)
    assert set(graph.verify().values()) == {"function kept"}


def test_groups_of_a_network_that_no_backbone_resembles() -> None:
    graph = traced(Odd(), 3, 8, 8)
    assert graph.widths == {
        "stem": 8, "attention.reduce": 4, "left": 5, "right": 7, "mix": 12, "grouped": 9, "hidden": 14,
    }  # fmt: skip
    stem = graph.group("stem")
    assert stem.producers == ("stem", "attention.expand", "pointwise")
    assert stem.consumers == ("attention.reduce", "pointwise", "left", "right")
    assert (graph.group("grouped").blocks, graph.group("hidden").kind) == (3, "linear")
    assert repr(graph.group("left")) == "WidthGroup('left', width=5, convolution, left -> mix)"


def test_verify_proves_that_network() -> None:
    assert set(traced(Odd(), 3, 8, 8).verify().values()) == {"function kept"}


def test_a_wrong_graph_does_not_pass_verify() -> None:
    graph = traced(Odd(), 3, 8, 8)
    del graph.axes["mix.weight"][1]
    with pytest.raises(GraphError, match="left"):
        graph.verify()


def test_verify_leaves_the_model_alone() -> None:
    net = Odd()
    before = copy.deepcopy(net.state_dict())
    traced(net, 3, 8, 8).verify()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_tracing_changes_neither_state_nor_mode() -> None:
    net = Odd().train()
    before = copy.deepcopy(net.state_dict())
    traced(net, 3, 8, 8)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_widths_are_read_off_the_live_model() -> None:
    net = Odd()
    graph = traced(net, 3, 8, 8)
    resize(net, {"left": 6})
    assert graph.widths["left"] == graph.group("left").width == net.left.out_channels == 6


def test_a_deep_copy_has_its_own_graph() -> None:
    net = Odd()
    traced(net, 3, 8, 8)
    twin = copy.deepcopy(net)
    resize(twin, {"left": 6})
    assert ChannelGraph.of(net).widths["left"] == 5
    assert ChannelGraph.of(twin).model is twin


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 8), nn.LayerNorm((8, 6, 6))])
def test_a_norm_across_channels_is_checked_for_shapes_and_says_so(norm: nn.Module) -> None:
    assert traced(Normed(norm), 3, 6, 6).verify()["conv"].startswith("shapes only: a norm across channels")


def test_a_group_norm_keeps_its_members_together() -> None:
    net = Normed(nn.GroupNorm(4, 8))
    graph = traced(net, 3, 6, 6)
    with pytest.raises(GraphError, match="multiples of 4"):
        resize(net, {"conv": 9})
    old = net.conv.weight.detach().clone()
    resize(net, {"conv": 12})
    assert graph.group("conv").blocks == 4
    assert torch.equal(net.conv.weight[[0, 1, 3, 4, 6, 7, 9, 10]], old)


class Valley(nn.Module):
    """A block that is narrower than both its neighbours: widening it lets cropped shortcut channels through."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        out = self.b(x)
        x = out + backbones.match_channels(x, out)
        out = self.c(x)
        return self.head((out + backbones.match_channels(x, out)).mean((2, 3)))


def test_a_width_that_reopens_a_cropped_shortcut_is_named() -> None:
    proven = traced(Valley(), 3, 4, 4).verify()
    assert proven["a"] == proven["c"] == "function kept"
    assert proven["b"].startswith("shapes only: growing it reopens")


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 1), Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.conv(x)).flatten(1)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, 1)


class Hard(nn.Module):
    """Flattens to a number of features that is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).view(-1, 64))


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Softmax(), "Softmax has no width that can change"),
        (Hard(), r"no width .*'view' .*\(test_graph.py:\d+: .*view\(-1, 64\)\)\) holds a number of channels that is"),
        (Branching(), "Branching cannot be traced .*test_graph.py:.* move what depends on the data into a submodule"),
    ],
)
def test_a_network_without_a_width_and_one_that_looks_at_its_data_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(GraphError, match=message) as error:
        traced(net, 3, 4, 4)
    assert "\n" not in str(error.value)


def test_freezing_a_module_keeps_the_widths_around_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    assert ChannelGraph.trace(net, torch.empty(1, 3, 4, 4), frozen=("2",)).widths == {"0": 4}
    with pytest.raises(GraphError, match="neither a module path nor an operation"):
        ChannelGraph.trace(net, torch.empty(1, 3, 4, 4), frozen=("outer",))


def test_image_and_logits_are_frozen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert traced(net, 3, 4, 4).widths == {"0": 4}


def test_a_layer_that_is_used_twice_has_one_width() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.shared(self.shared(self.first(x))).mean((2, 3)))

    graph = traced(Twice(), 3, 4, 4)
    assert list(graph.widths) == ["first"]
    assert graph.verify() == {"first": "function kept"}


class Between(nn.Module):
    """Two convolutions, and between the last two a function that no run alone can see through."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.a, self.b, self.c, self.function = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.function(self.b(self.a(x))))  # type: ignore[operator]


def test_verify_names_the_group_and_the_operation_that_knows_how_many_channels_there_are() -> None:
    graph = traced(Between(lambda x: x / x.shape[1]), 3, 4, 4)
    with pytest.raises(
        GraphError, match=r"WidthGroup\('b'.* changes the function .* first in operation 'div' \(test_gr"
    ):
        graph.verify()


def test_a_network_of_which_more_than_half_stays_says_so() -> None:
    net = Between(lambda x: x.view(-1, 6, 4, 4))
    assert traced(net, 3, 4, 4).warning is None
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 2, 1), nn.Conv2d(2, 2, 1))
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8), frozen=("1",))
    assert graph.widths == {"2": 2} and graph.free_share < 0.1
    assert graph.warning is not None and "% of the FLOPs are of layers whose widths stay as they are" in graph.warning
    net = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = traced(net, 3, 4, 4)
    assert [group.kind for group in graph.groups] == ["other"]
    assert graph.warning is not None and "nothing can be grown or pruned" in graph.warning


def test_the_part_of_the_flops_that_depends_on_some_widths() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = traced(net, 3, 2, 2)  # 48, 80 and 10 multiply-accumulates
    assert graph.share_of({"0"}) == pytest.approx(128 / 138) and graph.share_of({"2"}) == pytest.approx(90 / 138)
    assert graph.share_of({"0", "2"}) == graph.free_share == 1 and graph.share_of(()) == 0


def test_a_frozen_module_is_priced_by_what_it_is_called_with() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            t = self.a(x).flatten(2).transpose(1, 2)
            return self.head(F.relu(self.b(self.attention(t, t, t)[0].mean(1))))

    graph = ChannelGraph.trace(Attends(), torch.empty(1, 3, 16, 16), frozen=("attention",))
    assert list(graph.widths) == ["b"]
    tokens, width = 16, 8
    attention = tokens * width * 4 * width + 2 * tokens * tokens * width
    assert CostModel(graph).macs() == 8 * 48 * tokens + attention + 8 * 5 + 5 * 4


def test_a_module_that_looks_at_its_data_is_followed_around_once_it_is_frozen() -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), Looks(), nn.Conv2d(4, 2, 1))
    with pytest.raises(GraphError, match=r"in module '2' .* depends on the data"):
        traced(net, 3, 4, 4)
    assert ChannelGraph.trace(net, torch.empty(1, 3, 4, 4), frozen=("2",)).widths == {"0": 5}
