"""A sub-network in training, and the stored tensors of the full network that it is sampled from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.channels.width_change import WidthChange

Kept = Mapping[str, Sequence[int]]
"""The channels of the full network that are in the sub-network, increasing, by group."""


class FullNetwork:
    """Full-width copies, on the CPU, of all tensors that have one of `groups` along an axis, with their momentum.

    It is made while the network has its full widths. After the network is resized, `give` fills it with the entries of
    its channels, and `take` stores them again after training. All other entries stay bit-identical.
    """

    def __init__(self, graph: ChannelGraph, groups: Iterable[str]) -> None:
        self.graph = graph
        self.widths = graph.widths
        everything = {name: list(range(self.widths[name])) for name in groups}
        self.tensors = {
            name: _live(graph, name).detach().cpu().clone(memory_format=torch.contiguous_format)
            for name in self._width_change(everything).tensors()
        }
        self.momentum: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, kept: Kept, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Store the entries and the momentum of the live network, which has the channels `kept`."""
        for name, position in self._positions(kept):
            live = _live(self.graph, name)
            full = self.tensors[name] = self.tensors[name].to(live.dtype)  # the network may have been converted
            _put(full, position, live)
            momentum = _momentum(optimizer, live)
            if momentum is not None:
                _put(self.momentum.setdefault(name, torch.zeros_like(full)), position, momentum)

    @torch.no_grad()
    def give(self, kept: Kept, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Fill the live network, which has the widths of `kept`, with the entries and momentum of these channels."""
        for name, position in self._positions(kept):
            live = _live(self.graph, name)
            live.copy_(self.tensors[name].reshape(-1)[position])
            momentum = _momentum(optimizer, live)
            if momentum is not None:
                momentum.copy_(self.momentum[name].reshape(-1)[position])

    def state_dict(self) -> dict[str, Any]:
        """The stored tensors and their momentum."""
        return {"tensors": self.tensors, "momentum": self.momentum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.tensors, self.momentum = (
            {name: tensor.cpu().clone() for name, tensor in state[key].items()} for key in ("tensors", "momentum")
        )

    def _positions(self, kept: Kept) -> Iterable[tuple[str, Tensor]]:
        """For each tensor, the positions of its entries in the flattened full tensor."""
        change = self._width_change(kept)
        for name, full in self.tensors.items():
            yield name, change.migrate(name, torch.arange(full.numel()).reshape(full.shape))

    def _width_change(self, kept: Kept) -> WidthChange:
        return WidthChange(self.graph, self.widths, {name: torch.tensor(own) for name, own in kept.items()}, None)


def _put(full: Tensor, position: Tensor, values: Tensor) -> None:
    full.view(-1)[position.reshape(-1)] = values.detach().cpu().reshape(-1)


def _live(graph: ChannelGraph, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor = getattr(graph.model.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _momentum(optimizer: torch.optim.Optimizer | None, tensor: Tensor) -> Tensor | None:
    """The momentum of SGD for a tensor, or None."""
    state = {} if optimizer is None else optimizer.state.get(tensor, {})
    momentum: Tensor | None = state.get("momentum_buffer")
    return momentum
