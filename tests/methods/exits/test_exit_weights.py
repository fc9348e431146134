"""Weights of samples have a mean of 1 where they should, and their loss is the paper's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from budgetnet.errors import UsageError
from budgetnet.methods.exits.weights import WeightPrediction, centred, exit_losses, weighted_loss

U = torch.rand(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("mode", ["matrix", "sample", "exit"])
def test_centring_takes_the_mean_that_its_mode_names(mode: str) -> None:
    weights = centred(U, mode, 0.8)  # type: ignore[arg-type]
    for i in range(7):
        for k in range(5):
            over = {"matrix": U, "sample": U[i], "exit": U[:, k]}[mode]
            expected = 1 + 0.8 * (float(U[i, k]) - sum(over.flatten().tolist()) / over.numel())
            assert abs(float(weights[i, k]) - expected) < 1e-14


@pytest.mark.parametrize(("mode", "axes"), [("matrix", (0, 1)), ("sample", (1,)), ("exit", (0,))])
def test_the_mean_weight_is_one(mode: str, axes: tuple[int, ...]) -> None:
    means = centred(U, mode, 0.3).mean(axes)  # type: ignore[arg-type]
    torch.testing.assert_close(means, torch.ones_like(means), rtol=0, atol=1e-15)


def test_a_weight_may_be_negative() -> None:
    u = torch.tensor([[1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
    assert centred(u, "sample", 0.8)[0, 3] == pytest.approx(-0.2)


def test_an_unknown_centring_is_refused() -> None:
    with pytest.raises(UsageError, match="centring='row': expected matrix, sample or exit"):
        centred(U, "row", 0.8)  # type: ignore[arg-type]


def test_with_equal_weights_the_loss_is_the_sum_of_the_mean_losses_of_the_exits() -> None:
    logits = tuple(torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    losses = exit_losses(logits, labels)
    assert losses.shape == (6, 3)
    expected = sum(F.cross_entropy(each, labels) for each in logits)
    torch.testing.assert_close(weighted_loss(losses, torch.ones_like(losses)), expected, rtol=1e-14, atol=0)


def test_what_predicts_weights_has_one_hidden_layer_of_500_units_and_a_tanh() -> None:
    net = WeightPrediction(5)
    assert sum(parameter.numel() for parameter in net.parameters()) == 5 * 500 + 500 + 500 * 5 + 5
    assert net(100 * torch.rand(64, 5)).abs().max() <= 1
    assert len(WeightPrediction(5, width=10, depth=4)) == 10
