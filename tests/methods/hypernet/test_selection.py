"""What stays is the largest set within the limit, over one threshold, with the floors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from budgetnet.errors import UsageError
from budgetnet.methods.hypernet.selection import kept, select


def test_a_channel_stays_if_it_reaches_the_threshold_or_is_among_the_floor() -> None:
    scores = torch.tensor([0.3, -0.9, 0.1, 0.5, -0.2])
    for threshold, floor in itertools.product((0.0, 0.15, 0.4, 0.9, 2.0), range(1, 6)):
        bar = min(threshold, scores.abs().sort(descending=True).values[floor - 1].item())
        assert kept(scores, threshold, floor).tolist() == [abs(s) >= bar for s in scores.tolist()]


def test_where_fewer_than_the_floor_are_not_zero_the_floor_stays_and_not_all() -> None:
    assert kept(torch.tensor([0.0, 0.0, 0.7, 0.0]), 0.1, 3).tolist() == [True, True, True, False]
    assert kept(torch.zeros(4), 0.1, 2).tolist() == [True, True, False, False]
    assert kept(torch.full((4,), 0.5), 1.0, 2).tolist() == [True, True, False, False]
    assert kept(torch.zeros(4), 0.0, 2).tolist() == [True] * 4  # all reach the threshold


def test_a_floor_above_the_width_keeps_all() -> None:
    assert kept(torch.tensor([0.1, 0.2]), 9.0, 4).all()


def example() -> tuple[dict[str, Tensor], dict[str, int]]:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.randn(12, generator=generator), "b": 0.1 * torch.randn(20, generator=generator)}
    return scores, {"a": 2, "b": 5}


def price(counts: dict[str, int]) -> int:
    return 27 * counts["a"] + 9 * counts["a"] * counts["b"] + 10 * counts["b"]


@pytest.mark.parametrize("limit", [200, 555, 1000, 1500, 2000, 5000])
def test_the_selected_set_fits_and_the_next_larger_one_does_not(limit: int) -> None:
    scores, floors = example()
    threshold, masks = select(scores, floors, price, limit)
    assert all(torch.equal(mask, kept(scores[name], threshold, floors[name])) for name, mask in masks.items())
    assert price({name: int(mask.sum()) for name, mask in masks.items()}) <= limit
    every = torch.cat(list(scores.values())).abs().double()
    below = every[every < threshold]
    if len(below):
        larger = {name: int(kept(s.double(), below.max().item(), floors[name]).sum()) for name, s in scores.items()}
        assert price(larger) > limit
    else:
        assert all(mask.all() for mask in masks.values())


def test_floors_that_just_fit_are_kept_and_nothing_else() -> None:
    scores, floors = example()
    _, masks = select(scores, floors, price, price(floors))
    assert {name: int(mask.sum()) for name, mask in masks.items()} == floors


def test_floors_that_alone_exceed_the_limit_are_refused_with_both_numbers() -> None:
    scores, floors = example()
    with pytest.raises(UsageError) as caught:
        select(scores, floors, price, price(floors) - 1, option="budget.flops")
    text = str(caught.value)
    assert f"budget.flops={price(floors) - 1:,}" in text and f"{price(floors):,}" in text and "\n" not in text


def test_scores_that_are_not_finite_are_refused() -> None:
    scores, floors = example()
    scores["b"][3] = math.nan
    with pytest.raises(UsageError, match="'b' are not finite"):
        select(scores, floors, price, 1000)


def test_equal_scores_of_all_channels_go_together_and_never_exceed_the_limit() -> None:
    scores = {"a": torch.ones(6), "b": torch.ones(6)}
    threshold, masks = select(scores, {"a": 2, "b": 2}, lambda counts: sum(counts.values()), 11)
    assert threshold == math.inf
    assert {name: mask.tolist() for name, mask in masks.items()} == dict.fromkeys("ab", [True] * 2 + [False] * 4)
