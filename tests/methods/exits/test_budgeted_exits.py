"""Thresholds let the quotas leave, and accuracy and mean FLOPs are those of the exits that images leave by."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from drawn import random_confidence
from torch import Tensor

from budgetnet.backbones import msdnet, ranet
from budgetnet.errors import UsageError
from budgetnet.methods.exits.allocation import confidences, counts
from budgetnet.methods.exits.budgeted import NEVER, SETTINGS, curve, early_exit, evaluate, leaving, thresholds, within

FLOPS = torch.tensor([6.86e6, 14.35e6, 27.54e6, 41.71e6, 58.48e6], dtype=torch.float64)


def by_definition(confidence: Tensor, q: float) -> list[float]:
    """Down the sorted images of every exit, counting those that are still there."""
    samples, exits = confidence.shape
    powers = [q**k for k in range(1, exits + 1)]
    gone = [False] * samples
    found = []
    for k in range(exits - 1):
        quota = math.floor(samples * powers[k] / sum(powers) + 1e-9)
        threshold, count = NEVER, 0
        for i in sorted(range(samples), key=lambda i: -float(confidence[i, k])):
            if not gone[i]:
                count += 1
                if count == quota:
                    threshold = float(confidence[i, k])
                    break
        for i in range(samples):
            gone[i] = gone[i] or float(confidence[i, k]) >= threshold
        found.append(threshold)
    return [*found, -math.inf]


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("samples", [1, 3, 16, 211])
def test_thresholds_and_their_evaluation_are_the_definition_at_every_setting(samples: int, levels: int | None) -> None:
    confidence = random_confidence(samples, 5, levels)
    correct = random_confidence(samples + 1, 5)[:samples] > 0.4
    for q in SETTINGS:
        limits = thresholds(confidence, q, 5)
        assert limits.tolist() == by_definition(confidence, q)
        right, spent = 0, 0.0
        for i in range(samples):
            k = next(k for k in range(5) if confidence[i, k] >= limits[k])
            right += int(correct[i, k])
            spent += float(FLOPS[k])
        accuracy, mean = evaluate(confidence, correct, limits, FLOPS)
        assert abs(accuracy - right / samples) < 1e-12 and abs(mean / (spent / samples) - 1) < 1e-12


def test_without_ties_exactly_the_quotas_leave() -> None:
    confidence = random_confidence(1000, 5)
    for q in SETTINGS:
        gone = torch.bincount(leaving(confidence, thresholds(confidence, q, 5)), minlength=5)
        assert gone.tolist() == counts(1000, q, 5)


def test_of_equal_images_all_leave_and_where_too_few_are_left_none_does() -> None:
    confidence = torch.full((10, 3), 0.5)
    confidence[8:, 0] = 0.1
    limits = thresholds(confidence, 1.0, 3)  # a quota of 3: the eight equal images fill it, and two are left
    assert limits.tolist() == [0.5, NEVER, -math.inf]
    assert torch.bincount(leaving(confidence, limits)).tolist() == [8, 0, 2]


def test_where_the_quota_is_nothing_no_image_leaves() -> None:
    assert thresholds(torch.rand(4, 3), 0.05, 3).tolist()[1:] == [NEVER, -math.inf]
    assert thresholds(torch.rand(1, 3), 1.0, 3).tolist() == [NEVER, NEVER, -math.inf]


def test_confidences_in_single_precision_meet_their_own_thresholds() -> None:
    confidence = torch.rand(500, 4, generator=torch.Generator().manual_seed(3))
    gone = torch.bincount(leaving(confidence, thresholds(confidence, 0.6, 4)), minlength=4)
    assert gone.tolist() == counts(500, 0.6, 4)


def held_out() -> tuple[Tensor, Tensor]:
    """Later exits are right more often, and every exit where it is confident."""
    confidence = random_confidence(2000, 5)
    return confidence, confidence + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]) > 0.6


def test_a_larger_q_costs_more_and_the_curve_has_39_settings() -> None:
    costs = [setting.mean_flops for setting in curve(*held_out(), FLOPS)]
    assert len(costs) == 39 and costs == sorted(costs)
    assert costs[0] < 1.1 * FLOPS[0] and costs[-1] > 0.6 * FLOPS[-1]


@pytest.mark.parametrize("budget", [6.86e6, 7e6, 15e6, 25e6, 58.48e6])
def test_a_mean_budget_is_not_exceeded_and_no_setting_that_fits_is_more_accurate(budget: float) -> None:
    confidence, correct = held_out()
    chosen = within(confidence, correct, FLOPS, budget)
    assert chosen.mean_flops <= budget
    accuracy, mean = evaluate(confidence, correct, torch.tensor(chosen.thresholds, dtype=torch.float64), FLOPS)
    assert (accuracy, mean) == (chosen.accuracy, chosen.mean_flops)
    fitting = [setting for setting in curve(confidence, correct, FLOPS) if setting.mean_flops <= budget]
    assert chosen.accuracy == max([chosen.accuracy, *(setting.accuracy for setting in fitting)])
    assert (chosen.q == 0) is not bool(fitting)


@pytest.mark.parametrize("budget", [6.8e6, 58.5e6])
def test_a_mean_budget_below_the_first_exit_or_above_the_last_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match=r"budget.mean_flops=.*: expected 6860000, of the first exit, to 58480000"):
        within(*held_out(), FLOPS, budget)


@pytest.mark.parametrize("build", [msdnet.build, ranet.build])
def test_leaving_early_gives_what_is_simulated_on_the_logits_of_the_whole_network(build: Any) -> None:
    torch.manual_seed(0)
    network = build(10, 3, (16, 16), channels=4, growth=4)
    images = torch.randn(40, 3, 16, 16)
    network(images)
    network.eval()
    with torch.no_grad():
        whole = network(images)
    limits = thresholds(confidences(whole), 0.8, network.exits)
    limits[1] = NEVER
    logits, exits = early_exit(network, images, limits)
    simulated = leaving(confidences(whole), limits)
    assert torch.equal(exits, simulated) and len(exits.unique()) > 3 and 1 not in exits
    torch.testing.assert_close(logits, torch.stack(whole)[simulated, torch.arange(40)], rtol=1e-4, atol=1e-5)


def test_nothing_is_computed_once_all_images_have_left() -> None:
    network = msdnet.build(10, 3, (16, 16), exits=3, channels=4, growth=4).eval()
    network.classifiers[1].register_forward_hook(lambda *_: pytest.fail("an exit that no image reaches"))
    logits, exits = early_exit(network, torch.randn(4, 3, 16, 16), torch.tensor([0.0, 0.0, -math.inf]))
    assert exits.tolist() == [0, 0, 0, 0] and logits.shape == (4, 10)
