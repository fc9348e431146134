from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import Odd
from torch import nn

from budgetnet import ChannelGraph, UsageError, backbones
from budgetnet.methods.pruning import thinet as thinet_module
from budgetnet.methods.pruning.consumers import measurable_groups, observe, rows, scale_columns, units, windows
from budgetnet.methods.pruning.pfp import pfp
from budgetnet.methods.pruning.thinet import rescale, thinet

Criterion = Callable[[ChannelGraph, torch.Tensor], object]

LAYERS = {
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(6, 8, (3, 2), dilation=(2, 1), bias=False),
    "grouped": nn.Conv2d(6, 9, 3, padding=1, groups=3),
    "same": nn.Conv2d(6, 8, 3, padding="same"),
    "reflected": nn.Conv2d(6, 8, 5, padding=2, padding_mode="reflect"),
    "circular": nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="circular"),
    "linear": nn.Linear(6, 4),
    "linear over tokens": nn.Linear(6, 4),
}


def inputs_for(kind: str) -> torch.Tensor:
    """Two images, or their tokens."""
    shape = {"linear": (2, 6), "linear over tokens": (2, 5, 6)}.get(kind, (2, 6, 9, 7))
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", LAYERS)
def test_windows_and_rows_add_up_to_what_the_layer_computes(kind: str) -> None:
    layer = copy.deepcopy(LAYERS[kind]).double()
    inputs = inputs_for(kind)
    weights = rows(layer, torch.arange(layer.weight.shape[0]))
    found = torch.einsum("nuijk,fuk->nfij", windows(layer, inputs).flatten(4), weights)
    if layer.bias is not None:
        found = found + layer.bias.reshape(1, -1, 1, 1)
    wanted = layer(inputs)
    if isinstance(layer, nn.Linear):
        found = found[..., 0].transpose(1, 2).reshape(wanted.shape)
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_scaling_a_column_is_scaling_the_input(kind: str) -> None:
    layer = copy.deepcopy(LAYERS[kind]).double()
    inputs = inputs_for(kind)
    factors = torch.tensor([1.0, 0.5, 2.0, 0.0, -1.0, 3.0], dtype=torch.float64)
    spread = factors if isinstance(layer, nn.Linear) else factors.reshape(6, 1, 1)
    wanted = layer(inputs * spread)
    scale_columns(layer, factors)
    assert torch.allclose(layer(inputs), wanted, atol=1e-12)


def inputs_of(graph: ChannelGraph, path: str) -> torch.Tensor:
    """What this layer reads of one random image."""
    seen: list[torch.Tensor] = []
    image = torch.randn(1, *graph.input_shape[1:])
    observe(graph, [path], image, lambda _path, _layer, inputs, _count: seen.append(inputs))
    (inputs,) = seen
    return inputs


@pytest.mark.parametrize(
    ("name", "consumer"), [("left", "mix"), ("right", "mix"), ("mix", "grouped"), ("grouped", "hidden")]
)
def test_units_are_where_a_channel_arrives(name: str, consumer: str) -> None:
    """Behind a concatenation, in a grouped convolution, behind a depthwise multiplier of 2 and a flatten of 4×4."""
    net = Odd()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    for channel in range(graph.widths[name]):
        marked = copy.deepcopy(net)
        with torch.no_grad():
            marked.get_parameter(f"{name}.weight")[channel] = torch.nan
        seen = inputs_of(ChannelGraph.of(marked), consumer)
        arrived = seen.isnan().reshape(seen.shape[1], -1).any(1)
        assert arrived.nonzero().flatten().tolist() == units(graph, consumer, name)[channel].tolist()


def noisy() -> nn.Module:
    """Dropout in any mode, a norm that trains and one that does not."""

    class Noisy(Odd):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(F.dropout(x, 0.5, True))

    net = Noisy()
    net.depthwise_norm.eval()
    return net


@pytest.mark.parametrize("criterion", [thinet, pfp, lambda graph, images: rescale(graph, {}, images)])
def test_state_mode_hooks_and_random_state_stay_as_they_are(criterion: Criterion) -> None:
    net = noisy()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    random = torch.get_rng_state()
    criterion(graph, torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_mode_and_hooks_are_restored_when_the_images_do_not_fit() -> None:
    net = backbones.build("vgg11", seed_width=2)
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 32, 32))
    with pytest.raises(RuntimeError):
        thinet(graph, torch.randn(2, 3, 64, 64))
    assert all(module.training for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


class Pointwise(nn.Module):
    """convolution -> 1×1 convolution, or the same as a linear layer of channels that are last -> convolution."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.point = nn.Linear(8, 12) if linear else nn.Conv2d(8, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        x = self.point(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.linear else self.point(x)
        return self.last(F.relu(x)).mean((2, 3))


def test_a_linear_layer_over_the_pixels_is_judged_as_the_convolution_that_it_is() -> None:
    torch.manual_seed(0)
    convolution, linear = Pointwise(False), Pointwise(True)
    state = convolution.state_dict()
    linear.load_state_dict({**state, "point.weight": state["point.weight"].flatten(1)})
    images = torch.randn(80, 3, 8, 8)  # as many rows as channels
    graphs = [ChannelGraph.trace(net, images[:1]) for net in (convolution, linear)]
    first, second = (pfp(graph, images)["first"] for graph in graphs)
    assert torch.allclose(first, second, atol=1e-6)
    first, second = (_contributions(graph, images) for graph in graphs)
    assert torch.allclose(first, second, rtol=0.2)  # other samples


def _contributions(graph: ChannelGraph, images: torch.Tensor) -> torch.Tensor:
    """Mean squares of what each channel of `first` contributes to the sampled outputs of `point`."""
    return thinet_module._products(graph, ["first"], images, 0)["point"].sums.diagonal()


class Sequence1d(nn.Module):
    """A convolution over pixels in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.row, self.last = nn.Conv2d(3, 4, 1), nn.Conv1d(4, 5, 3), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.row(self.first(x).flatten(2)).mean(2))


@pytest.mark.parametrize("criterion", [thinet, pfp, lambda graph, images: rescale(graph, {}, images)])
def test_what_is_read_by_another_kind_of_layer_is_refused(criterion: Criterion) -> None:
    graph = ChannelGraph.trace(Sequence1d(), torch.empty(1, 3, 4, 4))
    with pytest.raises(UsageError, match=r"'row', which reads the channels of 'first', is a Conv1d.*such as l1"):
        criterion(graph, torch.randn(2, 3, 4, 4))


class Unread(nn.Module):
    """Nothing but a shortcut reads what `first` computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.second(x)
        return self.last(out + backbones.match_channels(self.first(x), out))


@pytest.mark.parametrize("criterion", [thinet, pfp, lambda graph, images: rescale(graph, {}, images)])
def test_a_group_that_no_layer_reads_and_a_batch_without_images_are_refused(criterion: Criterion) -> None:
    graph = ChannelGraph.trace(Unread(), torch.empty(1, 3, 4, 4))
    with pytest.raises(UsageError, match=r"no Conv2d or Linear reads the channels of 'first'.*such as l1") as refusal:
        criterion(graph, torch.randn(2, 3, 4, 4))
    assert "\n" not in str(refusal.value)
    for images in (torch.empty(0), torch.empty(0, 3, 4, 4)):
        with pytest.raises(UsageError, match="at least one image"):
            criterion(graph, images)


def test_every_convolution_group_of_a_backbone_can_be_measured() -> None:
    for name in ("lenet5", "resnet20", "resnet50"):
        shape = (1, 1, 28, 28) if name == "lenet5" else (1, 3, 32, 32)
        graph = ChannelGraph.trace(backbones.build(name, seed_width=2), torch.empty(shape))
        assert [group.name for group in measurable_groups(graph, torch.ones(shape))] == [
            group.name for group in graph.groups if group.kind == "convolution"
        ]
