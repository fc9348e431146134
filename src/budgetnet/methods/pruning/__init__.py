"""Shrinking a network to a budget: what matters (criteria), what goes together (pools), how much goes (allocate)."""

from budgetnet.methods.pruning.pools import Pool, Scores, kept, pools

__all__ = ["Pool", "Scores", "kept", "pools"]
