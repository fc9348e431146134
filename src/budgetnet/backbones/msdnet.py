"""Multi-Scale Dense Networks (Huang et al., ICLR 2018): dense connections at several scales, a classifier at each exit.

Layer t gives a feature map at every scale that is kept: what that scale had, beside what a convolution makes of it and,
but for the finest, what one of stride 2 makes of the next finer scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
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
        "base": 1, "step": 1, "step_mode": "lin_grow", "channels": 16, "growth": 6,
        "growth_factors": (1, 2, 4), "bottleneck_factors": (1, 2, 4),
    },
    "imagenet": {
        "base": 4, "step": 4, "step_mode": "even", "channels": 32, "growth": 16,
        "growth_factors": (1, 2, 4, 4), "bottleneck_factors": (1, 2, 4, 4),
    },
}  # fmt: skip
"""What the papers take for images of 32×32 and of 224×224 pixels."""

MOST, MOST_EXITS = 2**12, 64


@dataclass(frozen=True)
class Layer:
    """A layer of the network. Scales are numbered from 0, the finest.

    block: the number of the block, and so of the exit, that it belongs to. first: the finest scale that it gives.
    drops: it reads one finer scale, for the last time. channels: in, for a growth factor of 1. transition: channels out
    of the 1×1 convolution that follows at every scale, for a growth factor of 1; None: there is none.
    """

    block: int
    first: int
    drops: bool
    channels: int
    transition: int | None

    def reads_finer(self, scale: int) -> bool:
        return scale > self.first or self.drops


def layers(
    steps: Sequence[int], scales: int, channels: int, growth: int, prune: str = "max", reduction: float = 0.5
) -> tuple[Layer, ...]:
    """The layers of a network with so many of them in each block.

    prune: "max" drops a scale after each of `scales` equal parts of the network; "min" drops one where no layer that
    follows could bring it to a classifier any more. reduction: of channels, in transitions; 0: there are none.
    """
    total = sum(steps)
    interval = math.ceil(total / scales)
    found: list[Layer] = []
    kept = scales
    for number, block in enumerate([k for k, count in enumerate(steps) for _ in range(count)], start=1):
        keeps = scales - (number - 1) // interval if prune == "max" else min(scales, total - number + 1)
        drops = keeps < kept
        shrinks = drops if prune == "max" else number in (total // 3, 2 * total // 3)
        transition = math.floor(reduction * (channels + growth)) if shrinks and reduction else None
        found.append(Layer(block, scales - keeps, drops, channels, transition))
        channels = channels + growth if transition is None else transition
        kept = keeps
    return tuple(found)


def reach(found: Sequence[Layer], scales: int, count: int) -> list[int]:
    """By scale, how many layers must be computed there for the exit after the first `count` layers."""
    wanted = [0] * (scales - 1) + [count]
    for scale in range(scales - 1, 0, -1):
        readers = [number for number in range(wanted[scale]) if found[number].reads_finer(scale)]
        wanted[scale - 1] = max(readers, default=0)
    return wanted


class Cell(nn.Module):
    """One layer at one scale: (batch, channels, height, width) to what it had and, beside it, what is new.

    growth: new channels; half of them come from the next finer scale, of `finer` channels and twice the size, unless
    that is None. factors: of the bottlenecks at this scale and at the finer one. transition: channels in the end.
    """

    def __init__(
        self,
        channels: int,
        growth: int,
        factors: tuple[int | None, int | None],
        finer: int | None = None,
        transition: int | None = None,
    ) -> None:
        super().__init__()
        new = growth if finer is None else growth // 2
        self.down = None if finer is None else bottleneck(finer, new, 2, factors[1])
        self.normal = bottleneck(channels, new, 1, factors[0])
        self.transition = None if transition is None else normalised(channels + growth, transition, 1)

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        parts = [x] if self.down is None else [x, self.down(finer)]
        out = torch.cat([*parts, self.normal(x)], 1)
        return out if self.transition is None else self.transition(out)


class MSDNet(ExitNetwork):
    """Images to a tuple of logits. Its state is a list of the feature maps of all scales, None for a dropped one.

    steps: layers in each block. growth_factors, bottleneck_factors: by scale, the finest first; a factor of None means
    no bottleneck. channels, growth: of a scale with a growth factor of 1. imagenet: the stem of stride 4, and
    classifiers of their input's width. A feature map that no exit reads is not computed and has no parameters.
    """

    def __init__(
        self,
        steps: Sequence[int],
        growth_factors: Sequence[int],
        bottleneck_factors: Sequence[int | None],
        channels: int,
        growth: int,
        num_classes: int,
        in_channels: int = 3,
        prune: str = "max",
        reduction: float = 0.5,
        imagenet: bool = False,
    ) -> None:
        super().__init__()
        scales = len(growth_factors)
        self.layers = layers(steps, scales, channels, growth, prune, reduction)
        ends = [sum(steps[: number + 1]) for number in range(len(steps))]
        reaches = [reach(self.layers, scales, end) for end in ends]
        self._whole = [
            self._plan([start] * scales, [end] * scales, reaches[-1]) for start, end in zip([0, *ends], ends)
        ]
        self._needed = [self._plan(before, here, here) for before, here in zip([[0] * scales, *reaches], reaches)]

        widths = [channels * factor for factor in growth_factors]
        first = imagenet_stem(in_channels, widths[0]) if imagenet else normalised(in_channels, widths[0])
        self.stem = nn.ModuleList([first, *(normalised(a, b, 3, 2) for a, b in pairwise(widths))])
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    _name(number, scale): self._cell(number, scale, growth, growth_factors, bottleneck_factors)
                    for number, scales_here in plan
                    for scale in scales_here
                }
            )
            for plan in self._whole
        )
        out = [layer.channels for layer in self.layers[1:]] + [_channels_after(self.layers[-1], growth)]
        self.classifiers = nn.ModuleList(
            Classifier(out[end - 1] * growth_factors[-1], None if imagenet else 128, num_classes) for end in ends
        )
        initialise(self)

    def _plan(self, start: Sequence[int], end: Sequence[int], most: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        """(number of a layer, scales computed there), by scale after `start` layers up to `end` and at most `most`."""
        plan = []
        for number, layer in enumerate(self.layers):
            scales = range(layer.first, len(end))
            here = tuple(s for s in scales if start[s] <= number < min(end[s], most[s]))
            if here:
                plan.append((number, here))
        return plan

    def _cell(
        self, number: int, scale: int, growth: int, growth_factors: Sequence[int], factors: Sequence[int | None]
    ) -> Cell:
        layer, factor = self.layers[number], growth_factors[scale]
        return Cell(
            layer.channels * factor,
            growth * factor,
            (factors[scale], factors[scale - 1]),
            layer.channels * growth_factors[scale - 1] if layer.reads_finer(scale) else None,
            None if layer.transition is None else layer.transition * factor,
        )

    def begin(self, images: Tensor) -> State:
        maps = [images]
        for convolution in self.stem:
            maps.append(convolution(maps[-1]))
        return maps[1:]

    def block(self, state: State, number: int) -> State:
        return self._run(state, self._whole[number])

    def needed(self, state: State, number: int) -> State:
        return self._run(state, self._needed[number])

    def feature(self, state: State) -> Tensor:
        coarsest: Tensor = state[-1]
        return coarsest

    def _run(self, state: State, plan: Sequence[tuple[int, tuple[int, ...]]]) -> State:
        maps = list(state)
        for number, scales in plan:
            layer = self.layers[number]
            cells: Any = self.blocks[layer.block]
            new = {
                scale: cells[_name(number, scale)](maps[scale], maps[scale - 1] if layer.reads_finer(scale) else None)
                for scale in scales
            }
            for scale, value in new.items():
                maps[scale] = value
            if layer.drops and layer.first in new:
                maps[layer.first - 1] = None
        return maps


def _name(number: int, scale: int) -> str:
    return f"layer{number + 1}_scale{scale}"


def _channels_after(layer: Layer, growth: int) -> int:
    return layer.channels + growth if layer.transition is None else layer.transition


def build(
    num_classes: int,
    in_channels: int,
    image_size: Sequence[int] = (32, 32),
    exits: int = 5,
    family: str | None = None,
    base: int | None = None,
    step: int | None = None,
    step_mode: str | None = None,
    channels: int | None = None,
    growth: int | None = None,
    growth_factors: Sequence[int] | None = None,
    bottleneck_factors: Sequence[int] | None = None,
    bottleneck: bool = True,
    prune: str = "max",
    reduction: float = 0.5,
    name: str = "msdnet",
) -> MSDNet:
    """A freshly initialised network. What is None is what FAMILY has for the `family`.

    family: "cifar" or "imagenet", which also have stems and classifiers of their own; None: by the image's size, from
    64 pixels on "imagenet". base: layers before the first exit. step: with step_mode="even" layers between exits, with
    "lin_grow" layers by which their number grows (step·k + 1 before exit k + 1). The other arguments are those of
    MSDNet. Raises UsageError for a network that cannot be.
    """
    family = chosen("family", family or family_of(image_size), FAMILY)
    given = {
        "base": base, "step": step, "step_mode": step_mode, "channels": channels, "growth": growth,
        "growth_factors": growth_factors, "bottleneck_factors": bottleneck_factors,
    }  # fmt: skip
    options: dict[str, Any] = {
        option: FAMILY[family][option] if value is None else value for option, value in given.items()
    }
    for option in ("base", "step", "channels", "growth"):
        options[option] = counted(option, options[option], MOST)
    exits = counted("exits", exits, MOST_EXITS, least=2)
    factors = [counted("growth_factors", factor, MOST) for factor in options["growth_factors"]]
    inner = [counted("bottleneck_factors", factor, MOST) for factor in options["bottleneck_factors"]]
    if len(factors) != len(inner) or not factors:
        raise UsageError(
            f"backbone.bottleneck_factors={inner} beside backbone.growth_factors={factors}: expected one for each scale"
        )
    if any(options["growth"] * factor % 2 for factor in factors[1:]):
        raise UsageError(
            f"backbone.growth={options['growth']}: expected an even number of new channels at every scale but the "
            f"finest, where half of them come from the finer one; growth_factors={factors}"
        )
    if not 0 <= reduction <= 1:
        raise UsageError(f"backbone.reduction={reduction!r}: expected a number from 0, no transitions, to 1")
    even = chosen("step_mode", options["step_mode"], ("even", "lin_grow")) == "even"
    steps = [options["base"]] + [options["step"] if even else options["step"] * k + 1 for k in range(1, exits)]
    if sum(steps) < len(factors):
        raise UsageError(
            f"backbone=msdnet has {sum(steps)} layers: expected at least one for each of {len(factors)} scales"
        )
    coarsest = min(image_size) // (4 if family == "imagenet" else 1) >> (len(factors) - 1)
    if coarsest < 1:
        raise UsageError(
            f"backbone=msdnet: images of {min(image_size)} pixels are too small for {len(factors)} scales: give fewer "
            "growth_factors and bottleneck_factors"
        )
    return MSDNet(
        steps,
        factors,
        inner if bottleneck else [None] * len(inner),
        options["channels"],
        options["growth"],
        num_classes,
        in_channels,
        chosen("prune", prune, ("max", "min")),
        reduction,
        family == "imagenet",
    )
