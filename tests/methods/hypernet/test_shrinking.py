"""A widened network is cut to its budget, and the gradients that decide mean something from the second step on."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from nets import Odd
from torch import nn

from budgetnet import backbones
from budgetnet.backbones import densenet, mobilenet, regnet, resnet_projection
from budgetnet.channels import ChannelGraph, resize
from budgetnet.costs import CostModel
from budgetnet.errors import UsageError
from budgetnet.methods.hypernet import criteria, shrinking
from budgetnet.methods.hypernet.hypernetwork import Hypernetwork
from budgetnet.methods.hypernet.proximal import shrink_latents


def traced(name: str, multiplier: float = 1, shape: tuple[int, ...] = (3, 32, 32)) -> ChannelGraph:
    return ChannelGraph.trace(backbones.build(name, multiplier=multiplier), torch.empty(1, *shape))


def random_scores(graph: ChannelGraph, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.width, generator=generator) for group in graph.groups}


def test_what_a_threshold_keeps_within_the_budget_is_filled_up_until_no_channel_fits() -> None:
    graph = traced("vgg11", 0.25)
    limits = {"flops": 5_000_000, "params": 150_000}
    scores = {name: s for name, s in random_scores(graph).items() if name.startswith("conv")}
    floors = shrinking.floors_by_share(graph, 0.1, 0.2)
    threshold, plan = shrinking.narrow(graph, scores, floors, limits)
    widths = {name: len(channels) for name, channels in plan.items()}
    cost = CostModel(graph)

    def fits(chosen: dict[str, int]) -> bool:
        return all(cost.costs(chosen)[kind] <= most for kind, most in limits.items())

    assert fits(widths)
    assert not any(fits({**widths, name: width + 1}) for name, width in widths.items() if width < graph.widths[name])
    at_threshold = shrinking.kept_widths(graph, scores, floors, threshold)
    assert all(widths[name] >= width for name, width in at_threshold.items())
    every = torch.cat(list(scores.values())).double()
    assert not fits(shrinking.kept_widths(graph, scores, floors, every[every < threshold].max().item()))
    resize(graph.model, plan)
    assert graph.widths == {**graph.widths, **widths}


def learned_scores(graph: ChannelGraph, hypernetwork: Hypernetwork) -> dict[str, torch.Tensor]:
    """By the gradients of the second of two mini-batches."""
    torch.manual_seed(0)
    parameters = [*graph.model.parameters(), *hypernetwork.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    batches = [(torch.randn(8, *graph.input_shape[1:]), torch.arange(8)) for _ in range(2)]
    found = criteria.latent_gradients(graph.model, hypernetwork, batches, nn.functional.cross_entropy, optimizer)
    return criteria.gradient(hypernetwork, found[-1:])


@pytest.mark.parametrize("name", ["resnet56_projection", "mobilenet_v2", "regnet_y_200mf", "densenet40"])
def test_a_network_of_twice_the_width_is_cut_back_to_what_the_original_costs(name: str) -> None:
    torch.manual_seed(0)
    network = {
        "resnet56_projection": lambda: resnet_projection.build(10, 3, depth=8, multiplier=0.5),
        "mobilenet_v2": lambda: mobilenet.build(name, 10, 3, (16, 16), multiplier=0.25),
        "regnet_y_200mf": lambda: regnet.build(name, 10, 3, (16, 16), multiplier=0.5),
        "densenet40": lambda: densenet.build(10, 3, depth=10),
    }[name]()
    graph = ChannelGraph.trace(network, torch.empty(1, 3, 16, 16))
    original = CostModel(graph).costs()
    resize(network, shrinking.widened(graph, 2), init="zero_out", seed=0)
    assert CostModel(graph).costs()["flops"] > 3 * original["flops"]
    hypernetwork = Hypernetwork(graph, embedding=2)
    scores = learned_scores(graph, hypernetwork)
    floors = shrinking.floors_by_share(graph, 0.2, 0.45)
    _, plan = shrinking.narrow(graph, scores, floors, {"flops": original["flops"]})
    hypernetwork.write(network)
    resize(network, plan)
    used = CostModel(graph).costs()["flops"] / original["flops"]
    assert 0.98 < used <= 1
    assert all(graph.widths[name] >= floor for name, floor in floors.items())
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("multiplier", [1, 0.5, True, "2", 1e9])
def test_a_multiplier_that_widens_nothing_is_refused(multiplier: float) -> None:
    with pytest.raises(UsageError, match=r"method\.multiplier="):
        shrinking.widened(traced("lenet5", 1, (1, 28, 28)), multiplier)


def test_proximal_steps_take_latents_to_the_floor_and_the_mask_does_not_collapse() -> None:
    graph = traced("lenet5", 1, (1, 28, 28))
    hypernetwork = Hypernetwork(graph)
    fixed = hypernetwork.z.detach()[hypernetwork.latents.coupled[-1].stop :].clone()
    floors = shrinking.floors_by_count(graph, 4)
    counts = []
    for _ in range(60):
        shrink_latents(hypernetwork, step=0.1, floor=4, threshold=5e-3)
        counts.append(shrinking.kept_widths(graph, criteria.magnitude(hypernetwork), floors, 5e-3))
    assert all(before[g] >= after[g] for before, after in pairwise(counts) for g in before)
    assert counts[-1] == {"conv1": 4, "conv2": 4}
    assert torch.equal(hypernetwork.z.detach()[-len(fixed) :], fixed)


def test_every_group_keeps_the_part_rho_and_the_one_before_the_classifier_tau() -> None:
    graph = traced("lenet5", 4, (1, 28, 28))
    assert shrinking.floors_by_share(graph, 0.25, 0.5) == {"conv1": 6, "conv2": 16, "fc1": 120, "fc2": 168}
    assert shrinking.floors_by_share(graph, 0.0, 0.0) == dict.fromkeys(graph.widths, 1)
    assert shrinking.floors_by_count(graph, 4) == dict.fromkeys(graph.widths, 4)
    floors = shrinking.floors_by_share(graph, 0.25, 0.5)
    scores = {"conv1": torch.full((24,), 1e-9), "conv2": torch.ones(64)}
    least = CostModel(graph).costs({"conv1": 6, "conv2": 16})
    _, plan = shrinking.narrow(graph, scores, floors, {"flops": least["flops"] + 1000})
    assert {name: len(channels) for name, channels in plan.items()} == {"conv1": 6, "conv2": 16}


def test_blocks_lose_equally_many_channels_and_concatenated_groups_shrink_alone() -> None:
    graph = ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8))
    limits = {"params": CostModel(graph).costs()["params"] // 2}
    hypernetwork = Hypernetwork(graph)
    _, plan = shrinking.narrow(graph, criteria.magnitude(hypernetwork), shrinking.floors_by_count(graph, 1), limits)
    hypernetwork.write(graph.model)
    resize(graph.model, plan)  # refuses a list that takes more of one block than of another
    assert CostModel(graph).costs()["params"] <= limits["params"]
    assert graph.model.eval()(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_groups_that_a_parameter_free_shortcut_joins_keep_the_same_channels() -> None:
    graph = traced("resnet20", 0.5)
    limits = {"flops": CostModel(graph).costs()["flops"] // 2}
    _, plan = shrinking.narrow(graph, random_scores(graph), shrinking.floors_by_share(graph, 0.2, 0.4), limits)
    stem = plan["conv1"]
    assert all([c for c in plan[f"layer{s}.{b}.conv2"] if c < 8] == stem for s in (1, 2, 3) for b in range(3))


def test_floors_above_the_budget_are_refused_with_the_option_and_both_numbers() -> None:
    graph = traced("lenet5", 2, (1, 28, 28))
    floors = shrinking.floors_by_share(graph, 0.9, 0.9)
    with pytest.raises(UsageError, match=r"budget\.flops=1,000 is below the [\d,]+ of the channels that the floors"):
        shrinking.narrow(
            graph, {n: s for n, s in random_scores(graph).items() if n in ("conv1", "conv2")}, floors, {"flops": 1000}
        )


@pytest.mark.parametrize(("rho", "tau", "named"), [(1.1, 0.4, "rho=1.1"), (0.4, -1, "tau=-1"), ("a", 0, "rho='a'")])
def test_floors_that_are_no_parts_are_refused(rho: float, tau: float, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        shrinking.floors_by_share(traced("lenet5", 1, (1, 28, 28)), rho, tau)


class Normed(nn.Module):
    """Two convolutions with batch norms: (batch, 3, 8, 8) to (batch, 4)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 5, 3, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6, eps), nn.BatchNorm2d(5, eps)])
        self.classifier = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](self.first(x)).relu()
        return self.classifier(self.norms[1](self.second(x)).relu().mean((2, 3)))


def gradients(eps: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = Normed(eps).double()
    hypernetwork = Hypernetwork(ChannelGraph.trace(network, torch.empty(1, 3, 8, 8))).double()
    optimizer = torch.optim.SGD([*network.parameters(), *hypernetwork.parameters()], lr=0.1, momentum=0.9)
    batches = [(torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.arange(16) % 4) for _ in range(2)]
    found = criteria.latent_gradients(network, hypernetwork, batches, nn.functional.cross_entropy, optimizer)
    return [hypernetwork.split(g)["second"] for g in found]


def test_the_first_gradient_before_the_classifier_is_an_effect_of_eps_and_the_second_is_not() -> None:
    (first, second), (finer_first, finer_second) = gradients(1e-5), gradients(1e-7)
    assert (first / finer_first).abs().median().item() == pytest.approx(100, rel=0.05)
    assert (second / finer_second).abs().median().item() == pytest.approx(1, rel=0.05)


def test_averaged_gradients_and_the_controls_are_scores_of_every_group() -> None:
    graph = traced("lenet5", 1, (1, 28, 28))
    hypernetwork = Hypernetwork(graph)
    found = [torch.full_like(hypernetwork.z, value) for value in (1.0, -4.0)]
    scores = criteria.gradient(hypernetwork, found)
    assert {name: s.tolist() for name, s in scores.items()} == {"conv1": [1.5] * 6, "conv2": [1.5] * 16}
    magnitude = criteria.magnitude(hypernetwork)
    assert torch.equal(magnitude["conv2"], hypernetwork.split(hypernetwork.z.detach().abs())["conv2"])
    one, same, other = (criteria.random(hypernetwork, seed) for seed in (0, 0, 1))
    assert torch.equal(one["conv1"], same["conv1"]) and not torch.equal(one["conv1"], other["conv1"])


def test_a_copy_of_a_network_is_not_changed_by_its_hypernetwork() -> None:
    graph = traced("lenet5", 1, (1, 28, 28))
    before = copy.deepcopy(graph.model.state_dict())
    torch.func.functional_call(graph.model, Hypernetwork(graph)(), (torch.randn(2, 1, 28, 28),))
    assert all(torch.equal(before[name], value) for name, value in graph.model.state_dict().items())
