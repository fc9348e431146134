"""Samples are allocated to exits as the definition has it: quotas, order, ties."""

from __future__ import annotations

import math

import pytest
import torch
from drawn import random_confidence
from torch import Tensor
from torch.nn import functional as F

from budgetnet.errors import UsageError
from budgetnet.methods.exits.allocation import allocate, allocated_loss, confidences, counts, quotas


def by_definition(confidence: Tensor, q: float) -> list[list[int]]:
    """One sample after the other, in plain Python."""
    samples, exits = confidence.shape
    powers = [q**k for k in range(1, exits + 1)]
    used: set[int] = set()
    groups = []
    for k in range(exits - 1):
        free = [i for i in range(samples) if i not in used]
        free.sort(key=lambda i: (-float(confidence[i, k]), i))
        groups.append(free[: math.floor(samples * powers[k] / sum(powers) + 1e-9)])
        used.update(groups[-1])
    return [*groups, [i for i in range(samples) if i not in used]]


@pytest.mark.parametrize("q", [0.05, 0.5, 0.75, 1.0, 1.95])
def test_quotas_are_powers_of_q_that_sum_to_one(q: float) -> None:
    expected = [q**k / sum(q**j for j in range(1, 6)) for k in range(1, 6)]
    torch.testing.assert_close(quotas(q, 5), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


def test_the_published_quotas() -> None:
    assert [round(p, 3) for p in quotas(0.75, 5).tolist()] == [0.328, 0.246, 0.184, 0.138, 0.104]


@pytest.mark.parametrize("q", [0, -0.5, math.inf, math.nan])
def test_another_q_is_refused(q: float) -> None:
    with pytest.raises(UsageError, match=r"q=.*: expected a finite number above 0"):
        quotas(q, 3)


def test_a_quota_that_is_a_whole_number_of_samples_is_that_number() -> None:
    for exits in range(2, 60):
        assert counts(exits, 1.0, exits) == [1] * exits  # in floating point 49 · (1/49) is below 1


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("q", [0.05, 0.5, 0.75, 1.0, 1.95])
@pytest.mark.parametrize("samples", [1, 2, 3, 16, 97])
def test_every_exit_takes_the_most_confident_samples_that_are_left(samples: int, q: float, levels: int | None) -> None:
    confidence = random_confidence(samples, 5, levels)
    groups = [group.tolist() for group in allocate(confidence, q)]
    assert groups == by_definition(confidence, q)
    assert sorted(i for group in groups for i in group) == list(range(samples))


def test_of_equally_confident_samples_the_first_are_taken() -> None:
    groups = allocate(torch.ones(10, 2), 1.0)
    assert [group.tolist() for group in groups] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_the_loss_adds_up_means_of_the_groups_and_skips_an_empty_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(5)]
    labels = torch.tensor([1, 0, 3])
    groups = by_definition(confidences(logits).detach(), 0.75)
    assert [len(group) for group in groups] == [0, 0, 0, 0, 3]
    loss = allocated_loss(logits, labels, 0.75)
    torch.testing.assert_close(loss, F.cross_entropy(logits[4], labels), rtol=1e-14, atol=0)
    loss.backward()
    assert [each.grad is None for each in logits] == [True, True, True, True, False]
    groups = by_definition(confidences(logits[:2]).detach(), 0.5)
    assert [len(group) for group in groups] == [2, 1]
    expected = sum(F.cross_entropy(logits[k][group], labels[group]) for k, group in enumerate(groups))
    torch.testing.assert_close(allocated_loss(logits[:2], labels, 0.5), expected, rtol=1e-14, atol=0)
