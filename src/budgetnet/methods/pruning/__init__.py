"""Shrinking a network to a budget: what matters (criteria), what goes together (coupled), how much goes (allocate)."""

from budgetnet.methods.pruning.coupled import CoupledChannels, Scores, channels_to_keep, coupled_channels

__all__ = ["CoupledChannels", "Scores", "channels_to_keep", "coupled_channels"]
