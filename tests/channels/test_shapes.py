"""What follows from shapes alone is what torch itself gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from budgetnet.channels import shapes
from budgetnet.channels.shadow import QuickShapes


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


X, ROWS, ONE = meta(2, 6, 5, 4), meta(3, 7, 6), meta(1, 6, 1, 1)
KNOWN: dict[str, Callable[[], Tensor]] = {
    "relu": lambda: F.relu(X),
    "silu in place": lambda: F.silu(meta(2, 3), inplace=True),
    "dropout": lambda: F.dropout(X, 0.5),
    "spread": lambda: X * ONE,
    "spread from the left": lambda: ONE + X,
    "more dimensions": lambda: meta(4) - X,
    "a number": lambda: 2 / X,
    "clamp": lambda: X.clamp(0, 6),
    "half": lambda: torch.tanh(meta(2, 3, dtype=torch.bfloat16)),
    "cat": lambda: torch.cat([X, meta(2, 1, 5, 4), X], dim=1),
    "cat from the end": lambda: torch.cat((ROWS, ROWS), -1),
    "linear": lambda: F.linear(ROWS, meta(9, 6), meta(9)),
    "linear without bias": lambda: F.linear(ROWS, meta(9, 6)),
    "mean": lambda: X.mean((2, 3)),
    "mean of one dimension, kept": lambda: torch.mean(X, dim=-1, keepdim=True),
    "pooled": lambda: F.adaptive_avg_pool2d(X, 1),
    "pooled without images": lambda: F.adaptive_avg_pool2d(meta(6, 5, 4), (1, 1)),
    "convolution": lambda: F.conv2d(X, meta(8, 6, 3, 3), meta(8), stride=2, padding=1),
    "convolution by groups": lambda: F.conv2d(X, meta(12, 2, 3, 1), None, (1, 2), (2, 0), (2, 1), groups=3),
    "convolution of rows": lambda: F.conv1d(ROWS, meta(5, 7, 3), padding=(1,)),
    "average pool": lambda: F.avg_pool2d(X, 3, 1, 1),
    "max pool": lambda: F.max_pool2d(X, 2),
    "max pool with steps": lambda: F.max_pool2d(X[0], 3, 2, 1),
    "max pool of a rectangle": lambda: F.max_pool2d(X, (3, 2), stride=(1, 2), padding=(1, 0), dilation=2),
    "batch norm": lambda: F.batch_norm(X, meta(6), meta(6), meta(6), meta(6)),
    "batch norm in training": lambda: F.batch_norm(X, None, None, training=True),
    "layer norm": lambda: F.layer_norm(ROWS, (7, 6), meta(7, 6)),
    "group norm": lambda: F.group_norm(X, 3, meta(6), meta(6)),
    "prelu": lambda: F.prelu(X, meta(6)),
}
LEFT_TO_TORCH: dict[str, Callable[[], Tensor]] = {
    "integers": lambda: meta(3, dtype=torch.int64) / meta(3, dtype=torch.int64),
    "two types": lambda: X * meta(6, 5, 4, dtype=torch.float64),
    "cat of two types": lambda: torch.cat([ROWS, ROWS.double()]),
    "cat with nothing": lambda: torch.cat([ROWS, meta(0)]),
    "mean in another type": lambda: ROWS.mean(1, dtype=torch.float64),
    "mean of everything": lambda: ROWS.mean(),
    "convolution with named padding": lambda: F.conv2d(X, meta(8, 6, 3, 3), padding="same"),
    "convolution of one image": lambda: F.conv2d(X[0], meta(8, 6, 3, 3)),
    "average pool that rounds up": lambda: F.avg_pool2d(X, 2, ceil_mode=True),
    "max pool that rounds up": lambda: F.max_pool2d(X, 2, ceil_mode=True),
    "no average": lambda: F.adaptive_avg_pool2d(X, (2, 1)),
    "on the CPU": lambda: F.relu(torch.zeros(3)),
}
ERRORS: dict[str, Callable[[], Tensor]] = {
    "shapes that do not meet": lambda: X + meta(3),
    "in place, spread": lambda: meta(6, 1).add_(meta(6, 6)),
    "linear": lambda: F.linear(ROWS, meta(9, 5)),
    "max pool": lambda: F.max_pool2d(X, 7),
    "max pool, padding": lambda: F.max_pool2d(X, 2, padding=2),
    "channels": lambda: F.conv2d(X, meta(8, 5, 3, 3)),
    "window": lambda: F.conv2d(X, meta(8, 6, 7, 7)),
    "bias": lambda: F.linear(ROWS, meta(9, 6), meta(8)),
    "cat": lambda: torch.cat([X, ROWS]),
    "mean": lambda: X.mean(4),
    "batch norm": lambda: F.batch_norm(X, meta(5), meta(5)),
    "one value of each channel": lambda: F.batch_norm(meta(1, 6, 1, 1), None, None, training=True),
    "layer norm": lambda: F.layer_norm(ROWS, (7,)),
    "group norm": lambda: F.group_norm(X, 4),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_result_known_from_shapes_is_that_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor | None] = []
    result = shapes.result
    monkeypatch.setattr(shapes, "result", lambda call: found.append(result(call)) or found[-1])
    with torch.no_grad(), QuickShapes():
        given = KNOWN[name]()
    assert found[-1] is not None
    with torch.no_grad():
        expected = KNOWN[name]()
    assert (given.shape, given.dtype, given.device) == (expected.shape, expected.dtype, expected.device)


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_what_shapes_do_not_tell_is_left_to_torch(name: str) -> None:
    with torch.no_grad(), QuickShapes():
        given = LEFT_TO_TORCH[name]()
    expected = LEFT_TO_TORCH[name]()
    assert (given.shape, given.dtype, given.device) == (expected.shape, expected.dtype, expected.device)


@pytest.mark.parametrize("name", ERRORS)
def test_what_torch_refuses_is_refused(name: str) -> None:
    with torch.no_grad(), QuickShapes(), pytest.raises((RuntimeError, ValueError, IndexError)):
        ERRORS[name]()
