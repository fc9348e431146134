"""Pruning a network to a budget: scores (criteria), channels to remove together (coupled), and widths (allocate)."""

from budgetnet.methods.pruning.coupled import CoupledChannels, Scores, channels_to_keep, coupled_channels

__all__ = ["CoupledChannels", "Scores", "channels_to_keep", "coupled_channels"]
