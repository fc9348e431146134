"""Pruning a network to a budget: scores (criteria), channels to remove together (coupled), and widths (allocate)."""

from typing import TYPE_CHECKING

from budgetnet.lazy import imported

if TYPE_CHECKING:
    from budgetnet.methods.pruning.coupled import CoupledChannels, Scores, channels_to_keep, coupled_channels

__all__ = ["CoupledChannels", "Scores", "channels_to_keep", "coupled_channels"]

__getattr__ = imported(__name__, {"coupled": "CoupledChannels Scores channels_to_keep coupled_channels"})
