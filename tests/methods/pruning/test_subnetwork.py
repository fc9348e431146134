from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nets import Odd

from budgetnet import ChannelGraph, backbones, resize
from budgetnet.methods.pruning.subnetwork import FullNetwork


def traced(name: str) -> ChannelGraph:
    torch.manual_seed(0)
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    graph = ChannelGraph.trace(backbones.build(name, seed_width=4), torch.empty(1, *shape))
    for tensor in graph.model.state_dict().values():
        tensor.copy_(torch.rand_like(tensor.float()))  # running statistics too
    return graph


GRAPHS: dict[str, Callable[[], ChannelGraph]] = {
    **{name: lambda name=name: traced(name) for name in ("lenet5", "resnet20")},
    "odd": lambda: ChannelGraph.trace(Odd(), torch.empty(1, 3, 8, 8)),
}


def choice(graph: ChannelGraph, first: bool) -> dict[str, list[int]]:
    """Every other channel of each convolution's blocks, or all but the first of them; they overlap."""
    kept = {}
    for group in graph.groups:
        if group.kind == "convolution":
            size = group.width // group.blocks
            chosen = [place for place in range(size) if (place % 2 == 0 if first else place) or size == 1]
            kept[group.name] = [block * size + place for block in range(group.blocks) for place in chosen]
    return kept


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_given_network_is_the_full_one_narrowed(name: str) -> None:
    graph = GRAPHS[name]()
    expected = copy.deepcopy(graph.model)
    first, second = choice(graph, first=True), choice(graph, first=False)
    full = FullNetwork(graph, first)
    resize(expected, second)
    resize(graph.model, first)
    full.take(first)
    resize(graph.model, {group: len(channels) for group, channels in second.items()})
    full.give(second)
    for key, value in expected.state_dict().items():
        assert torch.equal(graph.model.state_dict()[key], value), key


@pytest.mark.parametrize("name", GRAPHS)
def test_what_was_not_there_stays_as_it_was_bit_by_bit_with_its_momentum(name: str) -> None:
    graph = GRAPHS[name]()
    reference = copy.deepcopy(graph.model)
    first, second = choice(graph, first=True), choice(graph, first=False)
    full, before = FullNetwork(graph, first), FullNetwork(graph, first).tensors
    resize(graph.model, first)
    optimizer = torch.optim.SGD(graph.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(graph.model, optimizer)
    trained = copy.deepcopy(graph.model.state_dict())
    momentum = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in graph.model.named_parameters()}
    full.take(first, optimizer)

    resize(reference, first)  # the entries of the first network, and no others, have changed
    changed = {name: int((trained[name] != value).sum()) for name, value in reference.state_dict().items()}
    differing = {name: int((full.tensors[name] != value).sum()) for name, value in before.items()}
    assert differing == {name: changed[name] for name in differing} and sum(differing.values()) > 0

    for kept in (second, first):
        resize(graph.model, {group: len(channels) for group, channels in kept.items()}, optimizer=optimizer)
        full.give(kept, optimizer)
    for name, value in trained.items():
        assert torch.equal(graph.model.state_dict()[name], value), name
    for name, parameter in graph.model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum[name]), name


def test_a_full_network_goes_through_its_state() -> None:
    graph = traced("resnet20")
    kept = choice(graph, first=True)
    full = FullNetwork(graph, kept)
    state = copy.deepcopy(full.state_dict())
    resize(graph.model, kept)
    step(graph.model, torch.optim.SGD(graph.model.parameters(), lr=0.1))
    full.take(kept)
    assert any(not torch.equal(value, state["tensors"][name]) for name, value in full.tensors.items())
    full.load_state_dict(state)
    assert all(torch.equal(value, state["tensors"][name]) for name, value in full.tensors.items())
