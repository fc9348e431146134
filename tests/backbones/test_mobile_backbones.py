"""Backbones that people deploy have the published counts, at the size of images that they were published for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from budgetnet.backbones import denoising, mobilenet, regnet, super_resolution
from budgetnet.channels import ChannelGraph
from budgetnet.costs import CostModel
from budgetnet.costs.published import published_flops
from budgetnet.errors import UsageError

CONF = Path(__file__).parents[2] / "conf" / "backbone"
CLASSIFIERS = (
    *("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet", "efficientnet_b0"),
    *("regnet_x_200mf", "regnet_x_400mf", "regnet_x_4gf", "regnet_y_200mf", "regnet_y_400mf"),
    *("densenet40", "resnet56_projection"),
)


def build(name: str, **options: Any) -> nn.Module:
    """What conf/backbone describes."""
    section = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    section.pop("frozen", None)
    sized = name not in ("densenet40", "resnet56_projection") and name in CLASSIFIERS
    side = options.pop("side", 32)
    network = instantiate({**section, **({"image_size": [side, side]} if sized else {}), **options})
    assert isinstance(network, nn.Module)
    return network


def without_storage(name: str, **options: Any) -> nn.Module:
    """Of shapes alone: they need no initial values, which would take most of the time."""
    initialisers = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    with torch.device("meta"), mock.patch.multiple(nn.init, **dict.fromkeys(initialisers, lambda t, *_, **__: t)):
        return build(name, **options)


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def counts_of(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates of one image by torch's counter, and those of the papers in the same pass."""
    with FlopCounterMode(display=False) as counter:
        published = published_flops(network, shape)
    return params(network), int(counter.get_total_flops()) // 2, published


PUBLISHED: list[tuple[Any, ...]] = [
    ("mobilenet_v1", 200, 64, None, (3_411_976, 46_548_992, 47_372_288, 47_783_936)),
    ("mobilenet_v1", 200, 64, 2, (13_102_920, 181_178_368, 182_824_960, 183_648_256)),
    ("mobilenet_v1", 1000, 224, None, (4_231_976, 568_740_352, 578_825_728, 583_868_416)),
    ("mobilenet_v2", 200, 64, None, (2_480_072, 88_219_648, 91_499_520, 93_001_728)),
    ("mobilenet_v2", 1000, 224, None, (3_504_872, 300_774_272, 314_130_496, 320_236_288)),
    ("mobilenet_v3_large", 200, 64, None, (4_120_518, 81_705_568, 84_704_864, 86_014_918)),
    ("mobilenet_v3_large", 1000, 224, None, (5_145_318, 245_564_768, 254_750_112, 258_749_798)),
    ("mobilenet_v3_small", 200, 64, None, (2_082_758, 19_387_936, 20_310_560, 20_729_638)),
    ("mobilenet_v3_small", 1000, 224, None, (3_107_558, 57_074_144, 59_899_680, 61_173_062)),
    ("mnasnet", 200, 64, None, (3_358_512, 25_818_112, 26_708_992, 27_100_672)),
    ("efficientnet_b0", 100, 32, None, (4_135_648, 407_469_568, 416_124_416, 416_124_416)),
    ("regnet_x_200mf", 100, 32, None, (2_352_692, 220_893_120, 224_036_800, 225_464_256)),
    ("regnet_x_200mf", 1000, 224, None, (2_684_792, 199_039_872, 203_365_984, 205_362_048)),
    ("regnet_x_400mf", 100, 32, None, (4_809_924, 462_165_504, 467_359_232, 469_825_024)),
    ("regnet_x_400mf", 1000, 224, None, (5_157_512, 397_677_568, 403_962_112, 406_903_680)),
    ("regnet_x_4gf", 1000, 224, None, (22_118_248, 3_964_498_816, 3_988_900_032, 4_000_485_200)),
    ("regnet_y_200mf", 100, 32, None, (2_830_896, 221_367_328, 224_511_008, 225_939_196)),
    ("regnet_y_200mf", 1000, 224, None, (3_162_996, 199_514_080, 203_840_192, 205_836_988)),
    ("regnet_y_400mf", 100, 32, None, (3_947_244, 449_509_632, 455_680_256, 458_529_472)),
    ("regnet_y_400mf", 1000, 224, None, (4_344_144, 401_842_848, 409_615_424, 413_208_280)),
    ("densenet40", 100, 32, None, (1_100_428, 282_958_368, 287_750_688, 290_146_848)),
    ("densenet40", 10, 32, None, (1_059_298, 282_917_328, 287_709_648, 290_105_808)),
    ("resnet56_projection", 10, 32, None, (855_770, 125_747_840, 126_837_376, 127_369_856)),
]
AGAIN = (1, 2, 4, 5, 6, 8, 11, 13, 15, 17, 18, 19, 20)
"""Rows of another size of the images, or of another width, of a network that has a row of its own: for `make soak`."""


@pytest.mark.parametrize(
    ("name", "classes", "side", "multiplier", "counts"),
    [pytest.param(*row, marks=[pytest.mark.soak] * (number in AGAIN)) for number, row in enumerate(PUBLISHED)],
)
def test_full_backbones_have_their_published_costs(
    name: str, classes: int, side: int, multiplier: int | None, counts: tuple[int, int, int, int]
) -> None:
    """Parameters, multiply-accumulates, with those of batch norms (a `CostModel`'s FLOPs), as the paper has them."""
    network = without_storage(name, num_classes=classes, in_channels=3, side=side, multiplier=multiplier)
    shape = (3, side, side)
    assert counts_of(network, shape) == (*counts[:2], counts[3])
    if multiplier is None and side < 224:  # a trace takes longest
        cost = CostModel(ChannelGraph.trace(network, torch.empty(1, *shape)))
        assert cost.costs() == dict(zip(("params", "macs", "flops"), counts))


@pytest.mark.parametrize(
    ("make", "shape", "counts"),
    [
        (lambda: super_resolution.edsr(3, 4), (3, 48, 48), (3_696_667, 12_706_046_208, 12_708_405_504)),
        (lambda: super_resolution.srresnet(3, 4), (3, 24, 24), (1_535_638, 1_150_267_392, 1_154_064_384)),
        (lambda: denoising.dncnn(1), (1, 128, 128), (557_057, 9_078_571_008, 9_126_805_504)),
        (lambda: denoising.dncnn(1, batch_norm=False), (1, 128, 128), (555_137, 9_078_571_008, 9_095_348_224)),
        (lambda: denoising.unet(1), (1, 128, 128), (7_759_521, 3_008_364_544, 3_012_362_240)),
    ],
)
def test_networks_that_restore_images_have_their_published_costs(
    make: Callable[[], nn.Module], shape: tuple[int, ...], counts: tuple[int, int, int]
) -> None:
    network = make().to("meta")
    assert counts_of(network, shape) == counts


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(name, num_classes=7, in_channels=3, multiplier=0.2, **options)


VERIFIED = ("mobilenet_v1", "mobilenet_v3_small", "regnet_y_200mf", "densenet40", "resnet56_projection")


@pytest.mark.parametrize("name", VERIFIED)
def test_every_width_group_of_a_small_backbone_can_be_resized(name: str) -> None:
    network = small(name, **{"densenet40": {"depth": 10}, "resnet56_projection": {"depth": 14}}.get(name, {}))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    graph = ChannelGraph.trace(network, torch.empty(1, 3, 16, 16))
    assert set(graph.verify().values()) == {"function kept"}


def test_the_blocks_of_a_residual_stage_share_a_width_with_what_surrounds_them() -> None:
    graph = ChannelGraph.trace(small("mobilenet_v2"), torch.empty(1, 3, 32, 32))
    stage = graph.group("blocks.3.conv3")
    assert stage.producers == ("blocks.3.conv3", "blocks.4.conv3", "blocks.5.conv3")
    assert "blocks.1.conv1" in graph.widths and "blocks.1.conv2" not in graph.widths  # depthwise follows
    graph = ChannelGraph.trace(small("resnet56_projection", depth=14), torch.empty(1, 3, 32, 32))
    assert set(graph.group("layer2.0.conv2").producers) == {
        *("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2")
    }


def test_the_groups_of_a_regnet_grow_and_shrink_alike() -> None:
    graph = ChannelGraph.trace(build("regnet_y_200mf", num_classes=7, in_channels=3), torch.empty(1, 3, 32, 32))
    assert [graph.group(f"layer{stage}.0.conv1").blocks for stage in (1, 2, 3, 4)] == [3, 7, 19, 46]
    assert graph.group("layer4.0.attention.reduce").width == 152 // 4


@pytest.mark.parametrize(("name", "options"), [("densenet40", {"depth": 10}), ("resnet56_projection", {"depth": 8})])
def test_an_exported_backbone_gives_the_same_logits_at_another_batch_size(name: str, options: dict[str, int]) -> None:
    network = small(name, **options).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(network, (torch.randn(3, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("make", [super_resolution.edsr, super_resolution.srresnet])
def test_a_super_resolved_image_is_scale_times_as_large(make: Callable[..., nn.Module], scale: int) -> None:
    torch.manual_seed(0)
    network = make(3, scale, blocks=2, width=4)
    assert network(torch.rand(2, 3, 6, 5)).shape == (2, 3, 6 * scale, 5 * scale)


def test_edsr_starts_by_subtracting_the_mean_colour_and_ends_by_adding_it() -> None:
    network = super_resolution.edsr(3, 2, blocks=1, width=4)
    grey = torch.tensor(super_resolution.MEAN)[None, :, None, None].expand(1, 3, 4, 4)
    assert network.subtract_mean(grey).abs().max() < 1e-7
    nn.init.zeros_(network.conv3.weight)
    torch.testing.assert_close(network(grey)[0, :, 0, 0], torch.tensor(super_resolution.MEAN))


def test_the_width_groups_of_dncnn_can_be_resized_and_cost_what_is_published() -> None:
    graph = ChannelGraph.trace(denoising.dncnn(1).to("meta"), torch.empty(1, 1, 128, 128))
    assert CostModel(graph).flops() == 9_110_028_288
    tiny = ChannelGraph.trace(denoising.dncnn(1, layers=2, width=4), torch.empty(1, 1, 8, 8))
    assert set(tiny.verify().values()) == {"function kept"}


def test_dncnn_learns_what_to_add_to_the_image() -> None:
    network = denoising.dncnn(1, layers=2, width=4)
    nn.init.zeros_(network.conv2.weight)
    x = torch.rand(2, 1, 9, 7)
    assert torch.equal(network(x), x)


def test_a_unet_takes_images_that_do_not_halve_and_pads_only_those() -> None:
    torch.manual_seed(0)
    network = denoising.unet(1, levels=3, width=2).eval()
    x = torch.rand(1, 1, 8, 8)
    assert network(x[..., :7, :5]).shape == (1, 1, 7, 5)
    padded = torch.cat([x[..., :7], x[..., 6:7]], dim=3)
    torch.testing.assert_close(network(x[..., :7]), network(padded)[..., :7])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: mobilenet.build("mobilenet_v4", 2, 3, (32, 32)), "'mobilenet_v1'"),
        (lambda: regnet.build("regnet_x_5gf", 2, 3, (32, 32)), "'regnet_x_4gf'"),
        (lambda: build("mnasnet", num_classes=2, in_channels=3, multiplier=-1), "backbone.multiplier=-1"),
        (lambda: build("densenet40", num_classes=2, in_channels=3, depth=41), "backbone.depth=41"),
        (lambda: build("densenet40", num_classes=2, in_channels=3, growth=0), "backbone.growth=0"),
        (lambda: build("resnet56_projection", num_classes=2, in_channels=3, depth=18), "backbone.depth=18"),
        (lambda: super_resolution.edsr(3, 5), "scale=5"),
        (lambda: super_resolution.srresnet(3, 2, blocks=0), "backbone.blocks=0"),
        (lambda: denoising.dncnn(1, layers=-1), "backbone.layers=-1"),
        (lambda: denoising.dncnn(1, batch_norm=1), "backbone.batch_norm=1"),  # type: ignore[arg-type]
        (lambda: denoising.unet(1, width=True), "backbone.width=True"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(Exception) as caught:
        make()
    error = caught.value.__cause__ or caught.value  # Hydra wraps what a target raises
    assert isinstance(error, UsageError) and named in str(error) and "\n" not in str(error)
