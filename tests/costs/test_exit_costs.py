"""Exits have their published costs, and a lazy evaluation costs what fvcore counts of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from budgetnet.backbones import msdnet, ranet
from budgetnet.backbones.exits import ExitNetwork
from budgetnet.costs.exits import KINDS, ExitCosts
from budgetnet.errors import UsageError

CIFAR, IMAGENET = (100, (3, 32, 32)), (1000, (3, 224, 224))
FINE = {"scales": (1, 2, 2, 3), "growth_factors": (4, 2, 2, 1), "bottleneck_factors": (4, 2, 2, 1)}

PUBLISHED: list[tuple[Any, ...]] = [
    (
        msdnet, {"exits": 5}, CIFAR, 58_087_936, 58_867_200,
        (6_859_876, 14_350_024, 27_536_684, 41_714_576, 58_480_628),
        (299_704, 649_740, 1_018_308, 1_492_424, 2_078_924),
    ),
    (
        msdnet, {"exits": 7}, CIFAR, 136_565_248, 137_988_096,
        (6_859_876, 14_350_024, 27_291_436, 48_448_912, 76_432_628, 108_850_520, 137_280_956),
        (299_704, 649_740, 1_111_388, 1_727_200, 2_384_968, 3_052_244, 3_966_664),
    ),
    (
        msdnet, {"step": 4}, IMAGENET, 1_355_606_016, 1_363_621_024,
        (339_902_824, 685_456_720, 1_008_156_120, 1_254_472_688, 1_360_529_624),
        (4_238_504, 8_772_240, 13_073_272, 16_748_416, 23_958_440),
    ),
    (
        msdnet, {"step": 6}, IMAGENET, 2_188_148_224, 2_198_857_152,
        (339_902_824, 924_194_832, 1_517_433_848, 1_991_602_432, 2_194_420_840),
        (4_238_504, 10_775_952, 17_842_936, 24_581_408, 38_678_920),
    ),
    (
        msdnet, {"step": 7}, IMAGENET, 2_677_496_448, 2_689_552_336,
        (339_902_824, 1_058_266_480, 1_811_878_152, 2_422_156_808, 2_684_443_568),
        (4_238_504, 11_889_168, 20_577_208, 29_158_384, 47_544_824),
    ),
    (
        ranet, {}, CIFAR, 58_676_864, 61_632_128,
        (8_372_324, 21_788_360, 32_878_892, 41_570_192, 53_283_828, 58_990_680),
        (358_660, 899_880, 1_304_995, 1_800_711, 2_188_193, 2_617_261),
    ),
    (
        ranet, FINE, CIFAR, 174_903_936, 189_749_632,
        (10_739_812, 24_155_848, 35_246_380, 43_937_680, 93_068_276, 114_677_336, 164_023_356, 175_743_648),
        (367_940, 909_160, 1_314_275, 1_809_991, 2_717_647, 3_685_779, 4_462_599, 5_186_987),
    ),
]  # fmt: skip


def without_storage(module: Any, classes: int, size: int, **options: Any) -> ExitNetwork:
    with torch.device("meta"):
        network: ExitNetwork = module.build(classes, 3, (size, size), **options)
    return network


SHORT = (0, 2, 5)
"""Rows of every run of the tests: MSDNet for CIFAR and for ImageNet, and RANet. The others are of the same code."""


@pytest.mark.parametrize(
    ("module", "options", "data", "macs", "flops", "published", "params"),
    [pytest.param(*row, marks=[pytest.mark.soak] * (number not in SHORT)) for number, row in enumerate(PUBLISHED)],
)
def test_exits_have_their_published_costs(
    module: Any,
    options: dict[str, Any],
    data: tuple[int, tuple[int, int, int]],
    macs: int,
    flops: int,
    published: tuple[int, ...],
    params: tuple[int, ...],
) -> None:
    """Supplement of Han et al. 2022, tables 1 to 4; RANet, of which it prints none, as the authors' code counts it."""
    classes, shape = data
    network = without_storage(module, classes, shape[1], **options)
    costs = ExitCosts(network, shape).cumulative
    assert costs["published"] == published and costs["params"] == params
    assert (costs["macs"][-1], costs["flops"][-1]) == (macs, flops)
    assert sum(parameter.numel() for parameter in network.parameters()) == params[-1]


class Upto(nn.Module):
    """The logits of the exits up to one, lazily, or of one alone."""

    def __init__(self, network: ExitNetwork, number: int, alone: bool) -> None:
        super().__init__()
        self.network, self.number, self.alone = network, number, alone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.alone:
            return (self.network.exit_after(images, self.number),)
        return tuple(logits for logits, _ in zip(self.network.lazily(images), range(self.number + 1)))


def counted(module: nn.Module, images: Tensor) -> int:
    analysis = FlopCountAnalysis(module.eval(), images)
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


SMALL: dict[str, partial[ExitNetwork]] = {
    "msdnet": partial(msdnet.build, 10, 3, (16, 16), exits=3, growth=4, channels=4),
    "min": partial(msdnet.build, 10, 3, (16, 16), exits=3, growth=4, channels=4, prune="min", bottleneck=False),
    "ranet": partial(ranet.build, 10, 3, (16, 16), channels=4, growth=4, step=1, first_blocks=1, more_blocks=1,
                     scales=(1, 2, 2), growth_factors=(2, 2, 1), bottleneck_factors=(2, 2, 1)),
    "imagenet": partial(msdnet.build, 10, 3, (64, 64), exits=2, base=2, step=2, growth=4, channels=4),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["msdnet", "ranet", *(pytest.param(name, marks=pytest.mark.soak) for name in ("min", "imagenet"))]
)
def test_flops_are_what_fvcore_counts_of_what_is_evaluated(name: str) -> None:
    network, size = SMALL[name](), 64 if name == "imagenet" else 16
    costs, images = ExitCosts(network, (3, size, size)), torch.zeros(1, 3, size, size)
    assert costs.cumulative["flops"][-1] == counted(network, images)
    for number in range(network.exits):
        assert costs.lazy["flops"][number] == counted(Upto(network, number, alone=False), images)
        assert costs.alone["flops"][number] == counted(Upto(network, number, alone=True), images)


@pytest.mark.parametrize("name", SMALL)
def test_a_lazy_evaluation_never_costs_more_and_the_last_exit_needs_everything(name: str) -> None:
    size = 64 if name == "imagenet" else 16
    costs = ExitCosts(SMALL[name](), (3, size, size))
    for kind in KINDS:
        rows = list(zip(costs.alone[kind], costs.lazy[kind], costs.cumulative[kind]))
        assert all(alone <= lazy <= whole for alone, lazy, whole in rows)
        assert costs.lazy[kind][-1] == costs.cumulative[kind][-1]
    saves = costs.lazy["flops"][0] < costs.cumulative["flops"][0]
    assert saves is (name != "ranet")  # which has no feature map that only later exits read


def test_an_operation_whose_cost_is_not_known_is_refused() -> None:
    network = SMALL["msdnet"]()
    network.classifiers[0] = nn.PReLU()
    with pytest.raises(UsageError, match="what prelu costs at an exit is not known"):
        _ = ExitCosts(network, (3, 16, 16)).cumulative
