"""LBI, the optimizer that learns weights together with their support."""

from budgetnet.optim.lbi import LBI, prox_entries, prox_filters

__all__ = ["LBI", "prox_entries", "prox_filters"]
