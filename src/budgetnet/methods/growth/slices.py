"""Slices of a network's tensors that belong to single channels, and trainable values of a fixed norm for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RATE = 0.1
"""Length of a gradient step relative to the norm of the trained values, which the step does not change."""


@dataclass(frozen=True)
class ChannelSlice:
    """The slice of one tensor that belongs to n channels: `positions`, (n, k), along its dimension `dim`."""

    tensor: str
    dim: int
    positions: Tensor

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A copy of the slice, (n, k, ...)."""
        values = tensors[self.tensor]
        return values.movedim(self.dim, 0)[self.positions.to(values.device)]

    def put(self, tensors: dict[str, Tensor], values: Tensor) -> None:
        """Replace the tensor in `tensors` by one whose slice has these `values`, (n, k, ...)."""
        old, new = tensors[self.tensor], values.flatten(0, 1).movedim(0, self.dim)
        tensors[self.tensor] = old.index_copy(self.dim, self.positions.flatten().to(old.device), new.to(old.dtype))

    def add(self, tensors: dict[str, Tensor], values: Tensor) -> None:
        """Replace the tensor in `tensors` by one with `values`, (n, k, ...), added to the slice."""
        old, new = tensors[self.tensor], values.flatten(0, 1).movedim(0, self.dim)
        tensors[self.tensor] = old.index_add(self.dim, self.positions.flatten().to(old.device), new.to(old.dtype))


class Side:
    """Trainable values that n candidates add to slices (`parts`) of a network: their filters or outgoing weights."""

    def __init__(self, parts: Sequence[ChannelSlice], values: Sequence[Tensor]) -> None:
        self.parts, self.values = list(parts), list(values)
        self.masks: list[Tensor] = []

    @classmethod
    def taken(cls, parts: Sequence[ChannelSlice], tensors: dict[str, Tensor]) -> Side:
        """Take the current values of the slices and set those in `tensors` to zero."""
        side = cls(parts, [part.read(tensors) for part in parts])
        for part, value in zip(side.parts, side.values, strict=True):
            part.add(tensors, -value)
        return side

    @property
    def count(self) -> int:
        """The number of candidates."""
        return len(self.parts[0].positions)

    def add(self, tensors: dict[str, Tensor], gate: Tensor) -> None:
        """Add the values of the candidates, times their gates, (n,), to the tensors."""
        for part, value in zip(self.parts, times(self.values, gate), strict=True):
            part.add(tensors, value)

    def confine(self, masks: Sequence[Tensor]) -> None:
        """Set the values to zero where the masks are 0, and scale the others so that the variance stays the same."""
        self.masks = list(masks)
        self.values = [
            value * mask * (mask.numel() / mask.sum()).sqrt() for value, mask in zip(self.values, masks, strict=True)
        ]

    def scale(self, factor: float) -> None:
        """Multiply the values by a factor."""
        self.values = [factor * value for value in self.values]

    def lengthen(self, length: Tensor) -> None:
        """Scale the values of each candidate to these norms, (n,)."""
        self.values = times(self.values, length / norms(self.values).clamp_min(1e-30))

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Take a step against the gradients that does not change the norms of the candidates."""
        if self.masks:
            gradients = [gradient * mask for gradient, mask in zip(gradients, self.masks, strict=True)]
        values, length = [value.detach() for value in self.values], norms(self.values).detach()
        steps = times(gradients, -RATE * length / norms(gradients).clamp_min(1e-30))
        self.values = [value + step for value, step in zip(values, steps, strict=True)]
        self.lengthen(length)


def norms(values: Sequence[Tensor]) -> Tensor:
    """The norm of each of n candidates over all tensors, each (n, ...), together: (n,)."""
    found: Tensor = torch.linalg.vector_norm(torch.cat([value.flatten(1) for value in values], dim=1), dim=1)
    return found


def times(values: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    """Each tensor, (n, ...), times the factors, (n,)."""
    return [value * factors.to(value).reshape(-1, *[1] * (value.dim() - 1)) for value in values]
