from __future__ import annotations

import copy
import math
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetnet.costs.budget import Budget, format_quantity, parse_quantity
from budgetnet.errors import UsageError

# Quantities


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("1e6", 1_000_000),
        ("2.5E+3", 2_500),
        ("580k", 580_000),
        ("580K", 580_000),
        ("0.5G", 500_000_000),
        (".5 G", 500_000_000),
        (" 42.M ", 42_000_000),
        ("1.28T", 1_280_000_000_000),
        ("3P", 3_000_000_000_000_000),
        ("0.1G", 100_000_000),
        ("0.29M", 290_000),
        ("1.1e3k", 1_100_000),
        (7, 7),
        (4.2e7, 42_000_000),
        (np.int64(580_000), 580_000),
        (np.float32(5e5), 500_000),
    ],
)
def test_a_whole_quantity_is_parsed_to_an_exact_int(text: str | float, number: int) -> None:
    assert parse_quantity(text) == number
    assert isinstance(parse_quantity(text), int)


def test_a_quantity_with_a_fraction_is_a_float() -> None:
    assert parse_quantity("1.2345k") == 1234.5
    assert parse_quantity(0.25) == 0.25


def test_a_percentage_is_of_its_reference() -> None:
    assert parse_quantity("50%", reference=40_551_040) == 20_275_520
    assert parse_quantity("12.5 %", reference=10) == 1.25
    assert parse_quantity("250%", reference=4) == 10
    with pytest.raises(UsageError, match="flops=50%: there is nothing to take a percentage of"):
        parse_quantity("50%", option="flops")


@pytest.mark.parametrize(
    "wrong",
    [
        "0.5Q", "5m", "5GB", "5%%", "G", "", "half", "nan", "inf", "-inf", "1e", "1e999", "0x10", "1_000",
        "1,000", "٣", "0", "0k", "0%", "-5%", "-1", "-0.5G", 0, -1, 0.0, -0.5, math.nan, math.inf, -math.inf,
        True, False, [1], b"1k",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["flops", "params", "train_cost"])
def test_what_is_not_a_positive_quantity_is_refused_by_option_and_value(kind: str, wrong: Any) -> None:
    with pytest.raises(UsageError) as error:
        Budget(**{kind: wrong})
    text = str(error.value)
    assert text.startswith(f"budget.{kind}={wrong}: ")
    assert "expected a positive number" in text
    assert "\n" not in text


def test_an_unknown_suffix_is_named() -> None:
    with pytest.raises(UsageError, match=r"^budget\.flops=0\.5Q: unknown suffix 'Q'; expected .* 0\.5G"):
        Budget(flops="0.5Q")


@pytest.mark.parametrize("value", ["0.9", 0.5, "0.0001k"])
def test_a_limit_that_rounds_down_to_zero_is_refused(value: str | float) -> None:
    with pytest.raises(UsageError, match="it comes to less than 1"):
        Budget(params=value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42_000_000, "42.0M"),
        (580_000, "580k"),
        (4_157_242, "4.16M"),
        (999, "999"),
        (1_000, "1.00k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (9_994_999, "9.99M"),
        (9_995_000, "10.0M"),
        (99_950_000, "100M"),
        (1_814_100_000, "1.81G"),
        (2 * 10**17, "200P"),
        (5 * 10**18, "5000P"),
        (0, "0"),
        (12.5, "12.5"),
        (-42_000_000, "-42.0M"),
    ],
)
def test_format_has_three_significant_digits(value: float, text: str) -> None:
    assert format_quantity(value) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 10**18))
def test_a_formatted_quantity_parses_back_to_within_half_a_percent(value: int) -> None:
    assert parse_quantity(format_quantity(value)) == pytest.approx(value, rel=5.1e-3)


# The value


def test_limits_hold_the_stated_kinds_as_whole_numbers_rounded_down() -> None:
    budget = Budget(flops="0.5G", params=1234.9)
    assert budget.limits == {"flops": 500_000_000, "params": 1234}
    assert Budget().limits == {}


def test_a_budget_is_a_value() -> None:
    budget = Budget(flops="42M", params="580k")
    assert budget == Budget(flops=42_000_000, params=580_000.0)
    assert hash(budget) == hash(Budget(flops=42_000_000, params=580_000))
    assert budget != Budget(flops="42M")
    assert copy.deepcopy(budget) == budget == pickle.loads(pickle.dumps(budget))
    for kind in ("flops", "params", "train_cost"):
        with pytest.raises(FrozenInstanceError):
            setattr(budget, kind, 1)


def test_the_repr_says_what_must_hold() -> None:
    assert repr(Budget(flops="42M", params=580_000)) == "Budget(flops<=42.0M, params<=580k)"
    assert repr(Budget(flops="50 %", train_cost="1P")) == "Budget(flops<=50%, train_cost<=1.00P)"
    assert repr(Budget()) == "Budget()"


def test_a_percentage_is_resolved_against_the_full_costs_and_rounded_down() -> None:
    budget = Budget(flops="50%", params="12.5%", train_cost="33.3%")
    full = {"flops": 40_551_041, "params": 269_722, "train_cost": 10**18 + 1}
    assert budget.resolve(full).limits == {
        "flops": 20_275_520,
        "params": 33_715,
        "train_cost": 333 * 10**15,
    }
    assert budget.flops == "50%"


def test_a_percentage_above_one_hundred_grows_beyond_the_full_backbone() -> None:
    assert Budget(flops="200%").resolve({"flops": 1000}).limits == {"flops": 2000}


def test_resolving_leaves_numbers_alone() -> None:
    budget = Budget(flops="42M", params=7)
    assert budget.resolve({"flops": 1, "params": 1}) == budget
    assert budget.resolve({}) == budget


def test_an_unresolved_percentage_has_no_limit_yet() -> None:
    with pytest.raises(UsageError, match=r"^budget\.flops=50% is a percentage: call resolve"):
        _ = Budget(flops="50%").limits
    with pytest.raises(UsageError, match=r"^budget\.train_cost=50%: there is nothing to take"):
        Budget(train_cost="50%").resolve({"flops": 1000})
    with pytest.raises(UsageError, match=r"^budget\.params=0\.1%: it comes to less than 1"):
        Budget(params="0.1%").resolve({"params": 900})


def test_require_refuses_an_empty_budget() -> None:
    Budget(params=1).require()
    for needs_a_limit in (Budget().require, lambda: Budget().binding({})):
        with pytest.raises(UsageError, match=r"no budget: state at least one of budget\.flops, "):
            needs_a_limit()


# Against costs


def test_a_cost_equal_to_its_limit_fits_and_one_more_does_not() -> None:
    budget = Budget(flops=1000, params=100)
    assert budget.fits({"flops": 1000, "params": 100, "train_cost": 10**12})
    assert not budget.fits({"flops": 1001, "params": 100})
    assert not budget.fits({"flops": 1000, "params": 101})
    assert Budget().fits({})


def test_a_cost_that_is_limited_must_be_stated() -> None:
    with pytest.raises(KeyError):
        Budget(flops=1000, params=100).fits({"flops": 1000})


def test_room_used_and_binding_follow_from_the_limits() -> None:
    budget = Budget(flops=1000, params=100)
    costs = {"flops": 250, "params": 110}
    assert budget.room(costs) == {"flops": 750, "params": -10}
    assert budget.used(costs) == {"flops": 0.25, "params": 1.1}
    assert budget.binding(costs) == "params"
    assert budget.binding({"flops": 900, "params": 1}) == "flops"


# Against what growth can reach


SEED = {"flops": 19_002_112, "params": 42_682, "train_cost": 10**12}
LARGEST = {"flops": 160_000_000, "params": 1_071_946, "train_cost": 10**13}


def test_a_budget_between_the_seed_and_the_largest_network_passes_the_check_with_its_ends() -> None:
    for costs in (SEED, LARGEST):
        Budget(**costs).check(SEED, LARGEST)
    Budget().check(SEED, LARGEST)


def test_a_budget_below_the_seed_names_both_numbers_and_a_smaller_seed() -> None:
    with pytest.raises(UsageError) as error:
        Budget(flops=19_002_111).check(SEED, LARGEST)
    assert str(error.value) == (
        "budget.flops=19,002,111 is below the 19,002,112 of the seed network:"
        " raise it or choose a smaller growth.seed_width"
    )


@pytest.mark.parametrize(
    ("flops", "end"),
    [
        (10_000_000, "raise it or choose a smaller growth.seed_width, or x"),
        (9_999_999, "raise it, or x"),  # no seed network is within it
    ],
)
def test_a_smaller_seed_is_named_only_if_one_is_within_the_budget(flops: int, end: str) -> None:
    least = {**SEED, "flops": 10_000_000}
    with pytest.raises(UsageError, match=f"of the seed network: {end}$"):
        Budget(flops=flops).check(SEED, LARGEST, least, ", or x")
    with pytest.raises(UsageError, match=f"of the network of start.from: {end}$"):
        Budget(flops=flops).check(SEED, LARGEST, least, ", or x", "network of start.from")


def test_a_budget_above_the_largest_network_names_both_numbers_and_a_larger_width() -> None:
    with pytest.raises(UsageError) as error:
        Budget(params=1_071_947).check(SEED, LARGEST)
    assert str(error.value) == (
        "budget.params=1,071,947 is above the 1,071,946 of the largest network allowed:"
        " lower it or choose a larger growth.max_width"
    )


def test_train_cost_is_checked_from_below_only() -> None:
    Budget(train_cost=10**15).check(SEED, LARGEST)
    with pytest.raises(UsageError, match="train_cost=999,999,999,999 is below the 1,000,000,000,000"):
        Budget(train_cost=10**12 - 1).check(SEED, LARGEST)


def test_every_limit_that_can_only_be_missed_is_in_the_one_line() -> None:
    with pytest.raises(UsageError) as error:
        Budget(flops="1M", params="1G", train_cost=999).check(SEED, LARGEST)
    text = str(error.value)
    assert "\n" not in text
    assert [text.count(f"budget.{kind}=") for kind in ("flops", "params", "train_cost")] == [1, 1, 1]
    assert text.count("below") == 2 and text.count("above") == 1
