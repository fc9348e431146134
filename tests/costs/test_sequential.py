"""Sequential operations: the supplement's tables, and schedules that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from budgetnet.backbones import cnf, resnet_fabric
from budgetnet.backbones.fabric import Edge, EdgeGraph, Node
from budgetnet.costs.sequential import SequentialOperations

WIDTHS = (16, 32, 64)


@pytest.mark.parametrize(("depth", "one"), [(110, 112), (56, 58), (44, 46), (32, 34), (20, 22)])
def test_resnets_take_their_published_steps_on_one_two_and_four_machines(depth: int, one: int) -> None:
    graph = resnet_fabric.layout(resnet_fabric.DEPTHS[depth], WIDTHS, extra=False)
    assert [SequentialOperations(graph, machines).full() for machines in (1, 2, 4)] == [one, depth, depth]


def test_the_largest_published_network_is_the_whole_fabric() -> None:
    """B-ResNet 320.00 on CIFAR-100 with one machine (table 7): ResNet Fabric-110 with all its edges."""
    assert SequentialOperations(resnet_fabric.layout(18, WIDTHS), 1).full() == 320


@pytest.mark.parametrize(
    ("columns", "one", "two", "four", "published"),
    [(8, 171, 87, 48, (90, 53)), (4, 83, 43, 26, (47, 31)), (2, 39, 21, 16, (26, 19)), (1, 12, 12, 12, (12, 12))],
)
def test_convolutional_neural_fabrics_take_their_published_steps_or_fewer(
    columns: int, one: int, two: int, four: int, published: tuple[int, int]
) -> None:
    """On one machine exactly; on more the published order is not known, and longest paths first takes no more."""
    graph = cnf.layout(columns, 128, (32, 32))
    steps = [SequentialOperations(graph, machines).full() for machines in (1, 2, 4)]
    assert steps == [one, two, four]
    assert two <= published[0] and four <= published[1]


def test_steps_lie_between_the_longest_path_and_all_operations_shared_out() -> None:
    graph = cnf.layout(3, 4, (8, 8))
    choices = graph.alive(torch.rand(40, len(graph.edges), generator=torch.Generator().manual_seed(0)) < 0.8)
    choices = choices[choices.any(1)]
    alone = SequentialOperations(graph, 1)(choices)
    longest = SequentialOperations(graph, 1000)(choices)
    for machines in (2, 3, 4):
        for steps, all_of_them, path in zip(SequentialOperations(graph, machines)(choices), alone, longest):
            assert max(path, -(-all_of_them // machines)) <= steps <= all_of_them


def test_two_branches_run_side_by_side_and_an_identity_takes_no_step() -> None:
    """stem, then two modules or one and an identity, then their sum, then the head."""
    nodes = tuple(Node(name, (1, 1, 1), (0, 0)) for name in ("first", "last"))
    for steps, expected in ((1, [5, 4]), (0, [4, 4])):
        graph = EdgeGraph(nodes, (Edge("module", "first", "last"), Edge("other", "first", "last", steps)))
        assert [SequentialOperations(graph, machines).full() for machines in (1, 2)] == expected
