from __future__ import annotations

import copy
import warnings

import pytest
import torch
from nets import Odd, odd, step
from torch import nn

from budgetnet import LBI, ChannelGraph, resize
from budgetnet.channels import GraphError


@pytest.mark.parametrize("init", ["he", "zero_out"])
def test_old_slices_stay_bit_identical(init: str) -> None:
    net = odd()
    old = copy.deepcopy(net.state_dict())
    resize(net, {"stem": 11, "attention.reduce": 6}, init=init)
    assert torch.equal(net.stem.weight[:8], old["stem.weight"])
    assert torch.equal(net.norm.running_var[:8], old["norm.running_var"])
    assert torch.equal(net.attention.reduce.weight[:4, :8], old["attention.reduce.weight"])
    assert torch.equal(net.depthwise.weight[:8], old["depthwise.weight"])
    assert (net.depthwise.groups, net.norm.num_features, net.pointwise.in_channels) == (11, 11, 11)


def test_columns_behind_a_concatenation_are_inserted_in_their_segment() -> None:
    net = odd()
    old = net.mix.weight.detach().clone()
    resize(net, {"left": 7})
    assert torch.equal(net.mix.weight[:, :5], old[:, :5])
    assert torch.equal(net.mix.weight[:, 7:], old[:, 5:])


def test_columns_behind_a_flatten_follow_their_channel() -> None:
    net = odd()
    old = net.hidden.weight.detach().clone().reshape(14, 9, 2 * 16)
    resize(net, {"grouped": 12})
    new = net.hidden.weight.detach().reshape(14, 12, 2 * 16)
    assert torch.equal(new[:, [0, 1, 2, 4, 5, 6, 8, 9, 10]], old)  # three blocks of three, each grown by one


def test_narrowing_keeps_the_named_channels() -> None:
    net = odd(torch.float64)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():  # a channel that nothing reads may go without changing the function
        net.mix.weight[:, 1] = 0
    net.eval()
    before = net(x)
    resize(net, {"left": [0, 2, 3, 4]})
    assert torch.allclose(net(x), before, atol=1e-12)
    assert ChannelGraph.of(net).widths["left"] == 4


@pytest.mark.parametrize("kept", [[2, 1], [0, 0], [5], [], [-1, 0]])
def test_an_impossible_index_set_is_refused(kept: list[int]) -> None:
    with pytest.raises(GraphError, match="increasing indices below 5"):
        resize(odd(), {"left": kept})


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: LBI([{"params": [q], "sparse": "filter" if q.dim() > 1 else None} for q in p], lr=0.1, nu=1.0),
    ],
    ids=["SGD", "AdamW", "LBI"],
)
def test_optimizer_state_moves_along_in_the_same_slots(make) -> None:  # type: ignore[no-untyped-def]
    net = odd()
    optimizer = make(list(net.parameters()))
    step(net, optimizer)
    slots = [[name_of(net, p) for p in group["params"]] for group in optimizer.param_groups]
    old = {name: copy.deepcopy(optimizer.state[p]) for name, p in net.named_parameters()}
    resize(net, {"stem": 11, "mix": 15}, optimizer=optimizer)
    assert [[name_of(net, p) for p in group["params"]] for group in optimizer.param_groups] == slots
    assert set(optimizer.state) == set(net.parameters())
    for key, value in old["mix.weight"].items():
        new = optimizer.state[net.mix.weight][key]
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            assert new.shape == net.mix.weight.shape
            kept = [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]  # three blocks, each grown by one
            assert torch.equal(new[kept], value)
            assert not new[[4, 9, 14]].any()
        else:
            assert torch.equal(torch.as_tensor(new), torch.as_tensor(value))
    step(net, optimizer)


def name_of(net: nn.Module, parameter: torch.Tensor) -> str:
    return next(name for name, p in net.named_parameters() if p is parameter)


def test_a_plan_that_changes_nothing_is_a_no_op_with_a_warning() -> None:
    net = odd()
    parameters = list(net.parameters())
    with pytest.warns(UserWarning, match="changes nothing"):
        resize(net, {"left": 5})
    assert all(a is b for a, b in zip(parameters, net.parameters()))


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        ({"lefd": 6}, {}, "did you mean 'left'"),
        ({"left": 0}, {}, "cannot have width 0"),
        ({"grouped": 10}, {}, "multiples of 3"),
        ({"left": 6}, {"init": "xavier"}, "unknown initialisation"),
        ({"left": 6}, {"init": "gradmax"}, "pass batch"),
    ],
)
def test_an_impossible_plan_changes_nothing(plan: dict[str, int], options: dict[str, str], message: str) -> None:
    net = odd()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(GraphError, match=message):
        resize(net, plan, **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_untraced_and_a_ddp_wrapped_model_are_refused() -> None:
    with pytest.raises(GraphError, match="no channel graph yet"):
        resize(Odd(), {"left": 6})
    wrapped = object.__new__(nn.parallel.DistributedDataParallel)
    with pytest.raises(GraphError, match="inside DistributedDataParallel"):
        resize(wrapped, {"left": 6})


def test_channels_last_stays_channels_last() -> None:
    net = odd().to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resize(net, {"stem": 11})
    assert net.left.weight.is_contiguous(memory_format=torch.channels_last)
    assert not net.left.weight.is_contiguous()


def test_frozen_parameters_stay_frozen() -> None:
    net = odd()
    net.left.weight.requires_grad_(False)
    resize(net, {"left": 6})
    assert not net.left.weight.requires_grad and net.left.bias.requires_grad


def hard() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardsigmoid(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(6, 4))
    ChannelGraph.trace(net, torch.empty(1, 3, 9, 9))
    return net


def test_a_resize_that_fails_on_the_way_leaves_model_and_optimizer_as_they_were() -> None:
    net = hard()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 3, 9, 9)).sum().backward()
    optimizer.step()
    parameters, state = dict(net.named_parameters()), dict(optimizer.state)
    with pytest.raises(GraphError, match=r"nothing has changed: derivative for .*hardsigmoid_backward"):
        resize(net, {"0": 10}, optimizer, init="gradmax", batch=(torch.randn(4, 3, 9, 9), torch.arange(4)))
    assert all(net.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert net[0].out_channels == 8 and optimizer.param_groups[0]["params"] == list(parameters.values())
    assert optimizer.state.keys() == state.keys() and all(optimizer.state[p] is state[p] for p in state)


class Foreign(torch.optim.SGD):
    """An optimizer with a state of its own for each parameter."""

    def __init__(self, parameters: list[nn.Parameter], make: object) -> None:
        super().__init__(parameters, lr=0.1)
        for parameter in parameters:
            self.state[parameter] = make(parameter)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: {"row": p.detach().flatten(1).sum(1) if p.dim() > 1 else None}, "'row', a Tensor of shape"),
        (lambda p: {"history": [p.detach(), p.detach().flatten()[:1]]}, "'history', a Tensor of shape"),
        (lambda p: {"note": {"a": 1}}, "'note', a dict"),
    ],
)
def test_an_optimizer_whose_state_cannot_follow_is_refused_before_anything_changes(make: object, message: str) -> None:
    net = hard()
    optimizer, before = Foreign(list(net.parameters()), make), dict(net.named_parameters())
    with pytest.raises(GraphError, match=f"optimizer Foreign keeps {message}"):
        resize(net, {"0": 10}, optimizer)
    assert all(net.get_parameter(name) is parameter for name, parameter in before.items())
    with pytest.raises(GraphError, match="LBFGS keeps a state of all parameters together"):
        resize(net, {"0": 10}, torch.optim.LBFGS(net.parameters()))


def test_an_optimizer_that_keeps_parameters_elsewhere_is_refused() -> None:
    class Wrapper(torch.optim.Optimizer):
        """It steps twice, as sharpness-aware minimisation does."""

        def __init__(self, parameters: list[nn.Parameter]) -> None:
            super().__init__(parameters, {})
            self.base = torch.optim.SGD(self.param_groups, lr=0.1)
            self.param_groups = self.base.param_groups

    net = hard()
    listed = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(GraphError, match="optimizer Wrapper keeps parameters in 'base' too"):
        resize(net, {"0": 10}, Wrapper(list(net.parameters())))
    listed.flat = list(net.parameters())
    with pytest.raises(GraphError, match="optimizer SGD keeps parameters in 'flat' too"):
        resize(net, {"0": 10}, listed)


def test_lists_of_states_of_a_parameters_shape_move_along() -> None:
    net = hard()
    optimizer = Foreign(list(net.parameters()), lambda p: {"history": [p.detach().clone(), p.detach() * 2], "step": 3})
    resize(net, {"0": 10}, optimizer, seed=0)
    one, two = optimizer.state[net[0].weight]["history"]
    assert one.shape == two.shape == net[0].weight.shape and torch.equal(two, one * 2) and not one[8:].any()
    assert optimizer.state[net[0].weight]["step"] == 3


class Own(nn.Module):
    """Parameters of its own beside a convolution: a scale that starts at 0.1, a shift, a mask, and PReLU's slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.PReLU(6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 0.1))
        self.shift = nn.Parameter(torch.arange(6.0).view(6, 1, 1))
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 1, 0, 1]).view(6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(x) * self.scale + self.shift) * self.mask).mean((2, 3))


def test_parameters_outside_layers_grow_along_from_the_value_they_began_with() -> None:
    net = Own()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 4, 4))
    assert graph.verify() == {"a": "function kept"}
    with torch.no_grad():
        net.scale += 1
    resize(net, {"a": 8}, seed=0)
    assert torch.equal(net.scale[6:].flatten(), torch.full((2,), 0.1)) and torch.equal(
        net.act.weight[6:], torch.full((2,), 0.25)
    )
    assert torch.equal(net.shift[6:].flatten(), torch.full((2,), 2.5)) and net.mask[6:].eq(1).all()


def test_a_shuffle_keeps_every_channel_at_its_place_in_its_block() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(nn.functional.channel_shuffle(self.a(x), 2)).mean((2, 3))

    net = Shuffled()
    graph = ChannelGraph.trace(net, torch.empty(1, 3, 4, 4))
    assert graph.group("a").blocks == 2
    filters, columns = net.a.weight.detach().clone(), net.b.weight.detach().clone()
    resize(net, {"a": 8}, init="zero_out", seed=0)
    assert torch.equal(net.a.weight[[0, 1, 2, 4, 5, 6]], filters)  # two blocks of three, each grown by one
    assert torch.equal(net.b.weight[:, :6], columns) and not net.b.weight[:, 6:].any()


def test_the_optimizer_of_another_model_is_refused() -> None:
    net, other = odd(), odd()
    with pytest.raises(GraphError, match="no parameter of this model"):
        resize(net, {"left": 7}, torch.optim.SGD(other.parameters(), 0.1))
    assert net.left.out_channels == 5
