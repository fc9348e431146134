from __future__ import annotations

from itertools import pairwise

import pytest

from budgetnet import UsageError
from budgetnet.methods.phases import learning_rate


def rates(schedule: str, steps: int, warmup: int = 0) -> list[float]:
    return [learning_rate(schedule, 0.1, step, steps, warmup) for step in range(steps)]


def test_constant_is_constant() -> None:
    assert set(rates("constant", 7)) == {0.1}


def test_cosine_starts_at_the_base_passes_half_of_it_midway_and_falls_to_zero() -> None:
    cosine = rates("cosine", 100)
    assert cosine[0] == 0.1 and cosine[50] == pytest.approx(0.05)
    assert learning_rate("cosine", 0.1, 100, 100) == pytest.approx(0)
    assert all(a > b for a, b in pairwise(cosine))


def test_step_divides_by_ten_at_each_third() -> None:
    assert [round(rate, 6) for rate in rates("step", 9)] == [0.1] * 3 + [0.01] * 3 + [0.001] * 3


def test_step_at_half_divides_by_ten_at_a_half_and_at_three_quarters() -> None:
    assert [round(rate, 6) for rate in rates("step_at_half", 8)] == [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    assert learning_rate("step_at_half", 0.1, 149, 300) == 0.1 > learning_rate("step_at_half", 0.1, 150, 300)


def test_warmup_rises_linearly_to_the_base_and_counts_in_the_phase() -> None:
    warm = rates("cosine", 100, warmup=4)
    assert warm[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert warm[4] == 0.1 and warm[52] == pytest.approx(0.05)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        learning_rate("cosin", 0.1, 0, 1)
