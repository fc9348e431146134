"""What is measured, and what it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import exits, images, network, optimizer, processes, startup, training
from .timing import ratios


@dataclass(frozen=True)
class Measure:
    """A row of the table. run: the figures of its repeats on a device, at most `repeats` of them.

    at_most: whether the targets bound it from above. A target of None: not measured on that kind of device.
    """

    name: str
    unit: str
    at_most: bool
    cpu: float | None
    gpu: float | None
    run: Callable[[torch.device], list[float]]

    def target(self, kind: str) -> float | None:
        return self.gpu if kind == "cuda" else self.cpu

    def target_text(self, kind: str) -> str:
        target, unit = self.target(kind), "" if self.unit == "ratio" else f" {self.unit}"
        return "" if target is None else f"{'≤' if self.at_most else '≥'} {target:g}{unit}"

    def met(self, figure: float, kind: str) -> bool:
        target = self.target(kind)
        return target is None or (figure <= target if self.at_most else figure >= target)


def _epoch(pairs: int, *overrides: str) -> Callable[[torch.device], list[float]]:
    return lambda device: training.epoch_against_bare_loop(device, pairs, *overrides)


def _step(device: torch.device) -> list[float]:
    lbi, sgd = optimizer.optimizers(device)
    return ratios(optimizer.ten_steps(lbi), optimizer.ten_steps(sgd), 60, device, warm_up=4)


MEASURES = [
    Measure(
        "epoch / bare loop, ResNet-20 seed of 16, CIFAR-10", "ratio", True, 1.05, 1.10,
        _epoch(9, "backbone=resnet20", "growth.seed_width=16", "dataset.limit_train=6400"),
    ),
    Measure(
        "epoch / bare loop, VGG-16 seed of 16, CIFAR-10", "ratio", True, 1.05, 1.10,
        _epoch(9, "backbone=vgg16", "growth.seed_width=16", "dataset.limit_train=12800"),
    ),
    Measure(
        "epoch / bare loop, LeNet-5 seed of 4, MNIST", "ratio", True, 1.15, 1.10,
        _epoch(25, "backbone=lenet5", "dataset=mnist", "growth.seed_width=4", "dataset.limit_train=12800"),
    ),
    Measure("LBI step / torch.optim.SGD step, ResNet-32", "ratio", True, 1.8, 1.8, _step),
    Measure("LBI share of a step, ResNet-20, batch 128", "%", True, 3, 10, lambda d: training.lbi_share(d, 40)),
    Measure("optimizer state / SGD with momentum, ResNet-32", "ratio", True, 2.1, 2.1, optimizer.state_ratio),
    Measure(
        "CIFAR-10 images/s / DataLoader with Pillow, 2 workers", "ratio", False, 15, 50,
        lambda device: images.cifar_pipeline(device, 5),
    ),
    Measure("growth pause, ResNet-32", "ms", True, 60, 100, training.growth_pauses),
    Measure("tracing ResNet-50", "s", True, 2, 2, lambda _: network.tracing(5)),
    Measure("CostModel / fvcore, prices a second", "ratio", False, 1000, 1000, lambda _: network.pricing(7)),
    Measure(
        "command to first step / import pytorch_lightning", "ratio", True, 1.4, 1.8,
        lambda device: startup.command_against_import(5, "gpu" if device.type == "cuda" else "cpu"),
    ),
    Measure(
        "ImageNet folder, images/s a core / Pillow without draft", "ratio", False, 1.5, None,
        lambda _: images.folder_pipeline(9),
    ),
    Measure(
        "2 processes, ResNet-18: model and measured step, smaller / larger", "ratio", False, 0.8, None,
        lambda _: processes.predicted_against_measured(7),
    ),
    Measure(
        "leaving early, MSDNet: speed-up / that of the FLOPs", "ratio", False, 0.8, None,
        lambda _: exits.of_what_flops_promise(31),
    ),
    Measure(
        "CIFAR-10 epoch, ResNet-20, bf16, compiled", "s", True, None, 1.0,
        lambda device: training.epoch_seconds(device, 5, "trainer.compile=inductor", "backbone=resnet20"),
    ),
    Measure(
        "CIFAR-10 epoch, VGG-16 at 42M FLOPs, bf16, compiled", "s", True, None, 1.0,
        lambda device: training.epoch_seconds(
            device, 5, "trainer.compile=inductor", "backbone=vgg16", "backbone.multiplier=0.366"
        ),
    ),
    Measure(
        "epoch of VGG-16 at 42M FLOPs, bf16: widths in multiples of 8 / of 1", "ratio", True, None, 1.0,
        lambda device: training.rounded_widths(device, 5),
    ),
    Measure(
        "epoch of ResNet-20, bf16: compiled / eager", "ratio", True, None, 1.0,
        lambda device: training.compiled_against_eager(device, 5),
    ),
]  # fmt: skip


def figures(number: int, device: str, threads: int) -> list[float]:
    """Those of one of MEASURES, with so many CPU threads."""
    torch.set_num_threads(threads)
    return MEASURES[number].run(torch.device(device))
