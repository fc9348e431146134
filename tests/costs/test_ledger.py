from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from budgetnet.costs.ledger import TrainCostLedger
from budgetnet.errors import UsageError

IMAGES = 45_000


def test_spent_is_the_exact_sum_of_images_times_flops() -> None:
    ledger = TrainCostLedger(IMAGES, 300, 617_082_880)
    steps = [(128, 617_082_881), (72, 3), (1, 10**15 + 1), (0, 5)]
    for images, flops in steps:
        ledger.add(images, flops)
    assert ledger.spent == 128 * 617_082_881 + 72 * 3 + 10**15 + 1
    assert isinstance(ledger.spent, int)


def test_sums_stay_exact_where_floats_would_not() -> None:
    ledger = TrainCostLedger(1_281_167, 90, 1_814_073_344)
    ledger.add(1, 2**60)
    ledger.add(1, 1)
    assert ledger.spent == 2**60 + 1


def test_the_baseline_costs_one_hundred_percent_of_itself() -> None:
    ledger = TrainCostLedger(IMAGES, 300, 40_551_040)
    for _ in range(300):
        ledger.add(IMAGES, 40_551_040)
    assert ledger.spent == ledger.baseline_cost == 300 * IMAGES * 40_551_040
    assert ledger.percent_of_baseline() == 100.0
    assert ledger.percent_of_final(40_551_040) == 100.0


def test_an_epoch_of_a_network_at_half_the_cost_is_half_an_epoch() -> None:
    ledger = TrainCostLedger(1000, 10, 2_000)
    ledger.add(1000, 1_000)
    assert ledger.percent_of_baseline() == 5.0
    assert ledger.percent_of_final(1_000) == 10.0
    assert ledger.percent_of_final(500) == 20.0


def test_length_in_final_epochs_may_exceed_the_baselines_while_its_cost_does_not() -> None:
    """ResNet-20 in Table 1 of the paper: 351 epochs of the final 0.0205 G are 58.5 % of 300 of 0.041 G."""
    ledger = TrainCostLedger(IMAGES, 300, 41_000_000)
    ledger.add(351 * IMAGES, 20_500_000)
    assert ledger.percent_of_baseline() == pytest.approx(58.5, abs=1e-12)
    assert ledger.percent_of_final(20_500_000) == pytest.approx(117.0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "full", "percent", "other", "percent_of_other"),
    [
        ("CIFAR-10, 3x against the depth baseline", 619, 55.8, 597, 57.8),
        ("CIFAR-100, 3x against the depth baseline", 619, 66.7, 759, 54.6),
        ("CIFAR-10, 5x against its own final network", 1716, 49.4, 1197, 70.6),
    ],
)
def test_the_papers_two_percentages_of_one_run_belong_together(
    name: str, full: int, percent: float, other: int, percent_of_other: float
) -> None:
    """Tables 3 and 4 give one spent cost against two networks (in MFLOPs) trained for the same epochs."""
    ledger = TrainCostLedger(IMAGES, 300, full * 10**6)
    ledger.add(round(percent * 3 * IMAGES), full * 10**6)
    assert ledger.percent_of_baseline() == pytest.approx(percent, abs=1e-9)
    assert ledger.percent_of_final(other * 10**6) == pytest.approx(percent_of_other, rel=0.005)


def two_layer_flops(widths: Mapping[str, int]) -> int:
    """A 3x3 convolution on 8x8 from 3 channels, another, and a linear layer to 10 classes."""
    a, b = widths["conv1"], widths["conv2"]
    return 64 * 9 * (3 * a + a * b) + 10 * b


def test_replaying_a_recorded_width_schedule_gives_the_same_ledger() -> None:
    recorded = []
    grown = TrainCostLedger(1000, 20, two_layer_flops({"conv1": 16, "conv2": 32}))
    widths = {"conv1": 4, "conv2": 4}
    for epoch in range(1, 13):
        recorded.append(dict(widths))
        for start in range(0, 1000, 128):
            grown.add(min(128, 1000 - start), two_layer_flops(widths))
        if epoch % 3 == 0:
            widths = {"conv1": widths["conv1"] + 2, "conv2": widths["conv2"] + 5}
    replayed = TrainCostLedger(1000, 20, grown.full_flops)
    for schedule in json.loads(json.dumps(recorded)):
        replayed.add(1000, two_layer_flops(schedule))
    assert replayed.state_dict() == grown.state_dict()
    rounds = [(4, 4), (6, 9), (8, 14), (10, 19)]
    assert grown.spent == 3 * 1000 * sum(64 * 9 * (3 * a + a * b) + 10 * b for a, b in rounds)
    assert grown.percent_of_baseline() == 100 * grown.spent / (20 * 1000 * (64 * 9 * (3 * 16 + 16 * 32) + 320))


def test_a_ledger_continues_from_its_saved_state() -> None:
    whole, first, second = (TrainCostLedger(1000, 10, 2**40) for _ in range(3))
    for step in range(10):
        whole.add(128, 2**50 + step)
        (first if step < 4 else second).add(128, 2**50 + step)
        if step == 3:
            first.compile_seconds += 1.5
            first.growth_seconds += 0.25
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True))
    assert second.spent == whole.spent
    assert (second.compile_seconds, second.growth_seconds) == (1.5, 0.25)
    assert json.loads(json.dumps(second.state_dict())) == second.state_dict()


def test_seconds_are_kept_apart_from_the_train_cost() -> None:
    ledger = TrainCostLedger(1000, 10, 2000)
    ledger.compile_seconds += 30.0
    ledger.growth_seconds += 2.0
    assert ledger.spent == 0 and ledger.percent_of_baseline() == 0.0


def test_the_repr_reads_as_a_sentence() -> None:
    ledger = TrainCostLedger(50_000, 300, 40_551_040)
    ledger.add(50_000, 40_551_040)
    assert repr(ledger) == "TrainCostLedger(spent=2.03T FLOPs, 0.3% of the baseline)"


@pytest.mark.parametrize("name", ["images_per_epoch", "baseline_epochs", "full_flops"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_reference_that_is_not_positive_is_refused(name: str, value: int) -> None:
    arguments = {"images_per_epoch": 1000, "baseline_epochs": 10, "full_flops": 2000, name: value}
    with pytest.raises(UsageError, match=f"train cost {name}={value}: expected a positive whole number"):
        TrainCostLedger(**arguments)


def test_what_cannot_be_summed_exactly_is_refused() -> None:
    ledger = TrainCostLedger(1000, 10, 2000)
    not_whole: Any = 1.5e9
    with pytest.raises(TypeError):
        ledger.add(128, not_whole)
    with pytest.raises(ValueError, match="images=-1"):
        ledger.add(-1, 10)
    with pytest.raises(UsageError, match="final_flops=0"):
        ledger.percent_of_final(0)
    assert ledger.spent == 0
