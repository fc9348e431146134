"""Whose turn it is to get a block, what ends a stage, and what ends growth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from budgetnet import UsageError
from budgetnet.methods.depth.stage_order import DepthRule, NextBlock, StageOrder, next_block
from budgetnet.methods.growth import Limit

ORDER = ("a", "b", "c")
BLOCKS = {"a": {"flops": 10, "params": 1}, "b": {"flops": 10, "params": 4}, "c": {"flops": 10, "params": 16}}
ROOMY = [Limit("flops", "flops", 10**6), Limit("params", "params", 10**6)]


def step(order: StageOrder, accuracy: float = 0.0, limits: list[Limit] = ROOMY, **rule: float) -> NextBlock:
    """From a network of 100 FLOPs, 100 params and two blocks a stage."""
    return next_block(
        order, accuracy, DepthRule(**rule), dict.fromkeys(ORDER, 2), {"flops": 100, "params": 100}, BLOCKS, limits
    )


def test_stages_grow_in_turn_while_accuracy_rises() -> None:
    order, grown = StageOrder(ORDER), []
    for accuracy in range(7):
        result = step(order, float(accuracy))
        order = result.stage_order
        grown.append(result.stage)
        assert result.stop is None and order.ended == ()
    assert grown == ["a", "b", "c", "a", "b", "c", "a"]


def test_a_stage_ends_when_its_block_brought_less_than_the_threshold_and_the_others_go_on() -> None:
    order = StageOrder(ORDER, last="b", reached=50.0)
    assert order.judged(50.25, 0.25).ended == ()
    assert order.judged(50.24, 0.25).ended == ("b",)
    result = step(order, 50.0)
    assert (result.stage, result.stage_order.ended) == ("c", ("b",))
    assert result.stage_order.reached == 50.0 and result.stage_order.waiting() == ("a", "c")


def test_growth_ends_by_accuracy_when_no_stage_brings_any_more() -> None:
    order, grown = StageOrder(ORDER), []
    while True:
        result = step(order, 70.0)
        order = result.stage_order
        if result.stage is None:
            break
        grown.append(result.stage)
    assert grown == ["a", "b", "c"] and order.ended == ORDER and result.stop == "accuracy"


def test_a_stage_that_has_ended_is_judged_once() -> None:
    order = StageOrder(ORDER, ended=("a",), last="a", reached=60.0)
    assert order.judged(10.0, 0.05) is order


def test_a_stage_whose_block_does_not_fit_is_passed_over_and_the_budget_is_never_exceeded() -> None:
    for most in range(100, 140):
        result = step(StageOrder(ORDER, last="a"), limits=[Limit("params", "params", most)], threshold=-100)
        added = 0 if result.stage is None else BLOCKS[result.stage]["params"]
        assert 100 + added <= most
        assert result.stage == (None if most < 101 else "a" if most < 104 else "b")
        left = most - 100 - added
        assert (result.stop == "params") == (left < 1)


def test_the_last_block_is_not_waited_for_where_nothing_could_follow() -> None:
    result = step(StageOrder(ORDER), limits=[Limit("flops", "flops", 119)])
    assert (result.stage, result.stop) == ("a", "flops")
    assert step(StageOrder(ORDER), limits=[Limit("flops", "flops", 120)]).stop is None


def test_growth_ends_where_another_round_would_not_fit() -> None:
    limits = [Limit("flops", "flops", 1000), Limit("train_cost", "flops", 300, 109)]
    assert step(StageOrder(ORDER), limits=limits).stop == "train_cost"
    assert step(StageOrder(ORDER), limits=[limits[0], replace(limits[1], next_most=110)]).stop is None


def test_no_stage_becomes_deeper_than_allowed() -> None:
    assert step(StageOrder(ORDER), max_depth=2) == NextBlock(None, StageOrder(ORDER), "max_depth")
    assert step(StageOrder(ORDER), max_depth=3).stop is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 101.0}, "method.threshold=101.0"), ({"max_depth": 1}, "method.max_depth=1: expected 2 blocks")],
)
def test_options_out_of_range_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DepthRule(**options)
