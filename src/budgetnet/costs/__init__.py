"""What a network costs, and what it may cost."""

from budgetnet.costs.budget import Budget
from budgetnet.costs.ledger import TrainCostLedger
from budgetnet.costs.model import CostModel

__all__ = ["Budget", "CostModel", "TrainCostLedger"]
