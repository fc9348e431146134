"""Learning which edges of a network to keep, under a budget: pure functions behind `budgetnet.methods.bsn`."""

from budgetnet.supernets.choice import EdgePlan, Fits, choose, keep_edges, within
from budgetnet.supernets.estimator import advantages, drawn, penalties, score_gradient
from budgetnet.supernets.search import EdgeSearch, SuperNetwork
from budgetnet.supernets.statistics import reestimate

__all__ = [
    "EdgePlan", "EdgeSearch", "Fits", "SuperNetwork", "advantages", "choose", "drawn", "keep_edges", "penalties",
    "reestimate", "score_gradient", "within",
]  # fmt: skip
