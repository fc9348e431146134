"""When and where a network grows."""

from budgetnet.growth.capacity import initial_norms, saturation, selection_threshold, sparse_sets
from budgetnet.growth.firefly import Candidates, firefly_candidates, load
from budgetnet.growth.gradients import growth_gradients
from budgetnet.growth.policy import GrowthPlan, GrowthRule, Limit, Planner

__all__ = [
    "Candidates", "GrowthPlan", "GrowthRule", "Limit", "Planner",
    "firefly_candidates", "growth_gradients", "initial_norms", "load", "saturation",
    "selection_threshold", "sparse_sets",
]  # fmt: skip
