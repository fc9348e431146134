"""Parameters in three kinds of groups, and steps with gradients that are a function of their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = [(6, 3, 3, 3), (4, 6, 1, 1), (5, 7), (6,)]


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def gradients(params: Sequence[Tensor], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in params]


def take_steps(optimizer: torch.optim.Optimizer, params: Sequence[Tensor], first: int, last: int) -> None:
    for step in range(first, last):
        for param, gradient in zip(params, gradients(params, step), strict=True):
            param.grad = gradient
        optimizer.step()


def groups_of(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The two convolutions select filters, the linear weight entries, the vector nothing."""
    return [
        {"params": params[:2], "sparse": "filter"},
        {"params": params[2:3], "sparse": "entry"},
        {"params": params[3:]},
    ]


def assert_close(actual: Tensor | None, expected: Tensor | None, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


def assert_same_bits(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
