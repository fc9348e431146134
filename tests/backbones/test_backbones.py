"""Backbones have the published parameter and multiply-accumulate counts, and any widths."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from covering import covered
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from budgetnet import backbones
from budgetnet.backbones import resnet_cifar
from budgetnet.backbones.constructors import check_output, construct
from budgetnet.channels import ChannelGraph
from budgetnet.errors import UsageError

IMAGENET = ("resnet18", "resnet34", "resnet50")


def image_shape(name: str) -> tuple[int, int, int]:
    if name == "lenet5":
        return (1, 28, 28)
    return (3, 224, 224) if name in IMAGENET else (3, 32, 32)


QUICK = ("lenet5", "vgg11", "resnet20", "resnet18", "resnet50")
"""Of each family the smallest: the others differ from them in depth alone."""


def build_without_storage(name: str, **options: Any) -> nn.Module:
    """Of shapes alone: they need no initial values, which would take most of the time."""
    initialisers = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    with torch.device("meta"), mock.patch.multiple(nn.init, **dict.fromkeys(initialisers, kept)):
        return backbones.build(name, **options)


def kept(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return tensor


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, name: str) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, *image_shape(name), device="meta"))
    return int(counter.get_total_flops()) // 2


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "num_classes", "expected_params", "expected_macs"),
    [
        ("lenet5", 10, 61_706, 416_520),
        ("vgg16", 10, 14_990_922, 313_463_808),
        ("resnet20", 10, 269_722, 40_551_040),
        ("resnet32", 10, 464_154, 68_862_592),
        pytest.param("resnet42-42-42", 10, 4_061_146, 592_626_304, marks=pytest.mark.soak),
        pytest.param("resnet54-53-53", 100, 5_141_044, 753_064_192, marks=pytest.mark.soak),
        ("resnet18", 1000, 11_689_512, 1_814_073_344),
        pytest.param("resnet34", 1000, 21_797_672, 3_663_761_408, marks=pytest.mark.soak),
        ("resnet50", 1000, 25_557_032, 4_089_184_256),
    ],
)
def test_full_backbones_have_their_published_costs(
    name: str, num_classes: int, expected_params: int, expected_macs: int
) -> None:
    network = build_without_storage(name, num_classes=num_classes)
    assert (params(network), macs(network, name)) == (expected_params, expected_macs)


@pytest.mark.parametrize(("multiplier", "expected"), [(3, 4_157_242), (4, 7_386_186), (5, 11_536_730)])
def test_wide_resnet32_has_its_published_params(multiplier: int, expected: int) -> None:
    assert params(build_without_storage("resnet32", multiplier=multiplier)) == expected


@pytest.mark.parametrize(("seed_width", "expected"), [(16, 42_682), (8, 10_978), (4, 2_902)])
def test_seed_networks_of_resnet20_have_closed_form_params(seed_width: int, expected: int) -> None:
    w = seed_width
    assert expected == 3 * 9 * w + 18 * 9 * w * w + 19 * 2 * w + 10 * w + 10
    assert params(build_without_storage("resnet20", seed_width=w)) == expected


@pytest.mark.parametrize("name", covered(backbones.NAMES, QUICK))
def test_seed_width_sets_every_convolution_and_no_linear_layer(name: str) -> None:
    full = build_without_storage(name)
    modules = dict(build_without_storage(name, seed_width=5).named_modules())
    for path, module in modules.items():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == 5, path
        if isinstance(module, nn.Linear):
            assert module.out_features == full.get_submodule(path).out_features, path


@pytest.mark.parametrize("name", backbones.NAMES)
def test_full_widths_name_every_producer_but_shortcuts_and_classifier(name: str) -> None:
    network = build_without_storage(name)
    layers = {path: m for path, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    classifier = list(layers)[-1]
    producers = {
        path: module.weight.shape[0]
        for path, module in layers.items()
        if path != classifier and "downsample" not in path
    }
    assert backbones.full_widths(name) == producers
    assert list(backbones.full_widths(name)) == list(producers)  # in order of execution


@pytest.mark.parametrize("name", ["lenet5", "vgg16", "resnet20", "resnet18", "resnet50"])
def test_full_widths_are_the_width_groups_that_tracing_finds(name: str) -> None:
    graph = ChannelGraph.trace(build_without_storage(name), torch.empty(1, *image_shape(name)))
    assert list(graph.widths.items()) == list(backbones.full_widths(name).items())


@pytest.mark.parametrize("name", covered(backbones.NAMES, QUICK))
def test_multiplier_rounds_every_width_to_the_nearest_and_keeps_one(name: str) -> None:
    full = backbones.full_widths(name)
    for multiplier in (0.01, 0.3, 1.5):
        widths = {group: max(1, math.floor(width * multiplier + 0.5)) for group, width in full.items()}
        scaled = build_without_storage(name, multiplier=multiplier)
        assert shapes(scaled) == shapes(build_without_storage(name, widths=widths))


@pytest.mark.parametrize("name", covered(backbones.NAMES, QUICK))
def test_any_widths_are_built_and_run(name: str) -> None:
    widths = {group: 2 + 5 * i % 7 for i, group in enumerate(backbones.full_widths(name))}
    network = build_without_storage(name, num_classes=7, in_channels=2, widths=widths)
    built = shapes(network)
    for group, width in widths.items():
        assert built[f"{group}.weight"][0] == width, group
    _, *size = image_shape(name)
    assert network(torch.empty(2, 2, *size, device="meta")).shape == (2, 7)


def test_groups_that_widths_do_not_name_keep_their_full_width() -> None:
    network = build_without_storage("resnet20", widths={"layer2.1.conv1": 3})
    every = {**backbones.full_widths("resnet20"), "layer2.1.conv1": 3}
    assert shapes(network) == shapes(build_without_storage("resnet20", widths=every))
    assert shapes(network)["layer2.1.conv2.weight"] == (32, 3, 3, 3)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50"])
def test_a_narrow_wide_narrow_resnet_carries_gradients_to_every_parameter(name: str) -> None:
    last = "conv3" if name == "resnet50" else "conv2"
    blocks = [group for group in backbones.full_widths(name) if group.endswith(last)]
    widths = dict.fromkeys(backbones.full_widths(name), 4) | {
        group: (3, 11, 3)[i % 3] for i, group in enumerate(blocks)
    }
    network = backbones.build(name, widths=widths)
    logits = network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 10) and logits.isfinite().all()
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_match_channels_pads_with_zeros_at_the_end() -> None:
    x = torch.randn(2, 3, 4, 4)
    matched = backbones.match_channels(x, torch.empty(2, 5, 4, 4))
    assert matched.shape == (2, 5, 4, 4)
    assert torch.equal(matched[:, :3], x) and not matched[:, 3:].any()


def test_match_channels_crops_at_the_end() -> None:
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(backbones.match_channels(x, torch.empty(2, 3, 4, 4)), x[:, :3])


def test_match_channels_returns_its_argument_when_channels_agree() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert backbones.match_channels(x, torch.empty(2, 3, 2, 2)) is x


def test_a_cifar_block_without_its_residual_is_the_subsampled_and_padded_input() -> None:
    network = backbones.build("resnet20", widths={"layer1.2.conv2": 4, "layer2.0.conv2": 6})
    block = network.get_submodule("layer2.0")
    nn.init.zeros_(block.get_parameter("bn2.weight"))
    x = torch.rand(2, 4, 32, 32)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2]) and not out[:, 4:].any()


def test_shortcuts_of_imagenet_resnets_have_a_convolution_where_the_full_backbone_changes_size() -> None:
    def projected(name: str) -> list[str]:
        network = build_without_storage(name, seed_width=8)
        return [path for path, _ in network.named_modules() if path.endswith("downsample.0")]

    changed = [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]
    assert projected("resnet18") == projected("resnet34") == changed
    assert projected("resnet50") == ["layer1.0.downsample.0", *changed]


@pytest.mark.parametrize("name", ["lenet5", "vgg16", "resnet20", "resnet18", "resnet50"])
def test_every_filter_starts_with_expected_norm_sqrt_two_and_the_classifier_with_one(name: str) -> None:
    torch.manual_seed(0)
    network = backbones.build(name)
    layers = {path: m for path, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    classifier = list(layers)[-1]
    for path, module in layers.items():
        weight = module.weight.detach().flatten(1)
        squared_norm = weight.square().sum(1).mean().item()
        expected = 1.0 if path == classifier else 2.0
        # the relative deviation of a mean of n squared normals is sqrt(2 / n)
        assert squared_norm == pytest.approx(expected, rel=4.5 * math.sqrt(2 / weight.numel())), path
        assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", covered(QUICK, ("lenet5", "resnet18")))
def test_an_exported_backbone_gives_the_same_logits_at_another_batch_size(name: str) -> None:
    torch.manual_seed(0)
    network = backbones.build(name, multiplier=0.1 if name != "lenet5" else 1).eval()
    channels, *size = image_shape(name)
    size = [64, 64] if name in IMAGENET else size
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(network, (torch.randn(3, channels, *size),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, channels, *size)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"name": "resnet21"}, ["'resnet21'", "'resnet20'"]),
        ({"name": None}, ["None", "lenet5"]),
        ({"name": "resnet20", "widths": {"layer1.0.conv3": 8}}, ["'layer1.0.conv3'", "'layer1.0.conv1'"]),
        ({"name": "resnet18", "widths": {"layer2.0.downsample.0": 8}}, ["'layer2.0.downsample.0'"]),
        ({"name": "vgg16", "widths": {"fc2": 8}}, ["'fc2'", "'fc1'"]),
        ({"name": "vgg16", "widths": {"conv1": 0}}, ["'conv1'", "0", "at least 1"]),
        ({"name": "vgg16", "widths": {"conv1": 8.0}}, ["'conv1'", "8.0", "integer"]),
        ({"name": "vgg16", "widths": [8, 8]}, ["[8, 8]", "mapping"]),
        ({"name": "vgg16", "seed_width": 0}, ["seed_width", "0"]),
        ({"name": "vgg16", "seed_width": True}, ["seed_width", "True"]),
        ({"name": "vgg16", "multiplier": -1}, ["multiplier", "-1"]),
        ({"name": "vgg16", "multiplier": math.nan}, ["multiplier", "nan"]),
        ({"name": "vgg16", "multiplier": "3\nx"}, ["multiplier", r"3\nx"]),
        ({"name": "vgg16", "seed_width": 8, "multiplier": 2}, ["seed_width and multiplier", "only one"]),
        ({"name": "vgg16", "num_classes": 0}, ["num_classes", "0"]),
        ({"name": "vgg16", "in_channels": "3"}, ["in_channels", "'3'"]),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(options: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        backbones.build(**options)
    text = str(caught.value)
    assert "\n" not in text
    assert all(fragment in text for fragment in fragments), text


class Takes:
    """Constructors as others write them."""

    @staticmethod
    def common(num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 4, num_classes))

    @staticmethod
    def short(in_c: int = 3, n_classes: int = 5) -> nn.Module:
        return Takes.common(n_classes, in_c)

    @staticmethod
    def classes_only(classes: int) -> nn.Module:
        return Takes.common(classes, 3)

    @staticmethod
    def open_ended(name: str = "x", **options: int) -> nn.Module:
        return Takes._options(**options)

    @staticmethod
    def _options(*, num_classes: int = 5, in_chans: int = 3) -> nn.Module:
        return Takes.common(num_classes, in_chans)

    @staticmethod
    def odd(outputs: int) -> nn.Module:
        return Takes.common(outputs, 3)


@pytest.mark.parametrize("name", ["common", "short", "classes_only", "open_ended"])
def test_classes_and_channels_are_passed_under_the_names_that_a_constructor_has(name: str) -> None:
    network = construct(getattr(Takes, name), num_classes=7, in_channels=3)
    check_output(network, (3, 2, 2), (7,), name)


def test_a_name_that_nobody_else_uses_is_given() -> None:
    with pytest.raises(UsageError, match=r"num_classes_name=\.\.\., of outputs"):
        construct(Takes.odd, num_classes=7, in_channels=3)
    with pytest.raises(UsageError, match="num_classes_name=output: odd takes outputs"):
        construct(Takes.odd, num_classes=7, in_channels=3, num_classes_name="output")
    check_output(construct(Takes.odd, 7, 3, num_classes_name="outputs"), (3, 2, 2), (7,), "odd")


def test_an_output_that_does_not_fit_is_told_in_one_line() -> None:
    with pytest.raises(
        UsageError, match=r"backbone=own gives \(5,\) for an image of shape \(3, 2, 2\): expected \(7,\)"
    ):
        check_output(Takes.common(5, 3), (3, 2, 2), (7,), "own")
    with pytest.raises(UsageError, match="backbone=own does not take images") as error:
        check_output(Takes.common(5, 3), (1, 2, 2), (5,), "own")
    assert "\n" not in str(error.value)


def test_an_error_of_the_constructor_itself_is_its_own() -> None:
    def broken(num_classes: int) -> nn.Module:
        return nn.Linear(num_classes, "many")  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        construct(broken, 7, 3)


def test_a_tied_residual_network_has_one_width_a_stage_beside_the_inner_ones_and_the_same_function() -> None:
    depths, image = (2, 2, 2), torch.randn(2, 3, 8, 8)
    tied, free = (resnet_cifar.CifarResNet(depths, resnet_cifar.full_widths(depths), 10, tied=t) for t in (True, False))
    free.load_state_dict(tied.state_dict())
    assert torch.equal(tied.eval()(image), free.eval()(image))
    graph = ChannelGraph.trace(tied, image[:1])
    assert [group.producers for group in graph.groups if len(group.producers) > 1] == [
        ("conv1", "layer1.0.conv2", "layer1.1.conv2"), ("layer2.0.conv2", "layer2.1.conv2"),
        ("layer3.0.conv2", "layer3.1.conv2"),
    ]  # fmt: skip
    assert len(graph.groups) == 3 + 6 and len(graph.joins) == 2
    with pytest.raises(UsageError, match=r"layer2\.1\.conv2 has 9 filters: expected 32"):
        resnet_cifar.CifarResNet(depths, {**resnet_cifar.full_widths(depths), "layer2.1.conv2": 9}, 10, tied=True)
