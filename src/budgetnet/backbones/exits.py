"""Networks with several exits: one forward pass to all of them, and a lazy one that stops where it is told."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from torch import Tensor, nn

from budgetnet.backbones.common import convolution
from budgetnet.errors import UsageError, nearest

State = Any
"""Feature maps on their way to the next exit: a tensor (batch, ...), None, or a list of states."""


def mapped(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """The state with every tensor changed."""
    if isinstance(state, list):
        return [mapped(part, change) for part in state]
    return None if state is None else change(state)


class ExitNetwork(nn.Module):
    """Images (batch, in_channels, height, width) to logits, a tuple with (batch, num_classes) for every exit.

    A subclass says how feature maps come about: `begin`, `block` and `needed`, and which of them a classifier reads.
    Exits are numbered from 0; `classifiers` holds one module for each, from a feature map to logits.
    """

    classifiers: nn.ModuleList

    @property
    def exits(self) -> int:
        return len(self.classifiers)

    @abstractmethod
    def begin(self, images: Tensor) -> State:
        """What the first block starts from."""

    @abstractmethod
    def block(self, state: State, number: int) -> State:
        """All of the block that ends in this exit, from the state in which the block before left it."""

    @abstractmethod
    def needed(self, state: State, number: int) -> State:
        """What this exit needs and no exit before it did, from the state in which `needed` left it for the one before.

        What only later exits need is left to them: `block` and `needed` do not go together.
        """

    @abstractmethod
    def feature(self, state: State) -> Tensor:
        """The feature map that the classifier of the last block reads."""

    def classify(self, state: State, number: int) -> tuple[Tensor, State]:
        """Logits of this exit, (batch, num_classes), and what goes on."""
        return self.classifiers[number](self.feature(state)), state

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        state = self.begin(images)
        logits = []
        for number in range(self.exits):
            state = self.block(state, number)
            here, state = self.classify(state, number)
            logits.append(here)
        return tuple(logits)

    def exit_after(self, images: Tensor, number: int) -> Tensor:
        """Logits (batch, num_classes) of one exit, and nothing computed that it does not need."""
        state = self.begin(images)
        for before in range(number + 1):
            state = self.needed(state, before)
        return self.classify(state, number)[0]

    def lazily(self, images: Tensor) -> Generator[Tensor, Tensor | None, None]:
        """Logits of one exit after the other, each computed when it is asked for.

        What is sent to the generator, bool (batch,) or None for all, are the images that go on; the logits that follow
        are of those alone. The generator ends after the last exit.
        """
        state = self.begin(images)
        for number in range(self.exits):
            state = self.needed(state, number)
            logits, state = self.classify(state, number)
            going_on = yield logits
            if going_on is not None:
                state = mapped(state, lambda tensor, here=going_on: tensor[here])  # type: ignore[misc]


def normalised(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        convolution(in_channels, out_channels, kernel_size, stride), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def bottleneck(in_channels: int, out_channels: int, stride: int, factor: int | None) -> nn.Sequential:
    """A 3×3 convolution behind a 1×1 one to `factor` times its channels, the input's at most; none where it is None."""
    inner = in_channels if factor is None else min(in_channels, factor * out_channels)
    before = [] if factor is None else [*normalised(in_channels, inner, 1)]
    return nn.Sequential(*before, *normalised(inner, out_channels, 3, stride))


def imagenet_stem(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 7×7 convolution and a pooling layer, of stride 2 each. The bias, which does nothing, is in published counts."""
    convolution = nn.Conv2d(in_channels, out_channels, 7, 2, padding=3)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


class Classifier(nn.Module):
    """Two convolutions of stride 2 and a linear layer: (batch, in_channels, height, width) to (batch, num_classes).

    hidden: channels of the convolutions, 128 in networks for CIFAR; None, as for ImageNet, means in_channels.
    """

    def __init__(self, in_channels: int, hidden: int | None, num_classes: int) -> None:
        super().__init__()
        channels = in_channels if hidden is None else hidden
        self.convolutions = nn.Sequential(normalised(in_channels, channels, 3, 2), normalised(channels, channels, 3, 2))
        self.linear = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer reads, (batch, channels)."""
        pooled: Tensor = self.convolutions(x).mean((2, 3))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x))
        return logits


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-out, as networks of this family have it: N(0, 2 / (kernel² · out_channels))."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def family_of(image_size: Sequence[int]) -> str:
    """Whose stem and classifiers suit images of this (height, width): "imagenet" from 64 pixels on, or "cifar"."""
    return "imagenet" if min(image_size) >= 64 else "cifar"


def counted(option: str, value: object, most: int, least: int = 1) -> int:
    """A whole number of a backbone's options. Raises UsageError for another value."""
    if type(value) is not int or not least <= value <= most:
        raise UsageError(f"backbone.{option}={value!r}: expected a whole number, {least} to {most}")
    return value


def chosen(option: str, value: object, among: Collection[str]) -> str:
    """One of the values that a backbone's option may have. Raises UsageError for another."""
    if not isinstance(value, str) or value not in among:
        raise UsageError(f"backbone.{option}={value!r}: expected {' or '.join(among)}{nearest(str(value), among)}")
    return value
