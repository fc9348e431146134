"""Stages are found on any traced network, and get deeper or shallower in place."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Plain, Stages
from torch import nn

from budgetnet import ChannelGraph, CostModel, backbones
from budgetnet.channels import GraphError
from budgetnet.channels.depth import Stage, change_depth, depths, find_stages
from budgetnet.optim.sgd import sgd


class Picky(nn.Module):
    """Runs the two blocks of its sequence by number: a third would not be run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage, self.head = nn.Conv2d(1, 4, 3), nn.Sequential(Plain(4, 4), Plain(4, 4)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage[1](self.stage[0](self.stem(x))).mean((2, 3)))


def traced(net: nn.Module, channels: int = 3, size: int = 16) -> nn.Module:
    ChannelGraph.trace(net, torch.empty(1, channels, size, size))
    return net


def resnet(name: str = "resnet20") -> tuple[nn.Module, tuple[Stage, ...]]:
    torch.manual_seed(0)
    net = traced(backbones.build(name))
    return net, find_stages(net)


def own() -> tuple[nn.Module, tuple[Stage, ...]]:
    torch.manual_seed(0)
    net = traced(Stages(), 1)
    return net, find_stages(net)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_the_stages_of_a_resnet_are_its_layers(name: str) -> None:
    net, stages = resnet(name)
    layers = [path for path, _ in net.named_children() if path.startswith("layer")]
    assert [stage.name for stage in stages] == layers
    expected = (*backbones.resnet_cifar.DEPTHS.get(name, ()), *backbones.resnet.DEPTHS.get(name, ()))
    assert tuple(depths(net, stages).values()) == expected


@pytest.mark.parametrize("name", ["lenet5", "vgg11"])
def test_networks_without_blocks_have_no_stage(name: str) -> None:
    net = backbones.build(name)
    assert find_stages(traced(net, 1 if name == "lenet5" else 3, 28 if name == "lenet5" else 32)) == ()


def test_a_users_stages_are_found_where_blocks_are_alike_and_keep_the_shape() -> None:
    assert depths(*own()) == {"body.wide": 3, "body.deep": 2, "body.joined": 2, "body.plain": 2}


def test_what_holds_something_frozen_is_no_stage() -> None:
    net = Stages()
    ChannelGraph.trace(net, torch.empty(1, 1, 16, 16), frozen=("body.wide.1.gate", "body.deep"))
    assert [stage.name for stage in find_stages(net)] == ["body.joined", "body.plain"]


@pytest.mark.parametrize("make", [resnet, own])
def test_a_network_that_is_cut_and_grown_back_is_the_full_one_to_the_last_number(make: object) -> None:
    net, stages = make()  # type: ignore[operator]
    full, shapes = CostModel(ChannelGraph.of(net)).costs(), {n: t.shape for n, t in net.state_dict().items()}
    before, groups = depths(net, stages), ChannelGraph.of(net).groups
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    change_depth(net, stages, dict.fromkeys(before, 1))
    assert set(depths(net, stages).values()) == {1}
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    graph = change_depth(net, stages, before, seed=3)
    assert graph is ChannelGraph.of(net) and graph.groups == groups and CostModel(graph).costs() == full
    assert {n: t.shape for n, t in net.state_dict().items()} == shapes
    assert set(graph.verify()) == set(graph.widths)


def test_the_blocks_of_resnet20_make_a_resnet32() -> None:
    net, stages = resnet()
    graph = change_depth(net, stages, dict.fromkeys(depths(net, stages), 5), seed=0)
    other = ChannelGraph.of(traced(backbones.build("resnet32")))
    assert graph.groups == other.groups and CostModel(graph).costs() == CostModel(other).costs()
    assert [(n, t.shape) for n, t in net.state_dict().items()] == [
        (n, t.shape) for n, t in other.model.state_dict().items()
    ]


def test_a_block_starts_as_a_function_of_seed_and_name_with_variance_two_per_input() -> None:
    (net, stages), (other, _) = resnet(), resnet()
    change_depth(net, stages, {"layer3": 5}, seed=7)
    change_depth(other, stages, {"layer1": 4}, seed=8)
    torch.manual_seed(99)
    change_depth(other, stages, {"layer3": 5}, seed=7)
    for name in ("layer3.3.conv1.weight", "layer3.4.conv2.weight"):
        assert torch.equal(net.get_parameter(name), other.get_parameter(name))
        assert net.get_parameter(name).var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert not torch.equal(net.get_parameter("layer3.3.conv1.weight"), net.get_parameter("layer3.4.conv1.weight"))
    assert net.get_parameter("layer3.4.bn2.weight").eq(1).all() and not net.get_parameter("layer3.4.bn2.bias").any()


@pytest.mark.parametrize("make", [resnet, own])
def test_zero_out_keeps_the_function_of_residual_stages_and_he_does_not(make: object) -> None:
    for init, same in (("zero_out", True), ("he", False)):
        net, stages = make()  # type: ignore[operator]
        net.double().eval()
        images = torch.rand(3, ChannelGraph.of(net).input_shape[1], 16, 16, dtype=torch.float64)
        before = net(images)
        residual = {name: depth + 2 for name, depth in depths(net, stages).items() if "plain" not in name}
        change_depth(net, stages, residual, init=init, seed=0)
        assert torch.equal(net(images), before) == same
        net.train()(images).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_old_state_stays_bit_for_bit_and_new_parameters_join_their_kind_in_the_order_of_the_model() -> None:
    net, stages = resnet()
    change_depth(net, stages, dict.fromkeys(depths(net, stages), 1))
    optimizer = sgd(net, lr=0.1, momentum=0.9, weight_decay=5e-4)
    net(torch.randn(4, 3, 16, 16)).sum().backward()
    optimizer.step()
    old = {name: (p, p.detach().clone(), optimizer.state[p]["momentum_buffer"]) for name, p in net.named_parameters()}
    change_depth(net, stages, {"layer2": 3, "layer1": 2}, optimizer, seed=0)
    for name, (parameter, value, momentum) in old.items():
        assert net.get_parameter(name) is parameter and torch.equal(parameter, value)
        assert optimizer.state[parameter]["momentum_buffer"] is momentum
    fresh = sgd(net, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for group, expected in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected["params"]]
        assert group["weight_decay"] == expected["weight_decay"]
    net(torch.randn(4, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert all("momentum_buffer" in optimizer.state[p] for p in net.parameters())
    change_depth(net, stages, {"layer2": 1}, optimizer)
    assert set(optimizer.state) == set(net.parameters()) == {p for g in optimizer.param_groups for p in g["params"]}


def test_a_block_is_made_in_the_networks_precision_mode_and_memory_format() -> None:
    net, stages = resnet()
    net.to(torch.float64, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    change_depth(net, stages, {"layer1": 4})
    block = net.get_submodule("layer1.3")
    assert not block.training and {p.dtype for p in block.parameters()} == {torch.float64}
    assert net.get_parameter("layer1.3.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for stage in stages for p in stage.template.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        ({"layer4": 2}, {}, "no stage is called 'layer4'"),
        ({"layer1": 0}, {}, "layer1: cannot have depth 0"),
        ({"layer1": True}, {}, "layer1: cannot have depth True"),
        ({"layer1": 4}, {"init": "gradmax"}, "init='gradmax'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_nothing_has_changed(
    plan: dict[str, int], options: dict[str, str], message: str
) -> None:
    net, stages = resnet()
    graph = ChannelGraph.of(net)
    with pytest.raises(GraphError, match=message) as error:
        change_depth(net, stages, plan, init=options.get("init", "he"))
    assert "\n" not in str(error.value)
    assert ChannelGraph.of(net) is graph and depths(net, stages) == {"layer1": 3, "layer2": 3, "layer3": 3}


def test_a_block_that_does_not_fit_or_is_not_run_is_taken_out_again() -> None:
    net, stages = resnet()
    wrong = (Stage("layer1", stages[1].template),)
    picky = traced(Picky(), 1)
    for model, found, message in ((net, wrong, "does not take inputs"), (picky, find_stages(picky), "stage.2: ")):
        graph, state = ChannelGraph.of(model), copy.deepcopy(model.state_dict())
        with pytest.raises(GraphError, match=message):
            change_depth(model, found, {found[0].name: depths(model, found)[found[0].name] + 1})
        assert ChannelGraph.of(model) is graph and model.state_dict().keys() == state.keys()
        assert set(graph.widths) == set(ChannelGraph.of(model).widths)
