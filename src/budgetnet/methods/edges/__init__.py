"""Learning which edges of a network to keep under a budget: the functions behind `budgetnet.methods.edges.bsn`."""

from typing import TYPE_CHECKING

from budgetnet.lazy import imported

if TYPE_CHECKING:
    from budgetnet.methods.edges.estimator import advantages, drawn, penalties, score_gradient
    from budgetnet.methods.edges.options import SuperNetwork
    from budgetnet.methods.edges.search import EdgeSearch
    from budgetnet.methods.edges.selection import EdgePlan, Fits, choose, keep_edges, within
    from budgetnet.methods.edges.statistics import reestimate

__all__ = [
    "EdgePlan", "EdgeSearch", "Fits", "SuperNetwork", "advantages", "choose", "drawn", "keep_edges", "penalties",
    "reestimate", "score_gradient", "within",
]  # fmt: skip

_NAMES = {
    "estimator": "advantages drawn penalties score_gradient",
    "options": "SuperNetwork",
    "search": "EdgeSearch",
    "selection": "EdgePlan Fits choose keep_edges within",
    "statistics": "reestimate",
}
__getattr__ = imported(__name__, _NAMES)
