"""A network of which only a part is there: the rest waits, as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from budgetnet.channels import ChannelGraph
from budgetnet.channels.surgery import Surgery

Kept = Mapping[str, Sequence[int]]
"""The channels of the full network that are there, by group, increasing."""


class FullNetwork:
    """Every tensor of a network that has one of `groups` along an axis, and its momentum, at full width, on the CPU.

    Made while the network is full. `resize` it then, and `give` it the entries of the channels that are there; `take`
    brings back what became of them. All others stay bit-identical.
    """

    def __init__(self, graph: ChannelGraph, groups: Iterable[str]) -> None:
        self.graph = graph
        self.widths = graph.widths
        everything = {name: list(range(self.widths[name])) for name in groups}
        self.tensors = {
            name: _live(graph, name).detach().cpu().clone(memory_format=torch.contiguous_format)
            for name in self._surgery(everything).tensors()
        }
        self.momentum: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, kept: Kept, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Store the entries of the live network, which has the channels `kept`, and the optimizer's momentum."""
        for name, position in self._positions(kept):
            live = _live(self.graph, name)
            full = self.tensors[name] = self.tensors[name].to(live.dtype)  # the network may have been converted
            _put(full, position, live)
            momentum = _momentum(optimizer, live)
            if momentum is not None:
                _put(self.momentum.setdefault(name, torch.zeros_like(full)), position, momentum)

    @torch.no_grad()
    def give(self, kept: Kept, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Fill the live network, which has the widths of `kept` already, with the entries of these channels."""
        for name, position in self._positions(kept):
            live = _live(self.graph, name)
            live.copy_(self.tensors[name].reshape(-1)[position])
            momentum = _momentum(optimizer, live)
            if momentum is not None:
                momentum.copy_(self.momentum[name].reshape(-1)[position])

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": self.tensors, "momentum": self.momentum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tensors, self.momentum = ({k: v.cpu().clone() for k, v in state[part].items()} for part in state)

    def _positions(self, kept: Kept) -> Iterable[tuple[str, Tensor]]:
        """Of each tensor, where in the flat full one its entries stand."""
        surgery = self._surgery(kept)
        for name, full in self.tensors.items():
            yield name, surgery.migrate(name, torch.arange(full.numel()).reshape(full.shape))

    def _surgery(self, kept: Kept) -> Surgery:
        return Surgery(self.graph, self.widths, {name: torch.tensor(own) for name, own in kept.items()}, None)


def _put(full: Tensor, position: Tensor, values: Tensor) -> None:
    full.view(-1)[position.reshape(-1)] = values.detach().cpu().reshape(-1)


def _live(graph: ChannelGraph, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor = getattr(graph.model.get_submodule(path), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _momentum(optimizer: torch.optim.Optimizer | None, tensor: Tensor) -> Tensor | None:
    """SGD's, where there is one."""
    state = {} if optimizer is None else optimizer.state.get(tensor, {})
    momentum: Tensor | None = state.get("momentum_buffer")
    return momentum
