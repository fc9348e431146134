"""Gradients of blocks are in equilibrium, classifiers hear each other, and one teaches all."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from budgetnet.backbones import msdnet, ranet
from budgetnet.backbones.exits import ExitNetwork
from budgetnet.costs.exits import ExitCosts
from budgetnet.methods.exits.imta import Collaborating, equilibrated, one_for_all_losses, rescale
from budgetnet.methods.exits.meta import applied, meta_gradient, step_of
from budgetnet.methods.exits.weights import exit_losses, weighted_loss

NETWORKS: dict[str, partial[ExitNetwork]] = {
    "msdnet": partial(msdnet.build, 7, 3, (16, 16), exits=3, channels=4, growth=4),
    "ranet": partial(ranet.build, 7, 3, (16, 16), channels=4, growth=4, step=1, first_blocks=1, more_blocks=1),
}
LABELS = torch.tensor([0, 5, 3, 1, 6, 2])


def network_and_images(name: str = "msdnet") -> tuple[ExitNetwork, Tensor]:
    torch.manual_seed(0)
    return NETWORKS[name]().double(), torch.randn(6, 3, 16, 16, dtype=torch.float64)


def gradients(network: ExitNetwork, losses: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        losses, list(network.parameters()), retain_graph=True, materialize_grads=True, allow_unused=True
    )
    return dict(zip(dict(network.named_parameters()), found))


def block_of(name: str, network: ExitNetwork) -> int:
    """The number of the block that a parameter is in; 0 for the stem."""
    parts = name.split(".")
    if parts[0] == "stem":
        return 0
    if parts[0] == "blocks":
        return int(parts[1])
    place = (int(parts[1]), int(parts[2]))
    return next(number for number, stage in enumerate(network._stages) if place in stage)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_a_block_is_the_mean_of_those_of_the_exits_that_follow(name: str) -> None:
    network, images = network_and_images(name)
    plain, even = network(images), equilibrated(network, images)
    assert all(torch.equal(a, b) for a, b in zip(plain, even))
    single = [gradients(network, exit_losses(plain, LABELS)[:, k].mean()) for k in range(network.exits)]
    found = gradients(network, exit_losses(even, LABELS).mean(0).sum())
    for parameter, gradient in found.items():
        total = sum(each[parameter] for each in single)
        if not parameter.startswith("classifiers"):
            total = total / (network.exits - block_of(parameter, network))
        torch.testing.assert_close(gradient, total, rtol=1e-9, atol=1e-13)


def test_a_rescaled_gradient_is_rescaled_in_every_kind_of_derivative() -> None:
    x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(rescale(x, 0.5) ** 3, x, create_graph=True)
    assert first == 0.5 * 27
    assert torch.autograd.grad(first, x)[0] == 0.5 * 0.5 * 18
    assert torch.func.jvp(lambda y: rescale(y, 0.5) ** 3, (x.detach(),), (torch.ones_like(x),))[1] == 0.5 * 27


def test_with_equilibrium_both_ways_still_give_the_same_meta_gradient() -> None:
    network, images = network_and_images()
    net = Collaborating(network).freeze(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    weights = 1 + torch.rand(3, 3, dtype=torch.float64)

    def losses(params: dict[str, Tensor], half: int = 0) -> Tensor:
        part = slice(3 * half, 3 * half + 3)
        return exit_losses(applied(net, params, images[part]), LABELS[part])

    def meta_loss(params: dict[str, Tensor]) -> Tensor:
        return losses(params, 1).mean()

    params = {name: value for name, value in net.named_parameters() if value.requires_grad}
    step = step_of(optimizer, net)
    graph = meta_gradient(losses, meta_loss, params, weights, step, "graph").gradient
    jvp = meta_gradient(losses, meta_loss, params, weights, step, "jvp").gradient
    assert graph.abs().min() > 1e-9
    torch.testing.assert_close(jvp, graph, rtol=1e-10, atol=1e-14)


def test_the_losses_of_one_teacher_are_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    teacher = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    labels, gamma, temperature = torch.tensor([0, 4, 2, 2]), 0.3, 2.0
    losses = one_for_all_losses(exit_losses(logits, labels), logits, teacher, gamma, temperature)
    for i in range(4):
        target = [math.exp(float(t) / temperature) for t in teacher[i]]
        for k in range(3):
            said = [math.exp(float(s)) for s in logits[k][i]]
            expected = -math.log(said[int(labels[i])] / sum(said))
            if k < 2:
                soft = [math.exp(float(s) / temperature) for s in logits[k][i]]
                divergence = sum(
                    t / sum(target) * math.log((t / sum(target)) / (s / sum(soft))) for t, s in zip(target, soft)
                )
                expected = (1 - gamma) * expected + gamma * temperature**2 * divergence / 5
            assert abs(float(losses[i, k]) - expected) < 1e-12


def test_a_collaborating_network_learns_in_its_linear_classifiers_alone() -> None:
    network, images = network_and_images()
    before = copy.deepcopy(network.state_dict())
    both = Collaborating(network)
    optimizer = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        logits = both.train()(images)
        losses = one_for_all_losses(exit_losses(logits, LABELS), logits, both.teacher(images))
        weighted_loss(losses, torch.ones_like(losses)).backward()
        optimizer.step()
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert {n.split(".")[0] for n, p in both.named_parameters() if p.grad is not None} == {"classifiers"}
    assert all(p.grad is not None for p in both.classifiers.parameters())


def test_a_classifier_reads_its_features_and_what_the_one_before_it_said() -> None:
    network, images = network_and_images()
    both = Collaborating(network).eval()
    linears = [classifier.linear for classifier in both.classifiers]
    assert [tuple(linear.weight.shape) for linear in linears] == [(7, 128), (7, 256), (7, 256)]
    with torch.no_grad():
        logits = both(images)
        assert all(torch.equal(a, b) for a, b in zip(logits, both.lazily(images), strict=True))
        assert all(torch.equal(both.exit_after(images, k), logits[k]) for k in range(3))
        linears[0].bias += 1
        assert not torch.equal(both(images)[2], logits[2])
        assert torch.equal(both.teacher(images), network.eval()(images)[-1])


@pytest.mark.parametrize(("step", "features"), [(6, [384, 448, 448, 416, 800]), (7, [384, 480, 496, 472, 920])])
def test_classifiers_for_imagenet_read_as_many_features_as_the_networks_give(step: int, features: list[int]) -> None:
    with torch.device("meta"):
        both = Collaborating(msdnet.build(1000, 3, (224, 224), step=step))
    assert [classifier.linear.in_features for classifier in both.classifiers] == [
        features[0], *(2 * width for width in features[1:])
    ]  # fmt: skip


def test_what_collaboration_costs_is_counted() -> None:
    network, _ = network_and_images()
    plain, both = (
        ExitCosts(network, (3, 16, 16)).lazy["macs"],
        ExitCosts(Collaborating(network), (3, 16, 16)).lazy["macs"],
    )
    assert [b - a for a, b in zip(plain, both)] == [0, 2 * 7 * 128, 4 * 7 * 128]
