"""Growing a network: how saturated its layers are, which groups grow, and how new channels are initialised."""

from typing import TYPE_CHECKING

from budgetnet.lazy import imported

if TYPE_CHECKING:
    from budgetnet.methods.growth.capacity import (
        best_scored,
        initial_norms,
        path_norms,
        saturation,
        selected_fractions,
        selection_threshold,
        sparse_sets,
        supports,
    )
    from budgetnet.methods.growth.firefly import Candidates, firefly_candidates, load
    from budgetnet.methods.growth.gradients import growth_gradients
    from budgetnet.methods.growth.importance import channel_importance, saturation_of_gains
    from budgetnet.methods.growth.options import GrowthRule
    from budgetnet.methods.growth.policy import Limit, Planner

__all__ = [
    "Candidates", "GrowthRule", "Limit", "Planner", "best_scored", "channel_importance", "firefly_candidates",
    "growth_gradients", "initial_norms", "load", "path_norms", "saturation", "saturation_of_gains",
    "selected_fractions", "selection_threshold", "sparse_sets", "supports",
]  # fmt: skip

_NAMES = {
    "capacity": "best_scored initial_norms path_norms saturation selected_fractions selection_threshold sparse_sets "
    "supports",
    "firefly": "Candidates firefly_candidates load",
    "gradients": "growth_gradients",
    "importance": "channel_importance saturation_of_gains",
    "options": "GrowthRule",
    "policy": "Limit Planner",
}
__getattr__ = imported(__name__, _NAMES)
