"""The networks of networks.csv, built without pretrained weights from pytorchcv (cv) and torchvision (tv)."""

from __future__ import annotations

import csv
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """One network of a zoo. pixels: side of the smallest image that it takes."""

    family: str
    zoo: str
    model: str
    pixels: int

    @property
    def name(self) -> str:
        return f"{self.zoo}:{self.model}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one image."""
        return (1, 3, self.pixels, self.pixels)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        if self.zoo == "cv":
            return pytorchcv_network(self.model, (self.pixels, self.pixels))
        return _torchvision(self.model)


LIST = Path(__file__).with_name("networks.csv")


def networks(path: Path = LIST) -> list[Network]:
    """All networks of a list."""
    with path.open(newline="") as lines:
        return [Network(row["family"], row["zoo"], row["model"], int(row["pixels"])) for row in csv.DictReader(lines)]


def pytorchcv_network(model: str, image_size: Sequence[int], **options: object) -> nn.Module:
    """A network of pytorchcv without pretrained weights; options: num_classes, in_channels and the like."""
    get_model = _pytorchcv()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = get_model(model, pretrained=False, in_size=tuple(image_size), **options)
        except (TypeError, AssertionError):  # some have a size of their own
            network = get_model(model, pretrained=False, **options)
    return _fitted(network, min(image_size))


def _pytorchcv() -> Callable[..., nn.Module]:
    """pytorchcv's get_model. Networks for video need torchvision: they are left out without it."""
    names = ("torchvision", "torchvision.ops")
    missing = importlib.util.find_spec("torchvision") is None
    if missing:
        stand_in = types.ModuleType("torchvision.ops")
        vars(stand_in)["DeformConv2d"] = nn.Module
        sys.modules.update(dict.fromkeys(names, stand_in))
    try:
        from pytorchcv.model_provider import get_model
    finally:
        for name in names if missing else ():
            del sys.modules[name]
    found: Callable[..., nn.Module] = get_model
    return found


def _fitted(network: nn.Module, pixels: int) -> nn.Module:
    """A network whose last pooling takes 7×7 or more, whatever the image, takes all there is where that is less."""
    for module in list(network.modules()) if pixels < 224 else ():
        if isinstance(getattr(module, "final_pool", None), nn.AvgPool2d):
            module.final_pool = nn.AdaptiveAvgPool2d(1)
    return network


def _torchvision(model: str) -> nn.Module:
    """A torchvision network."""
    import torchvision

    options: dict[str, object] = {"weights": None}
    if model.split("_")[0] in ("deeplabv3", "fcn", "lraspp"):
        options["weights_backbone"] = None
    if model in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: nn.Module = torchvision.models.get_model(model, **options)
    return network
