"""When and where a network grows."""

from budgetnet.growth.capacity import first_filters, initial_norms, saturation, selection_threshold, sparse_sets
from budgetnet.growth.gradients import growth_gradients
from budgetnet.growth.policy import GrowthPlan, GrowthRule, Limit, Planner

__all__ = [
    "GrowthPlan", "GrowthRule", "Limit", "Planner",
    "first_filters", "growth_gradients", "initial_norms", "saturation", "selection_threshold", "sparse_sets",
]  # fmt: skip
