"""Width groups: which tensors share a width, and how a live network changes it."""

from budgetnet.channels.channel_graph import ChannelGraph
from budgetnet.channels.graph import GraphError, WidthGroup
from budgetnet.channels.rescale import rescale_filters
from budgetnet.channels.resize import resize

__all__ = ["ChannelGraph", "GraphError", "WidthGroup", "rescale_filters", "resize"]
