"""Resolution Adaptive Networks (Yang et al., CVPR 2020): sub-networks from the coarsest resolution to the finest.

Every sub-network but the first also reads the feature maps of the one before, and its last blocks have an exit each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetnet.backbones.exits import (
    Classifier,
    ExitNetwork,
    State,
    bottleneck,
    chosen,
    counted,
    family_of,
    imagenet_stem,
    initialise,
    normalised,
)
from budgetnet.errors import UsageError

FAMILY: dict[str, dict[str, object]] = {
    "cifar": {
        "scales": (1, 2, 3), "growth_factors": (4, 2, 1), "bottleneck_factors": (4, 2, 1),
        "channels": 16, "growth": 6, "step": 2, "step_mode": "lg",
    },
    "imagenet": {
        "scales": (1, 2, 3, 4), "growth_factors": (4, 2, 2, 1), "bottleneck_factors": (4, 2, 2, 1),
        "channels": 32, "growth": 16, "step": 8, "step_mode": "even",
    },
}  # fmt: skip
"""What the authors take for images of 32×32 and of 224×224 pixels."""

MOST = 2**12


@dataclass(frozen=True)
class Block:
    """A block of a sub-network.

    channels: in. layers: of `growth` new channels each. lower: channels of the feature maps of the same block in the
    sub-network before, one more than layers; none where it reads nothing from there. down: the last layer halves the
    resolution. out: channels of the block's own output, behind a 1×1 convolution if `transition`. exit: it has one.
    """

    channels: int
    layers: int
    growth: int
    lower: tuple[int, ...]
    down: bool
    transition: bool
    out: int
    exit: bool

    @property
    def maps(self) -> tuple[int, ...]:
        """Channels of its feature maps: what it starts from, and what every layer leaves."""
        return tuple(self.channels + number * self.growth for number in range(self.layers + 1))


def blocks(
    scales: Sequence[int],
    first_blocks: int,
    more_blocks: int,
    step: int,
    step_mode: str,
    channels: int,
    growth: int,
    growth_factors: Sequence[int],
    reduction: float,
    compression: float,
) -> list[list[Block]]:
    """The blocks of every sub-network, the coarsest first.

    scales: of the sub-networks' base features, 1 for the coarsest. Sub-network i, from 0, has first_blocks +
    i·more_blocks blocks; those beyond the number of the sub-network before have exits.
    """
    counts = [first_blocks + number * more_blocks for number in range(len(scales))]
    found: list[list[Block]] = []
    for number, (scale, count) in enumerate(zip(scales, counts)):
        before = counts[number - 1] if number else 0
        halving = set(counts[:number][1 - scale :]) if scale > 1 else set()
        shrinking = {math.floor((part + 1) * count / scale) for part in range(scale - 1)}
        width = channels * growth_factors[number]
        here: list[Block] = []
        for place in range(1, count + 1):
            depth = step * place if step_mode == "lg" else step
            fused = place <= before
            out = width + depth * growth * growth_factors[number]
            out += math.floor(out * compression) if fused else 0
            out = math.floor(reduction * out) if place in shrinking else out
            here.append(
                Block(
                    width,
                    depth,
                    growth * growth_factors[number],
                    found[number - 1][place - 1].maps if fused else (),
                    fused and place in halving,
                    place in shrinking,
                    out,
                    not fused,
                )
            )
            width = out
        found.append(here)
    return found


class Plain(nn.Module):
    """A layer that reads its own sub-network: what it had, and what a convolution makes of it."""

    def __init__(self, channels: int, growth: int, factor: int) -> None:
        super().__init__()
        self.normal = bottleneck(channels, growth, 1, factor)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.normal(x)], 1)


class Fusing(nn.Module):
    """A layer that also reads a feature map of the sub-network before, for `compressed` of its new channels.

    down: it halves the resolution. factors: of the bottlenecks here and there.
    """

    def __init__(
        self, channels: int, lower: int, growth: int, compressed: int, down: bool, factors: tuple[int, int]
    ) -> None:
        super().__init__()
        self.up = bottleneck(lower, compressed, 1, factors[1])
        self.normal = bottleneck(channels, growth - compressed, 2 if down else 1, factors[0])

    def forward(self, x: Tensor, lower: Tensor) -> Tensor:
        new = self.normal(x)
        return torch.cat([resized(x, new), resized(self.up(lower), new), new], 1)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`, bilinearly, the corners in their places."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


class RABlock(nn.Module):
    """Layers one after the other: (x, feature maps of the sub-network before) to (its output, its feature maps)."""

    def __init__(self, block: Block, compression: float, factors: tuple[int, int]) -> None:
        super().__init__()
        new = math.floor(block.growth * compression)
        self.layers = nn.ModuleList(
            Fusing(block.maps[i], block.lower[i], block.growth, new, block.down and i == block.layers - 1, factors)
            if block.lower
            else Plain(block.maps[i], block.growth, factors[0])
            for i in range(block.layers)
        )
        out = block.maps[-1]
        self.last = None
        if block.lower:
            self.last = normalised(block.lower[-1], math.floor(out * compression), 1)
            out += math.floor(out * compression)
        self.transition = normalised(out, block.out, 1) if block.transition else None

    def forward(self, x: Tensor, lower: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        maps = [x]
        for number, layer in enumerate(self.layers):
            maps.append(layer(maps[-1], lower[number]) if lower else layer(maps[-1]))
        out = maps[-1]
        if self.last is not None:
            out = torch.cat([out, resized(self.last(lower[-1]), out)], 1)
        return (out if self.transition is None else self.transition(out)), maps


class RANet(ExitNetwork):
    """Images to a tuple of logits: an exit reads everything before it, but for the classifiers of the other exits.

    scales: of the base features, the coarsest, 1, first; growth_factors and bottleneck_factors go with them. channels,
    growth: of a sub-network with a growth factor of 1. The other arguments are those of `blocks`; imagenet: the stem of
    stride 4, and classifiers of their input's width.
    """

    def __init__(
        self,
        scales: Sequence[int],
        growth_factors: Sequence[int],
        bottleneck_factors: Sequence[int],
        channels: int,
        growth: int,
        num_classes: int,
        in_channels: int = 3,
        first_blocks: int = 2,
        more_blocks: int = 2,
        step: int = 2,
        step_mode: str = "lg",
        reduction: float = 0.5,
        compression: float = 0.25,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        self.layout = blocks(
            scales, first_blocks, more_blocks, step, step_mode, channels, growth, growth_factors, reduction, compression
        )
        widths = [channels * factor for factor in growth_factors]
        stem = [imagenet_stem(in_channels, widths[-1]) if imagenet else normalised(in_channels, widths[-1])]
        for number in range(len(scales) - 1, 0, -1):
            stride = 1 if scales[number] == scales[number - 1] else 2
            stem.append(normalised(widths[number], widths[number - 1], 3, stride))
        self.stem = nn.ModuleList(stem)
        self.sub_networks = nn.ModuleList(
            nn.ModuleList(
                RABlock(block, compression, (bottleneck_factors[number], bottleneck_factors[max(0, number - 1)]))
                for block in here
            )
            for number, here in enumerate(self.layout)
        )
        self.classifiers = nn.ModuleList(
            Classifier(block.out, None if imagenet else 128, num_classes)
            for here in self.layout
            for block in here
            if block.exit
        )
        self._stages: list[list[tuple[int, int]]] = [[]]
        for number, here in enumerate(self.layout):
            for place, block in enumerate(here):
                self._stages[-1].append((number, place))
                if block.exit:
                    self._stages.append([])
        initialise(self)

    def begin(self, images: Tensor) -> State:
        """[base features that are to come, the coarsest first; feature maps of a sub-network, by block; its output]."""
        maps = [images]
        for convolution in self.stem:
            maps.append(convolution(maps[-1]))
        return [maps[:0:-1], [], None]

    def block(self, state: State, number: int) -> State:
        bases, own, x = state
        before: list[list[Tensor]] = []
        for sub_network, place in self._stages[number]:
            if place == 0:
                before, own, x, bases = own, [], bases[0], bases[1:]
            blocks: Any = self.sub_networks[sub_network]
            lower = before[place] if self.layout[sub_network][place].lower else []
            x, maps = blocks[place](x, lower)
            own = [*own, maps]
        return [bases, own if bases else [], x]

    def needed(self, state: State, number: int) -> State:
        return self.block(state, number)

    def feature(self, state: State) -> Tensor:
        last: Tensor = state[-1]
        return last


def build(
    num_classes: int,
    in_channels: int,
    image_size: Sequence[int] = (32, 32),
    family: str | None = None,
    scales: Sequence[int] | None = None,
    growth_factors: Sequence[int] | None = None,
    bottleneck_factors: Sequence[int] | None = None,
    channels: int | None = None,
    growth: int | None = None,
    first_blocks: int = 2,
    more_blocks: int = 2,
    step: int | None = None,
    step_mode: str | None = None,
    reduction: float = 0.5,
    compression: float = 0.25,
    name: str = "ranet",
) -> RANet:
    """A freshly initialised network. What is None is what FAMILY has for the `family`.

    family: "cifar" or "imagenet", which also have stems and classifiers of their own; None: by the image's size, from
    64 pixels on "imagenet". scales: of the sub-networks' base features, from 1, the coarsest, rising by 0 or 1. step:
    with step_mode="even" layers in each block; with "lg" block i, from 1, has i·step. The other arguments are those of
    RANet. Raises UsageError for a network that cannot be.
    """
    family = chosen("family", family or family_of(image_size), FAMILY)
    given = {
        "scales": scales, "growth_factors": growth_factors, "bottleneck_factors": bottleneck_factors,
        "channels": channels, "growth": growth, "step": step, "step_mode": step_mode,
    }  # fmt: skip
    options: dict[str, Any] = {
        option: FAMILY[family][option] if value is None else value for option, value in given.items()
    }
    for option in ("channels", "growth", "step"):
        options[option] = counted(option, options[option], MOST)
    chosen("step_mode", options["step_mode"], ("even", "lg"))
    places = [counted("scales", scale, 8) for scale in options["scales"]]
    if not places or places[0] != 1 or any(after - before not in (0, 1) for before, after in pairwise(places)):
        raise UsageError(f"backbone.scales={places}: expected 1, the coarsest, first, and each the same or one more")
    factors = [counted("growth_factors", factor, MOST) for factor in options["growth_factors"]]
    inner = [counted("bottleneck_factors", factor, MOST) for factor in options["bottleneck_factors"]]
    if not len(places) == len(factors) == len(inner):
        raise UsageError(
            f"backbone.scales={places} beside growth_factors={factors} and bottleneck_factors={inner}: expected one of "
            "each for every sub-network"
        )
    if math.floor(min(factors) * options["growth"] * compression) < 1 or not compression < 1:
        raise UsageError(
            f"backbone.compression={compression!r}: expected a part below 1 that leaves a channel of "
            f"backbone.growth={options['growth']} or more"
        )
    if not 0 < reduction <= 1:
        raise UsageError(f"backbone.reduction={reduction!r}: expected a number above 0, to 1")
    if min(image_size) // (4 if family == "imagenet" else 1) >> (places[-1] - 1) < 1:
        raise UsageError(
            f"backbone=ranet: images of {min(image_size)} pixels are too small for {places[-1]} scales: give fewer"
        )
    return RANet(
        places,
        factors,
        inner,
        options["channels"],
        options["growth"],
        num_classes,
        in_channels,
        counted("first_blocks", first_blocks, 64),
        counted("more_blocks", more_blocks, 64),
        options["step"],
        options["step_mode"],
        reduction,
        compression,
        family == "imagenet",
    )
