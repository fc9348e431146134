"""Costs of networks and of training, and budgets for them."""

from typing import TYPE_CHECKING

from budgetnet.lazy import imported

if TYPE_CHECKING:
    from budgetnet.costs.budget import Budget
    from budgetnet.costs.ledger import TrainCostLedger
    from budgetnet.costs.model import CostModel

__all__ = ["Budget", "CostModel", "TrainCostLedger"]

__getattr__ = imported(__name__, {"budget": "Budget", "ledger": "TrainCostLedger", "model": "CostModel"})
