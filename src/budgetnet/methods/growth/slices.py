"""What single channels have in the tensors of a network: read, added to, and trained at a fixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RATE = 0.1
"""How far a gradient step turns what is trained, whose length stays."""


@dataclass(frozen=True)
class ChannelSlice:
    """Of one tensor what belongs to each of n channels: `positions`, (n, k), along its dimension `dim`."""

    tensor: str
    dim: int
    positions: Tensor

    def read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(n, k, ...), a copy."""
        values = tensors[self.tensor]
        return values.movedim(self.dim, 0)[self.positions.to(values.device)]

    def put(self, tensors: dict[str, Tensor], values: Tensor) -> None:
        """Put the tensor with `values`, (n, k, ...), written into it, in its place."""
        old, new = tensors[self.tensor], values.flatten(0, 1).movedim(0, self.dim)
        tensors[self.tensor] = old.index_copy(self.dim, self.positions.flatten().to(old.device), new.to(old.dtype))

    def add(self, tensors: dict[str, Tensor], values: Tensor) -> None:
        """Put the sum with `values`, (n, k, ...), in the tensor's place."""
        old, new = tensors[self.tensor], values.flatten(0, 1).movedim(0, self.dim)
        tensors[self.tensor] = old.index_add(self.dim, self.positions.flatten().to(old.device), new.to(old.dtype))


class Side:
    """One thing that n candidates have, and that is trained: what they add to `parts` of the network."""

    def __init__(self, parts: Sequence[ChannelSlice], values: Sequence[Tensor]) -> None:
        self.parts, self.values = list(parts), list(values)
        self.masks: list[Tensor] = []

    @classmethod
    def taken(cls, parts: Sequence[ChannelSlice], tensors: dict[str, Tensor]) -> Side:
        """What is there now, taken away."""
        side = cls(parts, [part.read(tensors) for part in parts])
        for part, value in zip(side.parts, side.values, strict=True):
            part.add(tensors, -value)
        return side

    @property
    def count(self) -> int:
        return len(self.parts[0].positions)

    def add(self, tensors: dict[str, Tensor], gate: Tensor) -> None:
        """Let the candidates in as far as their gate, (n,), is open."""
        for part, value in zip(self.parts, times(self.values, gate), strict=True):
            part.add(tensors, value)

    def confine(self, masks: Sequence[Tensor]) -> None:
        """Let nothing be where the masks are 0; what is left makes up for it in variance."""
        self.masks = list(masks)
        self.values = [
            value * mask * (mask.numel() / mask.sum()).sqrt() for value, mask in zip(self.values, masks, strict=True)
        ]

    def scale(self, factor: float) -> None:
        self.values = [factor * value for value in self.values]

    def lengthen(self, length: Tensor) -> None:
        """Give what the candidates have these norms, (n,)."""
        self.values = times(self.values, length / norms(self.values).clamp_min(1e-30))

    def descend(self, gradients: Sequence[Tensor]) -> None:
        """Turn it towards the lower loss."""
        if self.masks:
            gradients = [gradient * mask for gradient, mask in zip(gradients, self.masks, strict=True)]
        values, length = [value.detach() for value in self.values], norms(self.values).detach()
        steps = times(gradients, -RATE * length / norms(gradients).clamp_min(1e-30))
        self.values = [value + step for value, step in zip(values, steps, strict=True)]
        self.lengthen(length)


def norms(values: Sequence[Tensor]) -> Tensor:
    """(n,) norms over all the tensors, each (n, ...), together."""
    found: Tensor = torch.linalg.vector_norm(torch.cat([value.flatten(1) for value in values], dim=1), dim=1)
    return found


def times(values: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    """Each tensor, (n, ...), times (n,)."""
    return [value * factors.to(value).reshape(-1, *[1] * (value.dim() - 1)) for value in values]
