"""What the new entries of a grown network begin with, by growth.init."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import odd, step
from torch import nn

from budgetnet import ChannelGraph, backbones, resize
from budgetnet.channels import GraphError


def test_new_entries_have_the_fan_of_the_grown_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 256, 3), nn.Flatten(), nn.Linear(256 * 16, 2)
    )
    ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    resize(net, {"0": 512, "2": 512}, seed=0)
    new = net[2].weight[256:]
    assert new.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert new.mean().item() == pytest.approx(0, abs=1e-4)
    assert torch.equal(net[1].weight, torch.ones(512)) and torch.equal(net[1].running_var, torch.ones(512))
    assert not net[1].running_mean.any() and not net[2].bias[256:].any()


def test_new_entries_are_a_function_of_the_seed_alone() -> None:
    first, second, third = odd(), odd(), odd()
    torch.rand(7)
    resize(first, {"stem": 11, "left": 6}, seed=1)
    torch.rand(5)
    resize(second, {"left": 6, "stem": 11}, seed=1)
    resize(third, {"stem": 11, "left": 6}, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not torch.equal(first.stem.weight, third.stem.weight)


@pytest.mark.parametrize("plan", [{"stem": 11, "mix": 18, "hidden": 20}, {"left": 9, "right": 8, "grouped": 15}])
@pytest.mark.parametrize("init", ["zero_out", "net2wider"])
def test_function_preserving_initialisations_keep_the_function(init: str, plan: dict[str, int]) -> None:
    net = odd(torch.float64)
    step(net, torch.optim.SGD(net.parameters(), lr=0.1))
    net.eval()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = net(x)
    resize(net, plan, init=init, seed=0)
    assert torch.allclose(net(x), before, atol=1e-12)


def test_zero_out_keeps_the_function_of_a_residual_network_that_grows_everywhere_and_trains_on() -> None:
    net = backbones.build("resnet20", seed_width=4).double()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 16, 16))
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    net(x)
    net.eval()
    before = net(x)
    plan = {name: width + 2 + i % 3 * 0 for i, (name, width) in enumerate(graph.widths.items())}
    resize(net, plan, init="zero_out", seed=0)
    assert torch.allclose(net(x), before, atol=1e-12)
    net.train()
    nn.functional.cross_entropy(net(x), torch.arange(4)).backward()
    new = {name: net.get_parameter(f"{name}.weight").grad[4:] for name in graph.widths}
    columns = {c: net.get_parameter(f"{c}.weight").grad[:, 4:] for g in graph.groups for c in g.consumers}
    alive = [new[g.name].any() or any(columns[c].any() for c in g.consumers) for g in graph.groups]
    assert all(alive)


def test_gradmax_finds_the_top_singular_vectors_of_the_bypass_gradient() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    ChannelGraph.trace(net, torch.empty(1, 6))
    x, y = torch.randn(32, 6, dtype=torch.float64), torch.randint(4, (32,))
    logits = net(x)
    (delta,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), logits)
    best = torch.linalg.svd(delta.T @ x)[0][:, :2]  # outgoing directions of largest incoming gradient
    resize(net, {"0": 7}, init="gradmax", batch=(x, y), seed=0)
    found = torch.linalg.qr(net[2].weight[:, 5:].detach())[0]
    assert torch.linalg.svdvals(best.T @ found).min() > 1 - 1e-3
    assert not net[0].weight[5:].any()
    half = 0.5 * net[2].weight[:, :5].norm(dim=0).mean()
    assert torch.allclose(net[2].weight[:, 5:].norm(dim=0), half, rtol=1e-6)
    assert torch.allclose(net(x), logits, atol=1e-2)


def test_gradmax_reaches_through_pooling_and_flattening_and_gives_a_larger_gradient_than_he() -> None:
    x, y = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))

    def incoming_gradient(init: str) -> float:
        torch.manual_seed(0)
        net = backbones.build("vgg11", seed_width=4)
        ChannelGraph.trace(net, x)
        resize(net, {"conv8": 8, "conv3": 6}, init=init, batch=(x, y), seed=0)
        if init == "he":  # the same outgoing norm and a silent start
            with torch.no_grad():
                net.conv3.weight[4:], net.conv8.weight[4:] = 0, 0
                net.bn3.bias[4:], net.bn8.bias[4:] = 1e-3, 1e-3
                for w, old in ((net.conv4.weight, 4), (net.fc1.weight, 4)):
                    norm = w.movedim(1, 0)[:old].flatten(1).norm(dim=1).mean()
                    w[:, old:] *= 0.5 * norm / w.movedim(1, 0)[old:].flatten(1).norm(dim=1).mean()
        for norm in (net.bn3, net.bn8):  # the gradient of the filters at zero, however they start
            norm.weight.data[4:] = 1
        net.conv3.weight.data[4:], net.conv8.weight.data[4:] = 0, 0
        net.eval()
        nn.functional.cross_entropy(net(x), y).backward()
        return net.conv3.weight.grad[4:].norm().item() + net.conv8.weight.grad[4:].norm().item()

    assert incoming_gradient("gradmax") > 1.2 * incoming_gradient("he")


def test_behind_a_batch_norm_gradmax_closes_its_scale_and_points_the_filter_down_its_gradient() -> None:
    torch.manual_seed(0)
    net, x, y = backbones.build("resnet20", seed_width=4), torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    ChannelGraph.trace(net, x)
    with torch.no_grad():
        before = net(x)
    resize(net, {"layer1.0.conv1": 6}, init="gradmax", batch=(x, y), seed=0)
    filters, scale = net.layer1[0].conv1.weight, net.layer1[0].bn1.weight
    assert not scale[4:].any() and torch.allclose(filters[4:].flatten(1).norm(dim=1), torch.tensor(2.0).sqrt())
    shut = copy.deepcopy(net)
    shut.layer1[0].bn1.weight.data[4:], shut.layer1[0].conv1.weight.data[4:] = 1, 0
    shut.eval()
    nn.functional.cross_entropy(shut(x), y).backward()
    towards = nn.functional.cosine_similarity(filters[4:].flatten(1), shut.layer1[0].conv1.weight.grad[4:].flatten(1))
    assert (towards < -0.999).all()
    net.eval()
    nn.functional.cross_entropy(net(x), y).backward()
    assert (scale.grad[4:] < 0).all()  # opening it lowers the loss
    with torch.no_grad():
        torch.testing.assert_close(net.train()(x), before, atol=5e-3, rtol=0)


def test_a_gradmax_step_behind_a_batch_norm_is_no_longer_than_any_other() -> None:
    torch.manual_seed(0)
    net, x, y = backbones.build("resnet20", seed_width=4), torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    ChannelGraph.trace(net, x)
    resize(net, dict.fromkeys(("conv1", "layer1.0.conv1", "layer2.0.conv2"), 6), init="gradmax", batch=(x, y), seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    assert all(parameter.abs().max() < 10 for parameter in net.parameters())
    assert nn.functional.cross_entropy(net(x), y) < loss


class Attends(nn.Module):
    """Pixels that attend to each other, in one call or written out."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.a, self.b, self.head, self.whole = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 2), whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.b(torch.tanh(self.a(x))).flatten(2).transpose(1, 2)
        if self.whole:
            heads = t[:, None].contiguous()
            return self.head(nn.functional.scaled_dot_product_attention(heads, heads, heads).mean((1, 2)))
        return self.head(((t @ t.transpose(1, 2) / 6**0.5).softmax(-1) @ t).mean(1))


def test_gradmax_reaches_through_attention() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 4, 4), torch.randint(2, (8,))
    written, whole = Attends(False), Attends(True)
    whole.load_state_dict(written.state_dict())
    for net in (written, whole):
        ChannelGraph.trace(net, x)
        resize(net, {"a": 6}, init="gradmax", batch=(x, y), seed=0)
    assert whole.b.weight[:, 4:].any()
    torch.testing.assert_close(whole.b.weight, written.b.weight, rtol=1e-3, atol=1e-5)


def test_gradmax_narrows_like_any_other_and_refuses_what_has_no_gradient_at_zero() -> None:
    torch.manual_seed(0)
    pool = nn.Sequential(nn.ReLU(), nn.LPPool2d(2, 2))  # its root of zeros has no derivative
    net = nn.Sequential(nn.Conv2d(3, 5, 1), pool, nn.Conv2d(5, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    x, y = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 0, 1])
    ChannelGraph.trace(net, x)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(GraphError, match="empty filters of '0' have no finite gradient"):
        resize(net, {"0": 6}, init="gradmax", batch=(x, y), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    resize(net, {"0": [0, 3]}, init="gradmax", batch=(x, y))
    assert torch.equal(net[0].weight, before["0.weight"][[0, 3]])


class Product(nn.Module):
    """Reads the weight of a linear layer by einsum: its filters are the channels, or its inputs are."""

    def __init__(self, filters: bool) -> None:
        super().__init__()
        self.a, self.head, self.equation = nn.Conv2d(3, 4, 1), nn.Linear(6, 2), f"nchw,{'dc' if filters else 'cd'}->nd"
        self.b = nn.Linear(4, 6) if filters else nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.einsum(self.equation, self.a(x), self.b.weight))


def test_a_linear_weight_that_a_product_reads_grows_like_a_linear_layer() -> None:
    net, x = Product(filters=True), torch.randn(4, 3, 4, 4)
    graph = ChannelGraph.trace(net, x)
    assert [group.kind for group in graph.groups] == ["convolution", "linear"]
    before = net(x)
    resize(net, {"a": 5, "b": 8}, init="gradmax", batch=(x, torch.tensor([0, 1, 0, 1])), seed=0)
    assert net.b.weight.shape == (8, 5) and net.b.bias.shape == (6,)
    torch.testing.assert_close(net(x), before, rtol=0, atol=0.1)


def test_a_linear_weight_whose_inputs_are_the_channels_of_a_product_is_no_layer_that_grows() -> None:
    net, x = Product(filters=False), torch.randn(4, 3, 4, 4)
    graph = ChannelGraph.trace(net, x)
    assert [(group.name, group.kind, group.producers) for group in graph.groups] == [
        ("a", "convolution", ("a",)),
        ("b", "other", ()),
    ]
    with pytest.raises(GraphError, match="the channels of 'b' are not the filters of a layer"):
        resize(net, {"b": 8}, init="gradmax", batch=(x, torch.tensor([0, 1, 0, 1])))
    resize(net, {"a": 5, "b": 8}, init="zero_out")
    assert net.b.weight.shape == (5, 8)
