"""Weights made from latents are those of the definition, and latents follow the width groups."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nets import Odd
from torch import nn

from budgetnet import backbones
from budgetnet.channels import ChannelGraph, resize
from budgetnet.errors import UsageError
from budgetnet.methods.hypernet.hypernetwork import Hypernetwork, Kernels, generate
from budgetnet.methods.hypernet.latents import Latents
from budgetnet.methods.hypernet.proximal import shrink


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def traced(network: nn.Module, *shape: int) -> ChannelGraph:
    return ChannelGraph.trace(network, torch.empty(1, *shape))


class Chunked(nn.Module):
    """Half of the channels are read alone, as in YOLOv8."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.o, self.f = nn.Conv2d(18, 10, 1), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.f(self.o(torch.cat([left, right, self.m(right)], 1)).mean((2, 3)))


def test_a_layer_that_reads_a_part_of_the_channels_has_their_latents() -> None:
    net = Chunked()
    axes = Latents.of(traced(net, 3, 8, 8)).axes
    made = axes["a"][1]
    assert torch.equal(axes["m"][0], made[6:]) and torch.equal(axes["o"][0][:12], made)
    assert torch.equal(axes["o"][0][12:], axes["m"][1])
    Hypernetwork(ChannelGraph.of(net)).write(net)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(("c", "n", "k", "m"), [(3, 5, 3, 8), (1, 4, 5, 2), (6, 2, 1, 4)])
def test_a_generated_weight_equals_the_definition_entry_by_entry(c: int, n: int, k: int, m: int) -> None:
    z_in, z_out, b0 = normal(c, seed=1), normal(n, seed=2), normal(c, n, seed=3)
    w1, b1, w2, b2 = normal(c, n, m, seed=4), normal(c, n, m, seed=5), normal(c, n, k * k, m), normal(c, n, k * k)
    weight = generate(z_in, z_out, w1, w2, b0, b1, b2)
    assert weight.shape == (n, c, k, k)
    for i in range(c):
        for j in range(n):
            for entry in range(k * k):
                expected = float(b2[i, j, entry])
                for e in range(m):
                    z0 = float(z_in[i]) * float(z_out[j]) + float(b0[i, j])
                    expected += float(w2[i, j, entry, e]) * (z0 * float(w1[i, j, e]) + float(b1[i, j, e]))
                assert weight[j, i, entry // k, entry % k].item() == pytest.approx(expected, abs=1e-10)


def test_a_generated_weight_equals_the_demo_code_of_the_paper() -> None:
    c, n, k, m = 3, 4, 3, 8
    z_i, z_o, w_1, w_2 = normal(c), normal(n), normal(n, c, m), normal(n, c, k * k, m)
    o = torch.matmul(z_o.unsqueeze(-1), z_i.unsqueeze(0))
    o = torch.matmul(w_2, (o.unsqueeze(-1) * w_1).unsqueeze(-1))
    zeros = [torch.zeros(c, n, *rest, dtype=torch.float64) for rest in ((), (m,), (k * k,))]
    weight = generate(z_i, z_o, w_1.transpose(0, 1), w_2.transpose(0, 1), *zeros)
    torch.testing.assert_close(weight, o.view(n, c, k, k), rtol=0, atol=1e-12)


def test_at_the_start_weights_have_variance_one_over_fan_in_and_no_bias() -> None:
    inputs, outputs = torch.arange(64), 64 + torch.arange(64)
    layer = Kernels((64, 64, 3, 3), False, inputs, outputs, m=8, seed=0, name="layer")
    ones = torch.ones(128)
    assert layer(ones).var().item() * 64 * 9 == pytest.approx(1, rel=0.05)
    assert layer.w1.var().item() == pytest.approx(1, rel=0.05)
    assert layer.w1.abs().max() <= math.sqrt(3) and layer.w2.abs().max() <= math.sqrt(3 / (8 * 64 * 9))
    assert not any(bias.any() for bias in (layer.b0, layer.b1, layer.b2))


def test_every_group_of_convolutions_has_a_latent_for_each_channel_and_the_image_fixed_ones() -> None:
    graph = traced(backbones.build("lenet5"), 1, 28, 28)
    latents = Latents.of(graph)
    assert {name: place.tolist() for name, place in latents.groups.items()} == {
        "conv1": list(range(6)),
        "conv2": list(range(6, 22)),
    }
    assert latents.size == 22 + 1
    axes = {path: [axis.tolist() for axis in pair] for path, pair in latents.axes.items()}
    assert axes == {"conv1": [[22], list(range(6))], "conv2": [list(range(6)), list(range(6, 22))]}


def test_groups_that_a_parameter_free_shortcut_joins_share_latents() -> None:
    graph = traced(backbones.build("resnet20"), 3, 32, 32)
    latents = Latents.of(graph)
    last = latents.groups["layer3.2.conv2"]
    for name, width in {"conv1": 16, "layer1.2.conv2": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}.items():
        assert torch.equal(latents.groups[name], last[:width]), name
    inner = [group for group in graph.widths if group.endswith("conv1") and group != "conv1"]
    assert latents.size == 64 + sum(graph.widths[name] for name in inner) + 3


def test_latents_follow_ties_depthwise_layers_squeeze_excite_and_concatenations() -> None:
    latents = Latents.of(traced(Odd(), 3, 8, 8))
    places = {name: place.tolist() for name, place in latents.groups.items()}
    for path in ("stem", "depthwise", "attention.expand", "pointwise"):
        assert latents.axes[path][1].tolist() == places["stem"], path
    alone = latents.axes["depthwise"][0]
    assert alone.shape == (1,) and all(alone.item() not in place for place in places.values())
    assert latents.axes["mix"][0].tolist() == places["left"] + places["right"]
    grouped, _ = latents.axes["grouped"]
    parts = [places["mix"][4 * part : 4 * part + 4] for part in range(3)]
    assert grouped.T.tolist() == [part for part in parts for _ in range(3)]
    assert latents.axes["multiplied"][1].tolist() == [place for place in places["grouped"] for _ in range(2)]


def test_a_network_runs_on_generated_weights_as_on_the_same_weights_of_its_own() -> None:
    torch.manual_seed(0)
    network = Odd().eval()
    hypernetwork = Hypernetwork(traced(network, 3, 8, 8), seed=1)
    made, images = hypernetwork(), torch.randn(2, 3, 8, 8)
    convolutions = {f"{path}.weight" for path, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(made) == convolutions
    assert {name: w.shape for name, w in made.items()} == {
        n: p.shape for n, p in network.named_parameters() if n in made
    }
    expected = torch.func.functional_call(network, made, (images,))
    assert not torch.equal(network(images), expected)
    hypernetwork.write(network)
    assert torch.equal(network(images), expected)


def test_every_parameter_of_a_hypernetwork_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = Odd()
    hypernetwork = Hypernetwork(traced(network, 3, 8, 8), embedding=2)
    torch.func.functional_call(network, hypernetwork(), (torch.randn(4, 3, 8, 8),)).square().sum().backward()
    assert all(p.grad is not None for p in hypernetwork.parameters())


def test_a_hypernetwork_is_a_function_of_its_seed() -> None:
    graph = traced(backbones.build("lenet5"), 1, 28, 28)
    one, same, other = (Hypernetwork(graph, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["z"], other["z"]) and not torch.equal(one["layers.0.w1"], other["layers.0.w1"])


def test_written_weights_survive_narrowing_channel_by_channel() -> None:
    graph = traced(backbones.build("lenet5"), 1, 28, 28)
    hypernetwork = Hypernetwork(graph)
    hypernetwork.write(graph.model)
    made = {name: weight.detach().clone() for name, weight in hypernetwork().items()}
    resize(graph.model, {"conv1": [1, 4], "conv2": [0, 7, 9]})
    assert torch.equal(graph.model.get_parameter("conv2.weight"), made["conv2.weight"][[0, 7, 9]][:, [1, 4]])


def test_a_network_without_convolutions_to_shrink_is_refused_in_one_line() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(UsageError, match="no width that a hypernetwork could decide"):
        Latents.of(traced(network, 3, 2, 2))


def test_a_proximal_step_is_the_soft_threshold_while_more_than_the_floor_reach_the_threshold() -> None:
    z = torch.tensor([0.5, -0.2, 0.05, -0.01, 0.0])
    shrunk = shrink(z, step=0.1, floor=2, threshold=0.05)
    assert torch.equal(shrunk, F.softshrink(z, 0.1))
    assert torch.equal(shrink(z, step=0.1, floor=3, threshold=0.05), z)
    assert torch.equal(shrink(-z, 0.1, 2, 0.05), -shrunk)


@pytest.mark.parametrize("computed", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_convolution_that_computes_its_weight_is_refused_until_it_is_frozen(
    computed: Callable[[nn.Module], nn.Module],
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), computed(nn.Conv2d(4, 6, 1)), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1))
    with pytest.raises(UsageError, match=r"'1' computes its own .*backbone\.frozen"):
        Hypernetwork(traced(net, 3, 4, 4))
    hypernetwork = Hypernetwork(ChannelGraph.trace(net, torch.empty(1, 3, 4, 4), frozen=("1",)))
    assert set(hypernetwork()) == {"0.weight", "2.weight", "3.weight"}
