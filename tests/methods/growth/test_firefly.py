from __future__ import annotations

import copy

import pytest
import torch
from nets import Odd
from torch import Tensor, nn

from budgetnet import backbones, resize
from budgetnet.channels import ChannelGraph, GraphError
from budgetnet.costs import CostModel
from budgetnet.methods.growth import GrowthRule, Limit, Planner, firefly_candidates, load

SHAPES = {"lenet5": (1, 28, 28), "vgg11": (3, 32, 32), "resnet20": (3, 16, 16)}


def trained(name: str, **options: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A backbone in double precision whose norms have seen images, and a batch."""
    torch.manual_seed(0)
    shape = SHAPES[name]
    net = backbones.build(name, num_classes=4, in_channels=shape[0], **options).double()
    ChannelGraph.trace(net, torch.empty(1, *shape))
    batch = torch.randn(12, *shape, dtype=torch.float64), torch.arange(12) % 4
    net(batch[0])
    return net.eval(), batch


def convolutions(net: nn.Module, fresh: int = 2) -> dict[str, int]:
    return {group.name: fresh for group in ChannelGraph.of(net).groups if group.kind == "convolution"}


NETS: list[tuple[str, dict[str, int]]] = [
    ("lenet5", {}), ("vgg11", {"seed_width": 4}), ("resnet20", {"seed_width": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), NETS)
def test_splits_at_distance_0_and_shut_gates_keep_the_function_and_training_lowers_the_loss(
    name: str, options: dict[str, int]
) -> None:
    net, (inputs, targets) = trained(name, **options)
    loss = nn.functional.cross_entropy(net(inputs), targets).item()
    still = firefly_candidates(net, convolutions(net), (inputs, targets), steps=0, radius=0.0)
    assert all(still.splits.values()) and still.loss(still.gates(), (inputs, targets)).item() == pytest.approx(loss)
    untrained, moved = (firefly_candidates(net, convolutions(net), (inputs, targets), steps=steps) for steps in (0, 4))
    shut = {group: torch.zeros_like(gate) for group, gate in moved.gates().items()}
    assert moved.loss(shut, (inputs, targets)).item() == pytest.approx(loss, rel=1e-12)
    losses = [some.loss(some.gates(), (inputs, targets)).item() for some in (untrained, moved)]
    assert losses[1] < losses[0]


class Upsampling(nn.Module):
    """A transposed convolution reads channels along the first axis of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.first(x).relu()).relu()).mean((2, 3))


def test_splits_and_new_channels_that_a_transposed_convolution_reads_keep_the_function() -> None:
    torch.manual_seed(0)
    net = Upsampling().double()
    ChannelGraph.trace(net, torch.empty(1, 1, 8, 8))
    batch = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.arange(12) % 4
    loss = nn.functional.cross_entropy(net(batch[0]), batch[1]).item()
    still = firefly_candidates(net, {"first": 2}, batch, steps=0, radius=0.0)
    assert still.splits == {"first": 4} and still.loss(still.gates(), batch).item() == pytest.approx(loss, rel=1e-12)
    moved = firefly_candidates(net, {"first": 2}, batch, steps=4)
    shut = {group: torch.zeros_like(gate) for group, gate in moved.gates().items()}
    assert moved.loss(shut, batch).item() == pytest.approx(loss, rel=1e-12)
    assert moved.loss(moved.gates(), batch).item() < loss


@pytest.mark.parametrize(("name", "options"), NETS)
def test_a_score_is_the_finite_difference_of_the_loss_in_its_gate(name: str, options: dict[str, int]) -> None:
    net, batch = trained(name, **options)
    candidates = firefly_candidates(net, convolutions(net), batch, steps=1)
    group = list(candidates.scores)[1]
    assert len(candidates.scores[group]) == candidates.splits[group] + 2
    for index in (0, candidates.splits[group] - 1, -2, -1):
        found = []
        for shift in (1e-6, -1e-6):
            gates = candidates.gates()
            gates[group][index] += shift
            found.append(candidates.loss(gates, batch).item())
        assert candidates.scores[group][index] == pytest.approx((found[1] - found[0]) / 2e-6, rel=1e-4, abs=1e-9)


def test_where_a_shortcut_carries_copies_on_only_new_channels_are_proposed_and_shut_gates_keep_the_function() -> None:
    net, batch = trained("resnet20")  # stages of 16, 32, 64: what is behind 16 and 32 channels is read
    candidates = firefly_candidates(net, convolutions(net), batch, steps=1)
    assert candidates.splits["conv1"] == 0 and candidates.splits["layer1.0.conv1"] == 16
    shut = {group: torch.zeros_like(gate) for group, gate in candidates.gates().items()}
    assert candidates.loss(shut, batch).item() == pytest.approx(
        nn.functional.cross_entropy(net(batch[0]), batch[1]).item()
    )


def test_the_network_and_the_random_state_stay_as_they_are_and_the_seed_says_all() -> None:
    net, batch = trained("vgg11", seed_width=4)
    net.train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    first = firefly_candidates(net, convolutions(net), batch, seed=3, steps=2)
    started = first.start({"conv2": 7})
    torch.rand(3)
    again = firefly_candidates(net, convolutions(net), batch, seed=3, steps=2)
    other = firefly_candidates(net, convolutions(net), batch, seed=4, steps=2)
    assert first.scores == again.scores != other.scores
    assert all(torch.equal(value, again.start({"conv2": 7})[name]) for name, value in started.items())
    torch.set_rng_state(state)
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def grown(net: nn.Module, widths: dict[str, int], start: dict[str, Tensor]) -> nn.Module:
    net = copy.deepcopy(net)
    resize(net, widths, seed=0)
    with torch.no_grad():
        load(net, start)
    return net


def test_the_grown_network_is_the_one_in_which_the_best_gates_are_open_and_all_others_shut() -> None:
    net, batch = trained("vgg11", seed_width=4)
    candidates = firefly_candidates(net, convolutions(net), batch, steps=2)
    widths = {"conv1": 7, "conv3": 5}
    gates = {group: torch.zeros_like(gate) for group, gate in candidates.gates().items()}
    for group, width in widths.items():
        gates[group][torch.tensor(candidates.scores[group]).topk(width - 4).indices] = 1
    larger = grown(net, widths, candidates.start(widths))
    assert ChannelGraph.of(larger).widths == {**ChannelGraph.of(net).widths, **widths}
    loss = nn.functional.cross_entropy(larger(batch[0]), batch[1]).item()
    assert loss == pytest.approx(candidates.loss(gates, batch).item(), rel=1e-12)
    assert torch.equal(larger.get_parameter("conv6.weight"), net.get_parameter("conv6.weight"))


def test_a_split_channel_and_its_copy_lie_on_both_sides_of_it_and_share_what_is_read() -> None:
    net, batch = trained("lenet5")
    candidates = firefly_candidates(net, {"conv1": 0, "conv2": 0}, batch, steps=2)
    best = max(range(6), key=lambda index: candidates.scores["conv1"][index])
    larger = grown(net, {"conv1": 7}, candidates.start({"conv1": 7}))
    old, new = net.get_parameter("conv1.weight"), larger.get_parameter("conv1.weight")
    assert torch.allclose((new[best] + new[6]) / 2, old[best]) and not torch.allclose(new[6], old[best])
    assert ((new[6] - old[best]).norm() / old[best].norm()).item() == pytest.approx(0.1)
    columns, before = larger.get_parameter("conv2.weight"), net.get_parameter("conv2.weight")
    assert torch.equal(columns[:, 6], before[:, best] / 2) and torch.equal(columns[:, best], before[:, best] / 2)
    others = [index for index in range(6) if index != best]
    assert torch.equal(new[others], old[others]) and torch.equal(columns[:, others], before[:, others])


def test_channels_beyond_the_candidates_are_new_ones() -> None:
    net, batch = trained("lenet5")
    candidates = firefly_candidates(net, {"conv1": 1}, batch, steps=1)
    larger = grown(net, {"conv1": 20}, candidates.start({"conv1": 20}))
    assert larger(batch[0]).isfinite().all() and larger.get_parameter("conv1.weight")[13:].flatten(1).norm(dim=1).all()


def test_a_group_in_blocks_is_named() -> None:
    torch.manual_seed(0)
    net = Odd()
    ChannelGraph.trace(net, torch.empty(1, 3, 8, 8))
    batch = torch.randn(4, 3, 8, 8), torch.arange(4)
    with pytest.raises(GraphError, match=r"'mix'.*blocks"):
        firefly_candidates(net, {"stem": 1, "mix": 3}, batch)
    plain = firefly_candidates(net, {"stem": 2, "attention.reduce": 1, "left": 1}, batch, steps=1)
    assert plain.splits == {"stem": 8, "attention.reduce": 4, "left": 5}


def planner(**rule: object) -> Planner:
    net = backbones.build("vgg11", seed_width=4)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32)))
    return Planner(cost, GrowthRule(policy="firefly", **rule), dict.fromkeys(convolutions(net), 6))  # type: ignore[arg-type]


def test_the_best_candidates_of_all_groups_together_are_taken_as_many_as_saturation_would_add() -> None:
    plans = planner(threshold=0.5, number=2, ratio=0.0)
    saturation = {"conv1": 0.9, "conv2": 0.8, "conv3": 0.1}  # two groups would get two channels each
    scores = {"conv3": [0.1, 5.0, 0.2], "conv4": [3.0, 4.0, 2.5], "conv1": [0.3], "conv5": [-1.0]}
    budget = [Limit("flops", "flops", 10 * plans.cost.flops())]
    plan = plans.plan(1, saturation, budget, scores=scores)
    assert plan.changes == {"conv3": 5, "conv4": 6, "conv1": 5}  # conv4's third is beyond its largest width
    assert set(plan.candidates) == set(plan.changes) and plan.stop is None
    assert plans.plan(1, {}, budget, scores=scores).stop == "saturation"


def test_channels_that_come_in_steps_are_judged_by_their_mean() -> None:
    plans = planner(threshold=0.5, number=2, ratio=0.0, round_to=2)
    budget = [Limit("flops", "flops", 10 * plans.cost.flops())]
    plan = plans.plan(1, {"conv1": 0.9}, budget, scores={"conv1": [5.0, 0.0, 0.0], "conv2": [3.0, 4.0]})
    assert plan.changes == {"conv2": 6}


def test_a_network_whose_last_pass_left_a_computed_weight_is_copied() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.utils.weight_norm(nn.Conv2d(4, 5, 1)), nn.Conv2d(5, 4, 1), nn.Flatten())
    batch = torch.randn(4, 3, 2, 2), torch.arange(4)
    ChannelGraph.trace(net, batch[0])
    net(batch[0])  # with a gradient, so that copy.deepcopy refuses it
    candidates = firefly_candidates(net, {"0": 2}, batch, steps=1)
    start = candidates.start({"0": 6})
    resize(net, {"0": 6})
    load(net, start)
    assert net(batch[0]).isfinite().all()
