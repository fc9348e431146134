"""Fabrics have their published edges and counts, and every choice of edges is the network of these edges alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from covering import covered
from fvcore.nn import FlopCountAnalysis
from torch import Tensor

from budgetnet.backbones import cnf, resnet_fabric
from budgetnet.backbones.fabric import Edge, EdgeGraph, Fabric, Node
from budgetnet.channels import ChannelGraph
from budgetnet.costs import CostModel
from budgetnet.costs.edges import EdgeCosts
from budgetnet.errors import UsageError

SMALL = {
    "resnet_fabric": lambda: resnet_fabric.build(10, 3, (12, 12), multiplier=0.25),
    "resnet": lambda: resnet_fabric.build(10, 3, (12, 12), multiplier=0.25, extra=False),
    "cnf": lambda: cnf.build(10, 3, (8, 8), columns=3, channels=4),
    "odd sizes": lambda: cnf.build(10, 3, (7, 5), columns=2, channels=4),
    "segments": lambda: cnf.build(3, 3, (8, 8), "segmentation", columns=3, channels=4),
}
SHAPES = {"resnet_fabric": (12, 12), "resnet": (12, 12), "odd sizes": (7, 5)}


def small(name: str) -> Fabric:
    """A traced fabric in eval mode, whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    net = SMALL[name]()
    for _ in range(2):
        net(torch.randn(8, 3, *SHAPES.get(name, (8, 8))))
    ChannelGraph.trace(net, torch.empty(1, 3, *SHAPES.get(name, (8, 8))))
    return net.eval()


def random_choices(graph: EdgeGraph, count: int, probability: float = 0.8) -> Tensor:
    draws = torch.rand(count, len(graph.edges), generator=torch.Generator().manual_seed(1))
    return graph.alive(draws < probability)


@pytest.mark.parametrize(
    ("columns", "edges", "params", "macs"),
    [
        (8, 122, 18_041_610, 3_272_934_656),
        (4, 58, 8_579_850, 1_462_174_976),
        (2, 26, 3_848_970, 556_795_136),
        (1, 5, 744_330, 53_822_720),
    ],
)
def test_a_convolutional_neural_fabric_has_its_published_counts(
    columns: int, edges: int, params: int, macs: int
) -> None:
    """18.04, 8.58, 3.85, 0.74 M parameters and 3.27, 1.46, 0.557, 0.054 G multiply-accumulates."""
    with torch.device("meta"):
        net = cnf.build(10, 3, (32, 32), columns=columns)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32)))
    assert (len(net.layout.edges), cost.params(), cost.macs()) == (edges, params, macs)


def test_a_segmenting_fabric_has_nine_scales_and_its_published_parameters() -> None:
    with torch.device("meta"):
        net = cnf.build(3, 3, (256, 256), "segmentation")
    assert (net.layout.last, net.layout.nodes[-1].shape) == ("c7s0", (64, 256, 256))
    assert (len(net.layout.edges), sum(p.numel() for p in net.parameters())) == (191, 7_079_811)
    assert "c7s0_from_c7s1" in {edge.name for edge in net.layout.edges}


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_a_position_of_a_resnet_fabric_reads_two_or_three_more_of_the_group_before(depth: int) -> None:
    blocks = resnet_fabric.DEPTHS[depth]
    graph = resnet_fabric.layout(blocks, (16, 32, 64))
    for group in range(3):
        for position in range(blocks):
            extra = [e for i in graph.into[f"g{group}b{position}"] if (e := graph.edges[i]).name.count("_") > 1]
            ends = position in (0, blocks - 1)
            assert len({edge.source for edge in extra}) == (0 if group == 0 else 2 if ends else 3)
            assert len(extra) == 2 * len({edge.source for edge in extra})  # a block and a projection
    assert graph.edges[graph.into["g2b0"][2]].source == f"g1b{blocks - 2}"  # mirrored in depth
    assert any(edge.source == f"g0b{blocks - 1}" and edge.target == f"g2b{blocks - 1}" for edge in graph.edges)


def test_the_resnet_within_a_fabric_has_the_published_depth() -> None:
    """A ResNet-20 with projections: 0.27 M parameters, 41 M multiply-accumulates."""
    net = resnet_fabric.build(10, 3, (32, 32), extra=False)
    cost = CostModel(ChannelGraph.trace(net, torch.empty(1, 3, 32, 32)))
    assert (cost.params(), cost.macs()) == (272_474, 40_813_184)


@pytest.mark.parametrize("name", SMALL)
def test_the_network_that_is_kept_computes_what_the_masked_one_does(name: str) -> None:
    net = small(name)
    images = torch.randn(4, 3, *SHAPES.get(name, (8, 8)))
    choices = random_choices(net.layout, 4)
    with torch.no_grad():
        mixed = net.masked(images, choices)
        for number, choice in enumerate(choices):
            alone = copy.deepcopy(net)
            alone.keep(net.layout.names(choice))
            assert len(alone.layout.edges) == len(alone.edges) == int(choice.sum())
            expected = alone(images) if choice.any() else net.masked(images, choice[None])
            torch.testing.assert_close(net.masked(images, choice[None]), expected)
            torch.testing.assert_close(mixed[number], expected[number])  # each image has its own


@pytest.mark.parametrize("name", covered(SMALL, ("resnet", "odd sizes", "segments")))
def test_prices_of_choices_are_those_of_the_networks_they_leave(name: str) -> None:
    net = small(name)
    shape = (1, 3, *SHAPES.get(name, (8, 8)))
    costs = EdgeCosts(net)
    choices = torch.cat([random_choices(net.layout, 4), torch.ones(1, len(net.layout.edges), dtype=torch.bool)])
    for choice in choices[choices.any(1)]:
        alone = copy.deepcopy(net)
        alone.keep(net.layout.names(choice))
        price = costs.price(choice)
        model = CostModel(ChannelGraph.trace(alone, torch.empty(shape)))
        assert {kind: price[kind] for kind in ("params", "macs", "flops")} == model.costs()
        counted = FlopCountAnalysis(alone, torch.zeros(shape)).unsupported_ops_warnings(False)
        assert price["flops"] == counted.uncalled_modules_warnings(False).total()
        assert price["sequential_ops"] == EdgeCosts(alone).full()["sequential_ops"]


@pytest.mark.parametrize("name", ["resnet_fabric", "cnf", "odd sizes"])
def test_widths_of_a_fabric_can_grow(name: str) -> None:
    ChannelGraph.of(small(name)).verify()


def test_what_is_alive_lies_on_a_path_and_a_broken_network_has_nothing() -> None:
    shape = (1, 1, 1)
    graph = EdgeGraph(
        tuple(Node(name, shape, (0, 0)) for name in "abcd"),
        (Edge("ab", "a", "b"), Edge("ac", "a", "c"), Edge("bc", "b", "c"), Edge("bd", "b", "d"), Edge("cd", "c", "d")),
    )

    def alive(names: str) -> set[str]:
        return set(graph.names(graph.alive(graph.mask(names.split()))))

    assert alive("ab ac bc bd cd") == {"ab", "ac", "bc", "bd", "cd"}
    assert alive("ab ac bd") == {"ab", "bd"}  # nobody reads c
    assert alive("bc cd ac") == {"ac", "cd"}  # nothing comes to b
    assert alive("ab bc") == set()
    assert [node.name for node in graph.subgraph(graph.mask(["ab", "bd"])).nodes] == ["a", "b", "d"]
    with pytest.raises(ValueError, match="forwards"):
        EdgeGraph(graph.nodes, (Edge("ba", "b", "a"),))


def test_a_network_without_a_path_gives_every_image_the_same() -> None:
    net = small("cnf")
    with torch.no_grad():
        logits = net.masked(torch.randn(3, 3, 8, 8), torch.zeros(1, len(net.layout.edges), dtype=torch.bool))
    assert logits.shape == (3, 10) and torch.equal(logits, logits[:1].expand(3, 10))


def test_an_edge_that_is_off_for_all_is_not_computed() -> None:
    net, off = small("cnf").train(), "c1s1_from_c0s1"
    choice = ~net.layout.mask([off])[None]
    assert torch.equal(net.layout.alive(choice), choice)
    net.masked(torch.randn(3, 3, 8, 8), choice).sum().backward()
    assert all((parameter.grad is None) == (off in name) for name, parameter in net.named_parameters())


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (lambda: resnet_fabric.build(10, 3, (32, 32), depth=21), "backbone.depth=21"),
        (lambda: resnet_fabric.build(10, 3, (32, 32), multiplier=0), "backbone.multiplier=0"),
        (lambda: cnf.build(10, 3, (32, 32), columns=0), "backbone.columns=0"),
        (lambda: cnf.build(10, 3, (32, 32), "segmentation", columns=1), "expected a whole number, 2 to"),
        (lambda: cnf.build(10, 3, (32, 32), channels=2.5), "backbone.channels=2.5"),
        (lambda: cnf.build(10, 3, (32, 32), multiplier=math.nan), "backbone.multiplier=nan"),
    ],
)
def test_a_fabric_that_cannot_be_is_refused(broken, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        broken()


def test_a_graph_prints_what_leads_to_every_node() -> None:
    graph = cnf.layout(1, 4, (2, 2))
    assert str(graph).splitlines() == [
        "c0s0 4x2x2 <- images, by the stem",
        "c0s1 4x1x1 <- c0s0 by c0s1_from_c0s0",
        "head <- c0s1",
    ]
