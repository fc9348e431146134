"""Costs of networks and of training, and budgets for them."""

from budgetnet.costs.budget import Budget
from budgetnet.costs.ledger import TrainCostLedger
from budgetnet.costs.model import CostModel

__all__ = ["Budget", "CostModel", "TrainCostLedger"]
