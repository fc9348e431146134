"""Build a backbone by name, at any widths."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import torch
from torch import nn

from budgetnet.backbones import lenet, resnet, resnet_cifar, vgg
from budgetnet.errors import UsageError, nearest

WIDEST = 2**16
"""Most channels of a layer."""

NAMES: tuple[str, ...] = ("lenet5", *vgg.DEPTHS, *resnet_cifar.DEPTHS, *resnet.DEPTHS)


def full_widths(name: str) -> dict[str, int]:
    """Every width of the full backbone that may grow, group name -> channels, in order of execution.

    A group is named after its convolution ("layer1.0.conv2") or hidden linear layer ("fc1").
    Raises UsageError for an unknown backbone.
    """
    _check_name(name)
    if name in vgg.DEPTHS:
        return vgg.full_widths(vgg.DEPTHS[name])
    if name in resnet_cifar.DEPTHS:
        return resnet_cifar.full_widths(resnet_cifar.DEPTHS[name])
    if name in resnet.DEPTHS:
        return resnet.full_widths(resnet.DEPTHS[name], bottleneck=name == "resnet50")
    return dict(lenet.FULL_WIDTHS)


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int | None = None,
    widths: Mapping[str, int] | None = None,
    seed_width: int | None = None,
    multiplier: float | None = None,
) -> nn.Module:
    """A freshly initialised backbone. Of the last three arguments at most one is given; with none it is full.

    in_channels: channels of the image; None means 1 for lenet5 and 3 for the others.
    widths: group name -> channels; groups that are not named keep their full width.
    seed_width: filters of every convolution; hidden linear layers keep their full width.
    multiplier: factor on every width, rounded to the nearest integer, at least 1.

    lenet5 takes 28×28 images and the vggs 32×32; the others take any size.
    Raises UsageError for an unknown backbone or group and for values that are no widths.
    """
    full = full_widths(name)
    classes = _check_count("num_classes", num_classes)
    if in_channels is None:
        in_channels = 1 if name == "lenet5" else 3
    channels = _check_count("in_channels", in_channels)
    chosen = _choose_widths(name, full, widths, seed_width, multiplier)
    if max(chosen.values()) > max(full.values()):
        _refuse_huge(name, chosen, classes, channels)
    return _make(name, chosen, classes, channels)


def _make(name: str, widths: Mapping[str, int], classes: int, channels: int) -> nn.Module:
    if name in vgg.DEPTHS:
        return vgg.VGG(vgg.DEPTHS[name], widths, classes, channels)
    if name in resnet_cifar.DEPTHS:
        return resnet_cifar.CifarResNet(resnet_cifar.DEPTHS[name], widths, classes, channels)
    if name in resnet.DEPTHS:
        return resnet.ResNet(resnet.DEPTHS[name], widths, classes, channels, bottleneck=name == "resnet50")
    return lenet.LeNet5(widths, classes, channels)


def _refuse_huge(name: str, widths: Mapping[str, int], classes: int, channels: int) -> None:
    """Raises UsageError for a network that this machine's memory cannot hold, before any of it is allocated."""
    widest = max(widths.values())
    if widest > WIDEST:
        raise UsageError(f"{name}: {widest} channels in a layer; expected {WIDEST} at most: choose smaller widths")
    with torch.device("meta"):
        needed = 4 * sum(parameter.numel() for parameter in _make(name, widths, classes, channels).parameters())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UsageError(
            f"{name} with up to {widest} channels in a layer needs {needed >> 30} GiB for its weights, of "
            f"{memory >> 30} GiB of memory here: choose smaller widths"
        )


def _choose_widths(
    name: str,
    full: dict[str, int],
    widths: Mapping[str, int] | None,
    seed_width: int | None,
    multiplier: float | None,
) -> dict[str, int]:
    options = {"widths": widths, "seed_width": seed_width, "multiplier": multiplier}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{name}: {' and '.join(given)} are given together; give only one of them")
    if widths is not None:
        if not isinstance(widths, Mapping):
            raise UsageError(f"{name}: widths={widths!r} is not a mapping from group names to channels")
        for group, width in widths.items():
            if group not in full:
                raise UsageError(f"{name}: no width group is called {group!r}{nearest(str(group), full)}")
            _check_count(f"the width of {group!r}", width)
        return {**full, **widths}
    if seed_width is not None:
        filters = _check_count("seed_width", seed_width)
        return {group: filters if _is_convolution(group) else width for group, width in full.items()}
    if multiplier is not None:
        factor = _check_multiplier(multiplier)
        return {group: max(1, int(width * factor + 0.5)) for group, width in full.items()}
    return full


def _is_convolution(group: str) -> bool:
    return group.rpartition(".")[2].startswith("conv")


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise UsageError(f"no backbone is called {name!r}{nearest(str(name), NAMES)}")


def _check_count(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{what} is {value!r}; expected an integer of at least 1")
    return value


def _check_multiplier(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(f"multiplier is {value!r}; expected a finite number above 0")
    return float(value)
