"""A network with exits as one module for each exit, from tensors to tensors: what any runtime can leave early.

logits, *maps = stages[0](images)
logits, *maps = stages[1](*maps)        # of the images that are to go on
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from budgetnet.backbones.exits import ExitNetwork, State


class Stage(nn.Module):
    """What leads to one exit: images, or the feature maps of the stage before, to its logits and feature maps.

    The first dimension of all of them is the batch. layout: the state that it starts from, with a number in place of
    every tensor.
    """

    def __init__(self, network: ExitNetwork, number: int, layout: State) -> None:
        super().__init__()
        self.network, self.number, self.layout = network, number, layout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = self.network.begin(tensors[0]) if self.number == 0 else _filled(self.layout, tensors)
        logits, state = self.network.classify(self.network.needed(state, self.number), self.number)
        if self.number == self.network.exits - 1:
            return (logits,)
        return (logits, *_tensors(state))


def stages(network: ExitNetwork, shape: tuple[int, int, int]) -> list[Stage]:
    """The stages of a network, which share its parameters. shape: (channels, height, width) of an image."""
    parameter = next(network.parameters())
    images = torch.zeros(2, *shape, dtype=parameter.dtype, device=parameter.device)
    training, found = network.training, []
    state: State = None
    network.eval()
    with torch.no_grad():
        for number in range(network.exits):
            found.append(Stage(network, number, _numbered(state)))
            state = network.needed(network.begin(images) if number == 0 else state, number)
            _, state = network.classify(state, number)
    return [stage.train(training) for stage in found]


def _tensors(state: State) -> list[Tensor]:
    if isinstance(state, list):
        return [tensor for part in state for tensor in _tensors(part)]
    return [] if state is None else [state]


def _numbered(state: State) -> State:
    count = iter(range(len(_tensors(state))))

    def number(part: State) -> State:
        if isinstance(part, list):
            return [number(each) for each in part]
        return None if part is None else next(count)

    return number(state)


def _filled(layout: State, tensors: tuple[Tensor, ...]) -> Any:
    if isinstance(layout, list):
        return [_filled(part, tensors) for part in layout]
    return None if layout is None else tensors[layout]
