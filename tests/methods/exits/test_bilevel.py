"""A step of the weights' predictor is the authors' algorithm, written out, and the same for any number of processes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from budgetnet.backbones import msdnet
from budgetnet.errors import UsageError
from budgetnet.methods.exits.bilevel import Weighting, halves, meta_step, training_loss
from budgetnet.methods.exits.exchange import ALONE, Exchange, among_processes
from budgetnet.methods.exits.weights import Centring, WeightPrediction, exit_losses

SAMPLES, EXITS, Q, DELTA = 24, 3, 0.75, 0.8


class WithoutNorm(nn.Module):
    """Three exits; no statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(a, 6) for a in (48, 6, 6))
        self.classifiers = nn.ModuleList(nn.Linear(6, 5) for _ in range(EXITS))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, logits = images.flatten(1), []
        for block, classifier in zip(self.blocks, self.classifiers):
            x = block(x).tanh()
            logits.append(classifier(x))
        return tuple(logits)


def problem(
    network: nn.Module, shape: tuple[int, ...], centring: Centring
) -> tuple[nn.Module, torch.optim.SGD, Weighting, Tensor, Tensor]:
    """A network that has taken a step, and so has momentum buffers; a predictor; images and labels."""
    images = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    labels = torch.randint(5, (SAMPLES,))
    weighting = Weighting(WeightPrediction(EXITS, width=9).double(), centring, DELTA)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9, weight_decay=0.02)
    training_loss(exit_losses(network(images), labels), weighting)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer, weighting, images, labels


def written_out(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    weighting: Weighting,
    train: tuple[Tensor, Tensor],
    meta: tuple[Tensor, Tensor],
) -> list[Tensor]:
    """The predictor's gradient as the algorithm has it: one graph through the pseudo-step, sets of used samples."""
    pseudo = copy.deepcopy(network).train()
    params = dict(pseudo.named_parameters())
    losses = torch.stack([F.cross_entropy(each, train[1], reduction="none") for each in pseudo(train[0])], 1)
    u = weighting.predictor(losses.detach())
    mean = {"matrix": u.mean(), "sample": u.mean(1, keepdim=True), "exit": u.mean(0, keepdim=True)}[weighting.centring]
    total = ((1 + weighting.delta * (u - mean)) * losses).mean(0).sum()
    gradients = torch.autograd.grad(total, list(params.values()), create_graph=True)
    group, stepped = optimizer.param_groups[0], {}
    for (name, theta), gradient, parameter in zip(params.items(), gradients, network.parameters(), strict=True):
        buffer = optimizer.state[parameter]["momentum_buffer"]
        direction = gradient + group["weight_decay"] * theta.detach()
        stepped[name] = theta.detach() - group["lr"] * (group["momentum"] * buffer + direction)
    logits = functional_call(pseudo, stepped, (meta[0],))
    used: set[int] = set()
    loss = torch.zeros((), dtype=torch.float64)
    powers = [Q**k for k in range(1, EXITS + 1)]
    for k in range(EXITS):
        order = logits[k].softmax(1).amax(1).sort(descending=True, stable=True).indices.tolist()
        quota = math.floor(len(meta[1]) * powers[k] / sum(powers)) if k < EXITS - 1 else len(order)
        chosen = [i for i in order if i not in used][:quota]
        used.update(chosen)
        loss = loss + F.cross_entropy(logits[k][chosen], meta[1][chosen])
    return list(torch.autograd.grad(loss, list(weighting.predictor.parameters())))


CASES = [(centring, way) for centring in ("matrix", "sample", "exit") for way in ("jvp", "graph")]
QUICK = (("matrix", "jvp"), ("sample", "graph"), ("exit", "jvp"))


@pytest.mark.parametrize(
    ("centring", "way"), [pytest.param(*case, marks=[pytest.mark.soak] * (case not in QUICK)) for case in CASES]
)
def test_a_meta_step_is_the_algorithm_written_out(centring: Centring, way: str) -> None:
    torch.manual_seed(0)
    net = msdnet.build(
        5, 3, (8, 8), exits=EXITS, channels=4, growth=4, growth_factors=[1, 2], bottleneck_factors=[1, 2]
    )
    network, optimizer, weighting, images, labels = problem(net.double(), (3, 8, 8), centring)
    train, meta = halves(images, labels)
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()["state"]))
    for one, other in ((train, meta), (meta, train)):
        expected = written_out(network, optimizer, weighting, one, other)
        assert float(meta_step(network, optimizer, weighting, one, other, Q, way=way)) > 0  # type: ignore[arg-type]
        for parameter, gradient in zip(weighting.predictor.parameters(), expected):
            assert gradient.norm() > 1e-9
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close((network.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_training_loss_gives_no_gradient_to_what_predicts_the_weights() -> None:
    torch.manual_seed(0)
    network, _, weighting, images, labels = problem(WithoutNorm().double(), (3, 4, 4), "sample")
    training_loss(exit_losses(network(images), labels), weighting)[0].backward()
    assert all(parameter.grad is None for parameter in weighting.predictor.parameters())


def test_under_autocast_a_meta_step_is_in_full_precision() -> None:
    torch.manual_seed(0)
    network, predictor = WithoutNorm(), WeightPrediction(EXITS, width=9)
    optimizer, weighting = torch.optim.SGD(network.parameters(), lr=0.3), Weighting(predictor, "sample", DELTA)
    train, meta = halves(torch.randn(SAMPLES, 3, 4, 4), torch.randint(5, (SAMPLES,)))
    found = []
    for reduced in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            loss = meta_step(network, optimizer, weighting, train, meta, Q)
        found.append([loss, *(parameter.grad for parameter in predictor.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_an_odd_batch_has_one_more_in_its_first_half_and_a_single_image_is_refused() -> None:
    images, labels = torch.arange(5.0), torch.arange(5)
    first, second = halves(images, labels)
    assert (first[1].tolist(), second[1].tolist()) == ([0, 1, 2], [3, 4])
    with pytest.raises(UsageError, match="a batch of 1 image cannot be halved"):
        halves(images[:1], labels[:1])


def gradients(exchange: Exchange, centring: Centring) -> list[Tensor]:
    """What one process finds of its part of the halves: the loss, and gradients of the predictor."""
    torch.manual_seed(0)
    network, optimizer, weighting, images, labels = problem(WithoutNorm().double(), (3, 4, 4), centring)
    weighting = Weighting(weighting.predictor, centring, DELTA, exchange)
    train, meta = (
        tuple(tensor.chunk(exchange.processes)[exchange.rank] for tensor in half) for half in halves(images, labels)
    )
    loss = meta_step(network, optimizer, weighting, train, meta, Q)  # type: ignore[arg-type]
    return [loss, *(parameter.grad for parameter in weighting.predictor.parameters() if parameter.grad is not None)]


class Waits(Exception):
    """A process has asked for something, and waits for the others."""


class Together:
    """Two processes in turn: each runs from the start until it asks for what it has not been told yet."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.asked: list[Any] = []

    def exchange(self, rank: int) -> Exchange:
        answers = iter(self.told)

        def ask(mine: Any) -> Any:
            for answer in answers:
                return answer
            self.asked.append(mine)
            raise Waits

        return Exchange(rank, 2, ask, ask)

    def answer(self) -> None:
        first, second = self.asked
        if isinstance(first, Tensor):
            self.told.append(torch.cat([first, second]))
        else:
            self.told.append({name: (first[name] + second[name]) / 2 for name in first})
        self.asked = []


@pytest.mark.parametrize("centring", ["matrix", "sample", "exit"])
def test_two_processes_find_what_one_with_the_whole_batch_finds(centring: Centring) -> None:
    together = Together()
    for _ in range(6):  # the losses, two gradients, the confidences, the predictor's gradients, the loss
        for rank in range(2):
            with pytest.raises(Waits):
                gradients(together.exchange(rank), centring)
        together.answer()
    expected = gradients(ALONE, centring)
    assert len(expected) == 5
    for rank in range(2):
        found = gradients(together.exchange(rank), centring)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_a_process_group_of_one_exchanges_with_itself(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        exchange = among_processes()
        tensors = {"a": torch.rand(2, 3), "b": torch.rand(())}
        assert torch.equal(exchange.gather(tensors["a"]), tensors["a"])
        torch.testing.assert_close(exchange.average(tensors), tensors, rtol=0, atol=0)
    finally:
        dist.destroy_process_group()
