"""The weight of a limited cost, learned by dual ascent."""

from __future__ import annotations

import pytest
import torch

from budgetnet.errors import UsageError
from budgetnet.methods.edges.multipliers import ASCENT, DAMPING, Multipliers
from budgetnet.methods.edges.search import SuperNetwork


def test_it_is_the_integral_of_the_excess_and_a_part_of_the_last_one() -> None:
    found = Multipliers({"flops": 100, "params": 10}, lr=2.0)
    assert found.weights() == {"flops": 0, "params": 0}
    found.ascend({"flops": 250.0, "params": 5.0})
    found.ascend({"flops": 150.0, "params": 5.0})
    assert found.weights() == {"flops": pytest.approx(2 * ASCENT * (1.5 + 0.5) + DAMPING * 0.5), "params": 0}
    again = Multipliers({"flops": 100, "params": 10}, lr=2.0)
    again.load_state_dict(found.state_dict())
    assert again.weights() == found.weights()
    λ = found.weights()["flops"]
    costs = {"flops": torch.tensor([50, 100, 300]), "params": torch.tensor([1, 20, 30])}
    torch.testing.assert_close(found.price(costs), torch.tensor([-0.5 * λ, 0, 2 * λ], dtype=torch.float64))


@pytest.mark.parametrize(("part", "worth"), [(0.2, 0.05), (0.35, 0.3)])
def test_the_expected_cost_is_drawn_to_the_limit_from_above_and_from_below(part: float, worth: float) -> None:
    """Independent edges, each worth something to the loss, by exact gradients: the multiplier becomes their price."""
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(40, generator=generator, dtype=torch.float64) * worth
    cost = torch.rand(40, generator=generator, dtype=torch.float64) + 0.2
    cost /= cost.sum()
    for initial in (3.0, -3.0):
        logits, found = torch.full((40,), initial, dtype=torch.float64), Multipliers({"flops": 1}, lr=3.0)
        for _ in range(4_000):
            gamma = torch.sigmoid(logits)
            λ = found.weights()["flops"]
            logits -= 3.0 * gamma * (1 - gamma) * (λ * cost / part - value)
            found.ascend({"flops": float((gamma * cost).sum() / part)})
        assert float((torch.sigmoid(logits) * cost).sum() / part) == pytest.approx(1, abs=0.08)
        density = value * part / cost
        on = torch.sigmoid(logits) > 0.5
        assert density[on].min() > 0.8 * found.weights()["flops"] > 0.7 * density[~on].max()


@pytest.mark.parametrize("weight", [0, -1.0, True, "automatic", None, float("nan")])
def test_another_weight_is_refused(weight: object) -> None:
    with pytest.raises(UsageError, match=f"method.cost_weight={weight}: expected a number above 0, or auto"):
        SuperNetwork(cost_weight=weight)
