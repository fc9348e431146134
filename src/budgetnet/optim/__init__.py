"""The optimizer that learns weights and their support together."""

from budgetnet.optim.lbi import LBI, prox_entries, prox_filters

__all__ = ["LBI", "prox_entries", "prox_filters"]
