"""The meta-gradient is the derivative of the loss after a real step of SGD, by both ways."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from budgetnet.methods.exits.allocation import allocate, allocated_loss, confidences
from budgetnet.methods.exits.meta import applied, meta_gradient, step_of
from budgetnet.methods.exits.weights import exit_losses, weighted_loss

SAMPLES, EXITS, CLASSES, Q = 8, 3, 4, 0.75


class Three(nn.Module):
    """Three exits, with batch norm and pooling on the way: (batch, 2, 8, 8) to three times (batch, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        channels = (2, 3, 4, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.Softplus(), nn.AvgPool2d(2))
            for a, b in pairwise(channels)
        )
        self.classifiers = nn.ModuleList(nn.Linear(channel, CLASSES) for channel in channels[1:])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = []
        for block, classifier in zip(self.blocks, self.classifiers):
            x = block(x)
            logits.append(classifier(x.mean((2, 3))))
        return tuple(logits)


class Problem:
    """A network in the midst of training: its optimizer has momentum buffers."""

    def __init__(self, **options: float | bool) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(1)
        self.network = Three().double()
        self.images = torch.randn(2, SAMPLES, 2, 8, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(CLASSES, (2, SAMPLES), generator=generator)
        self.weights = 1 + 0.8 * torch.randn(SAMPLES, EXITS, generator=generator, dtype=torch.float64)
        self.options = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.05, **options}
        self.optimizer = torch.optim.SGD(self.network.parameters(), **self.options)  # type: ignore[arg-type]
        if self.options["momentum"]:
            for _ in range(3):
                self.optimizer.zero_grad()
                exit_losses(self.network(self.images[0]), self.labels[0]).mean().backward()
                self.optimizer.step()

    def losses(self, params: dict[str, Tensor]) -> Tensor:
        return exit_losses(applied(self.network, params, self.images[0]), self.labels[0])

    def meta_loss(self, params: dict[str, Tensor]) -> Tensor:
        return allocated_loss(applied(self.network, params, self.images[1]), self.labels[1], Q)

    def gradient(self, way: str) -> tuple[Tensor, Tensor]:
        step = step_of(self.optimizer, self.network)
        params = dict(self.network.named_parameters())
        found = meta_gradient(self.losses, self.meta_loss, params, self.weights, step, way)  # type: ignore[arg-type]
        assert found.weights is self.weights
        return found.gradient, found.loss

    def after_a_real_step(self, weights: Tensor, groups: list[Tensor]) -> float:
        """The meta loss of a copy that takes a step of torch.optim.SGD with these weights."""
        losses = exit_losses(self.logits_after_a_real_step(weights), self.labels[1])
        return sum(float(losses[group, number].mean()) for number, group in enumerate(groups) if len(group))

    def groups(self) -> list[Tensor]:
        """What is allocated after a step with the problem's own weights."""
        return allocate(confidences(self.logits_after_a_real_step(self.weights)), Q)

    def logits_after_a_real_step(self, weights: Tensor) -> tuple[Tensor, ...]:
        network = copy.deepcopy(self.network)
        optimizer = torch.optim.SGD(network.parameters(), **self.options)  # type: ignore[arg-type]
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        optimizer.zero_grad()
        weighted_loss(exit_losses(network(self.images[0]), self.labels[0]), weights).backward()
        optimizer.step()
        with torch.no_grad():
            logits: tuple[Tensor, ...] = network(self.images[1])
        return logits


OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"dampening": 0.4}, {"nesterov": True}, {"momentum": 0.0}, {"weight_decay": 0.0}], ids=str
)


@OPTIONS
def test_both_ways_give_the_same_meta_gradient(options: dict[str, float]) -> None:
    problem = Problem(**options)
    (graph, loss), (jvp, same) = problem.gradient("graph"), problem.gradient("jvp")
    assert graph.abs().min() > 1e-7 and loss == same
    torch.testing.assert_close(jvp, graph, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"nesterov": True}], ids=str)
def test_it_is_the_derivative_of_the_loss_after_a_real_step(options: dict[str, float]) -> None:
    """Central differences of fourth order, with the allocation held."""
    problem = Problem(**options)
    gradient, loss = problem.gradient("jvp")
    groups = problem.groups()
    after = partial(problem.after_a_real_step, groups=groups)
    assert abs(float(loss) - after(problem.weights)) < 1e-12
    expected, h = torch.zeros_like(gradient), 2e-3
    for i in range(SAMPLES):
        for k in range(EXITS):
            e = torch.zeros_like(problem.weights)
            e[i, k] = h
            w = problem.weights
            expected[i, k] = (8 * (after(w + e) - after(w - e)) - (after(w + 2 * e) - after(w - 2 * e))) / (12 * h)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


def test_it_changes_nothing_that_training_goes_on_with() -> None:
    problem = Problem()
    before = copy.deepcopy((problem.network.state_dict(), problem.optimizer.state_dict()["state"]))
    for way in ("graph", "jvp"):
        problem.gradient(way)
    torch.testing.assert_close((problem.network.state_dict(), problem.optimizer.state_dict()["state"]), before)
    assert all(parameter.grad is not None for parameter in problem.network.parameters())


def test_without_momentum_buffers_the_first_step_is_that_of_plain_sgd() -> None:
    problem = Problem(dampening=0.4)
    problem.optimizer = torch.optim.SGD(problem.network.parameters(), **problem.options)  # type: ignore[arg-type]
    gradient, loss = problem.gradient("jvp")
    assert abs(float(loss) - problem.after_a_real_step(problem.weights, problem.groups())) < 1e-12
    torch.testing.assert_close(gradient, problem.gradient("graph")[0], rtol=1e-10, atol=1e-12)
