"""Networks with exits: all logits at once, or one after the other and nothing computed too soon; the same bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from budgetnet.backbones import msdnet, ranet
from budgetnet.backbones.exits import ExitNetwork
from budgetnet.errors import UsageError

SMALL: dict[str, partial[ExitNetwork]] = {
    "msdnet": partial(msdnet.build, 10, 3, (16, 16), exits=3, growth=4, channels=4),
    "even": partial(msdnet.build, 10, 3, (16, 16), exits=4, base=2, step=1, step_mode="even", growth=4, channels=4),
    "min": partial(msdnet.build, 10, 3, (16, 16), exits=4, growth=4, channels=4, prune="min", bottleneck=False),
    "unreduced": partial(msdnet.build, 10, 3, (16, 16), exits=3, growth=4, channels=4, reduction=0),
    "ranet": partial(ranet.build, 10, 3, (16, 16), channels=4, growth=4, step=1),
    "flat ranet": partial(ranet.build, 10, 3, (16, 16), channels=4, growth=4, step=2, step_mode="even",
                          scales=(1, 2, 2), growth_factors=(2, 2, 1), bottleneck_factors=(2, 2, 1)),
    "imagenet": partial(msdnet.build, 10, 3, (64, 64), exits=2, base=2, step=2, growth=4, channels=4),
    "imagenet ranet": partial(ranet.build, 10, 3, (64, 64), channels=4, growth=4, step=1),
}  # fmt: skip
EXITS = {"msdnet": 3, "unreduced": 3, "ranet": 6, "flat ranet": 6, "imagenet": 2, "imagenet ranet": 8}


def small(name: str) -> tuple[ExitNetwork, Tensor]:
    """A network whose batch norms have statistics of their own, and images that are not square."""
    torch.manual_seed(0)
    network = SMALL[name]()
    images = torch.randn(5, 3, *((64, 72) if "imagenet" in name else (16, 20)))
    network(images)
    return network, images


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_every_exit_gives_logits_in_training_and_after(name: str, training: bool) -> None:
    network, images = small(name)
    logits = network.train(training)(images)
    assert isinstance(logits, tuple) and network.exits == EXITS.get(name, 4)
    assert [tuple(each.shape) for each in logits] == [(5, 10)] * network.exits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_a_lazy_evaluation_gives_the_bits_of_the_whole_one(name: str, training: bool) -> None:
    network, images = small(name)
    network.train(training)
    with torch.no_grad():
        expected = network(images)
        for number, (logits, whole) in enumerate(zip(network.lazily(images), expected, strict=True)):
            assert torch.equal(logits, whole)
            assert torch.equal(network.exit_after(images, number), whole)


@pytest.mark.parametrize("name", SMALL)
def test_images_that_do_not_go_on_are_computed_no_further(name: str) -> None:
    network, images = small(name)
    network.eval()
    with torch.no_grad():
        expected = network(images)
        stages = network.lazily(images)
        assert torch.equal(next(stages), expected[0])
        staying = torch.tensor([0, 2, 3])
        torch.testing.assert_close(
            stages.send(torch.tensor([True, False, True, True, False])), expected[1][staying], rtol=1e-4, atol=1e-5
        )
        for number in range(2, network.exits):
            torch.testing.assert_close(next(stages), expected[number][staying], rtol=1e-4, atol=1e-5)
        with pytest.raises(StopIteration):
            next(stages)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_trained_by_the_sum_of_the_exits_losses(name: str) -> None:
    """Feature maps that no exit reads do not exist."""
    network, images = small(name)
    sum(logits.square().mean() for logits in network(images)).backward()
    assert [n for n, parameter in network.named_parameters() if parameter.grad is None] == []


def test_exits_of_the_networks_for_imagenet_stand_at_layers_4_4_plus_s_and_so_on() -> None:
    for step in (4, 6, 7):
        layers = msdnet.layers([4, *[step] * 4], 4, 32, 16)
        ends = [max(number for number, layer in enumerate(layers, 1) if layer.block == k) for k in range(5)]
        assert ends == [4 + step * k for k in range(5)]


def test_a_scale_is_dropped_after_equal_parts_of_the_network() -> None:
    layers = msdnet.layers([1, 2, 3, 4, 5], 3, 16, 6)
    assert [layer.first for layer in layers] == [0] * 5 + [1] * 5 + [2] * 5
    assert [number for number, layer in enumerate(layers, 1) if layer.drops] == [6, 11]
    assert [layer.channels for layer in layers] == [16, 22, 28, 34, 40, 46, 26, 32, 38, 44, 50, 28, 34, 40, 46]


def test_an_exit_after_layer_n_reads_every_finer_scale_one_layer_less_far() -> None:
    layers = msdnet.layers([4, 4, 4, 4, 4], 4, 32, 16)
    assert msdnet.reach(layers, 4, 4) == [1, 2, 3, 4]
    assert msdnet.reach(layers, 4, 8) == [5, 6, 7, 8]  # at layer 6 the finest scale is read for the last time
    assert msdnet.reach(layers, 4, 20) == [5, 10, 15, 20]


def test_sub_networks_of_a_ranet_have_2_4_and_6_blocks_and_halve_where_the_coarser_ones_end() -> None:
    layout = ranet.blocks((1, 2, 3), 2, 2, 2, "lg", 16, 6, (4, 2, 1), 0.5, 0.25)
    assert [len(here) for here in layout] == [2, 4, 6]
    assert [[block.layers for block in here] for here in layout] == [[2, 4], [2, 4, 6, 8], [2, 4, 6, 8, 10, 12]]
    assert [[p for p, block in enumerate(here, 1) if block.down] for here in layout] == [[], [2], [2, 4]]
    assert [[p for p, block in enumerate(here, 1) if block.transition] for here in layout] == [[], [2], [2, 4]]
    assert [sum(block.exit for block in here) for here in layout] == [2, 2, 2]


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (msdnet.build, {"exits": 1}, "backbone.exits=1: expected a whole number, 2 to 64"),
        (msdnet.build, {"base": 0}, "backbone.base=0: expected a whole number, 1 to 4096"),
        (msdnet.build, {"step_mode": "lg"}, "backbone.step_mode='lg': expected even or lin_grow"),
        (msdnet.build, {"prune": "mx"}, "backbone.prune='mx': expected max or min; did you mean 'max'?"),
        (msdnet.build, {"family": "mnist"}, "backbone.family='mnist': expected cifar or imagenet"),
        (msdnet.build, {"growth_factors": (1, 2)}, "expected one for each scale"),
        (msdnet.build, {"growth": 3, "growth_factors": (2, 1, 1)}, "backbone.growth=3: expected an even number"),
        (msdnet.build, {"reduction": 2.0}, "backbone.reduction=2.0: expected a number from 0"),
        (
            msdnet.build,
            {"exits": 2, "step_mode": "even", "step": 1},
            "has 2 layers: expected at least one for each of 3",
        ),
        (msdnet.build, {"image_size": (3, 3)}, "images of 3 pixels are too small for 3 scales"),
        (ranet.build, {"scales": (2, 3, 3)}, "backbone.scales=[2, 3, 3]: expected 1, the coarsest, first"),
        (ranet.build, {"scales": (1, 3, 3)}, "each the same or one more"),
        (ranet.build, {"scales": (1, 2)}, "expected one of each for every sub-network"),
        (ranet.build, {"growth": 3}, "backbone.compression=0.25: expected a part below 1 that leaves a channel"),
        (ranet.build, {"reduction": 0}, "backbone.reduction=0: expected a number above 0"),
        (ranet.build, {"image_size": (3, 3)}, "images of 3 pixels are too small for 3 scales"),
    ],
)
def test_a_network_that_cannot_be_is_refused(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        build(10, 3, **options)
    assert message in str(error.value) and "\n" not in str(error.value)
