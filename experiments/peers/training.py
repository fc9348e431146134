"""What a user of any pruner has already: data, a training loop, an accuracy, and a count of FLOPs by fvcore."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones import build
from budgetnet.data.datamodule import DataModule
from budgetnet.data.options import DatasetOptions
from experiments.study_capacity.small import VGG8, cifar10_at_16
from experiments.zoo.measures import fvcore_flops

SHAPE = (1, 3, 16, 16)
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


@dataclass(frozen=True)
class Problem:
    """A network, its budget of FLOPs, and how long everything may take.

    ours: epochs of the full network and of what is left of it that cost as much in all as a run of the study does, or
    up to 5 % less. usual: those of the study's fixed networks. example: those of FastNAS's notebook.
    """

    name: str
    limit: int
    ours: tuple[int, int]
    usual: tuple[int, int] = (20, 20)
    example: tuple[int, int] = (120, 120)

    def network(self, seed: int) -> nn.Module:
        """The full network, untrained."""
        torch.manual_seed(seed)
        return VGG8(10) if self.name == "vgg8" else build("resnet20")


PROBLEMS = {
    "vgg8": Problem("vgg8", limit=1_200_000, ours=(5, 5)),
    "resnet20": Problem("resnet20", limit=4_000_000, ours=(5, 7)),
}


def data(root: str, seed: int) -> DataModule:
    """CIFAR-10 at 16×16: 25,000 training images, 5,000 held out, and the test set, as in experiments/study_capacity."""
    options = DatasetOptions(
        root=root, download=False, validation=5000, limit_train=25000, augment={"padding": 2, "flip": True}, seed=seed,
        **CIFAR10,
    )  # fmt: skip
    return DataModule(options, cifar10_at_16)


def train(net: nn.Module, images: DataModule, epochs: int, rate: float = 0.1) -> None:
    """SGD with momentum and one cosine, in place, with the rates and batches of the study's fixed networks.

    Every parameter decays, as in the tools' examples; in the study batch norms and biases do not. Channels last, since
    a step on a CPU then takes a tenth (ResNet-20) to a quarter (VGG) less; FastNAS takes contiguous weights alone.
    """
    net.to(memory_format=torch.channels_last)
    loader = images.train_dataloader()
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    steps, step = epochs * len(loader), 0
    net.train()
    for loader.epoch in range(epochs):
        for batch, labels in loader:
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            F.cross_entropy(net(batch.contiguous(memory_format=torch.channels_last)), labels).backward()
            optimizer.step()
            step += 1
    net.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def accuracy(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Top-1 in percent."""
    net.eval()
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def flops(net: nn.Module) -> int:
    """fvcore's integer for one image."""
    return fvcore_flops(net.eval(), SHAPE)
