from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from budgetnet.optim import prox_entries, prox_filters


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


entries = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=12, max_size=12)
thresholds = st.floats(0, 20, allow_subnormal=False)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(entries, thresholds)
def test_prox_filters_minimises_half_the_squared_distance_plus_threshold_times_norm(
    values: list[float], threshold: float
) -> None:
    z = torch.tensor(values, dtype=torch.float64).view(3, 2, 2, 1)
    x = prox_filters(z, threshold)
    for z_o, x_o in zip(z.flatten(1), x.flatten(1), strict=True):
        norm = x_o.norm()
        if norm > 1e-9:
            assert_close(z_o - x_o, threshold * x_o / norm, atol=1e-5)
            assert_close(norm, z_o.norm() - threshold)
        else:
            assert z_o.norm() <= threshold + 1e-9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(entries, thresholds)
def test_prox_entries_is_prox_filters_of_one_entry_filters(values: list[float], threshold: float) -> None:
    z = torch.tensor(values, dtype=torch.float64).view(4, 3)
    expected = prox_filters(z.view(12, 1), threshold).view(4, 3)
    assert_close(prox_entries(z, threshold), expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(entries, entries, thresholds)
def test_prox_brings_no_two_points_further_apart(a: list[float], b: list[float], threshold: float) -> None:
    x, y = (torch.tensor(values, dtype=torch.float64).view(3, 4) for values in (a, b))
    for prox in (prox_filters, prox_entries):
        assert (prox(x, threshold) - prox(y, threshold)).norm() <= (x - y).norm() + 1e-12


def test_prox_of_a_filter_of_norm_five_by_hand() -> None:
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert_close(prox_filters(z, 1.0), expected)
    expected = torch.tensor([[2.0, 3.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert_close(prox_entries(z, 1.0), expected)
